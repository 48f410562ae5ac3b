"""The comparison of engines: what is wrong or absent is seen, not timed."""

import json

import pytest
from mlx_embeddinggemma.bench import compare

TEXTS = ["Mars is the red planet.", "A short text", "Ein anderer Satz, etwas länger als der erste."]


def test_engines_take_turns_and_a_wrong_vector_shows_in_the_cosine(tiny, demo, tmp_path):
    names = [f"ours={demo}", f"ours={tiny}"]
    same, other = compare.compare(names, {"three": TEXTS}, 2, tmp_path)
    assert len(same.samples["three"]) == len(other.samples["three"]) == 2
    assert same.worst_cosine["three"] > 0.999999 > 0.9 > other.worst_cosine["three"]
    assert same.cold_start > 0 and same.peak_mb > 10
    json.dumps([same.record(), other.record()])


def test_an_engine_that_does_not_start_is_skipped_with_its_reason(demo, tmp_path, capsys):
    names = [f"ours={demo}", f"ours={tmp_path / 'absent'}"]
    assert len(compare.compare(names, {"three": TEXTS}, 1, tmp_path)) == 1
    assert "skipped: " in (said := capsys.readouterr().err) and "absent" in said


@pytest.mark.parametrize("tokens", [6, 16, 40])
def test_a_text_of_so_many_tokens(demo, tokens):
    model = compare.EmbeddingGemma(demo)
    words = " ".join(TEXTS * 9).split()
    text = compare.text_of(tokens, words, model)
    assert model.count_tokens([text])[0] <= tokens
    longer = " ".join(words[: len(text.split()) + 1])
    assert model.count_tokens([longer])[0] > tokens
