"""Training files: what is read, what is refused with its line, what a batch holds."""

import json

import numpy as np
import pytest

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.finetune.batches import batch_at, make_batch, steps_per_epoch
from mlx_embeddinggemma.finetune.data import read
from mlx_embeddinggemma.prompts import MODEL_CARD, PUBLISHED

PROMPTS = PUBLISHED | MODEL_CARD
QUERY, DOCUMENT = PROMPTS["query"], PROMPTS["document"]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_get_the_retrieval_prompts_titles_and_negatives(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        {"anchor": "q", "positive": "p", "negatives": ["n", "m"], "title": "T"},
        {"anchor": "r", "positive": "s", "negative": "t"},
    )
    rows = read(path, PROMPTS).rows
    assert rows[0].texts == (QUERY + "q", "title: T | text: p", DOCUMENT + "n", DOCUMENT + "m")
    assert rows[1].texts == (QUERY + "r", DOCUMENT + "s", DOCUMENT + "t")


def test_csv_reads_as_json_lines_do(tmp_path):
    (tmp_path / "a.csv").write_text('sentence1,sentence2,score\n"one, two\nthree",b,0.5\nc,d,1\n')
    path = lines(
        tmp_path / "a.jsonl",
        {"sentence1": "one, two\nthree", "sentence2": "b", "score": 0.5},
        {"sentence1": "c", "sentence2": "d", "score": 1},
    )
    data = read(tmp_path / "a.csv", PROMPTS)
    assert data == read(path, PROMPTS)
    assert data.kind == "scored" and data.rows[0].texts[1] == PROMPTS["STS"] + "b"


def test_a_row_may_name_its_task(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        {"anchor": "q", "positive": "p"},
        {"anchor": "q", "positive": "p", "task": "similarity"},
    )
    first, second = read(path, PROMPTS, "code retrieval").rows
    assert first.texts[0] == PROMPTS["InstructionRetrieval"] + "q"
    assert second.texts == (PROMPTS["STS"] + "q", PROMPTS["STS"] + "p")


GOOD = {"anchor": "q", "positive": "p"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"anchor": "q"}, "line 2: no positive"),
        ({"anchor": "q", "positive": "  "}, "line 2: expected positive to be a text, got '  '"),
        ({"anchor": 5, "positive": "p"}, "line 2: expected anchor to be a text, got 5"),
        ({**GOOD, "negatives": "n"}, "line 2: expected negatives to be a list of texts"),
        ({**GOOD, "task": "dance"}, "line 2: expected task retrieval, .* got 'dance'"),
        ([1], "line 2: expected a JSON object"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, row, message):
    with pytest.raises(EmbeddingGemmaError, match=message):
        read(lines(tmp_path / "a.jsonl", GOOD, row, GOOD), PROMPTS)


def test_all_bad_rows_are_counted_and_five_quoted(tmp_path):
    path = lines(tmp_path / "a.jsonl", GOOD, *[{"anchor": "q"}] * 7)
    with pytest.raises(EmbeddingGemmaError, match=r"7 bad rows:(?s:.*)line 6: (?s:.*)and 2 more"):
        read(path, PROMPTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("{not json\n", "line 1: not JSON"),
        (
            '{"query": "q"}\n',
            r"line 1: expected the columns anchor \(or query, question\), positive .*; got query",
        ),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n', "two texts or more of each"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n', "two labels or more"),
        (
            '{"text": "a"}\n{"text": "b", "label": "x"}\n',
            "line 2: expected text alone, .* got label too",
        ),
        ('{"text": "a", "vector": [1, "b"]}\n', "line 1: expected a number, got 'b'"),
        ('{"text": "a", "vector": [0, 0.0]}\n', "line 1: expected vector to have a direction"),
        ('{"text": "a", "vector": [1]}\n{"text": "a", "vector": [1, 2]}\n', "vectors of one length"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(EmbeddingGemmaError, match=message):
        read(tmp_path / "a.jsonl", PROMPTS)


def test_a_csv_row_of_another_width_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("anchor,positive\na,b\na,b,c\na,\n")
    message = r"line 3: expected 2 columns(?s:.*)line 4: no positive"
    with pytest.raises(EmbeddingGemmaError, match=message):
        read(tmp_path / "a.csv", PROMPTS)


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order(tmp_path):
    rows = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(12)]
    data = read(lines(tmp_path / "a.jsonl", *rows), PROMPTS)
    assert steps_per_epoch(data, 4) == 3
    epochs = [[batch_at(data, 4, 7, step).texts for step in range(3 * e, 3 * e + 3)] for e in (0, 1)]
    flat = [[text for texts in epoch for text in texts if text.startswith(QUERY)] for epoch in epochs]
    assert sorted(flat[0]) == sorted(flat[1]) == sorted(QUERY + f"q{i}" for i in range(12))
    assert flat[0] != flat[1]
    assert batch_at(data, 4, 7, 5).texts == epochs[1][2]


def test_repetitions_same_anchors_and_padding_are_no_negatives(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        {"anchor": "q", "positive": "p"},
        {"anchor": "q", "positive": "other answer"},
        {"anchor": "r", "positive": "p", "negative": "n"},
    )
    batch = make_batch(read(path, PROMPTS), np.arange(3), np.random.default_rng(0))
    assert len(batch.texts) == 5  # q, p, other answer, r, n
    # Candidates: p, other answer, p | padding, padding, n.
    assert np.array(batch.targets.hidden).tolist() == [
        [False, True, True, True, True, False],
        [True, False, False, True, True, False],
        [True, False, False, True, True, False],
    ]


def test_labelled_texts_are_paired_within_their_label_and_never_told_apart_from_it(tmp_path):
    rows = [{"text": f"{label}{i}", "label": label} for label in "ab" for i in range(5)]
    data = read(lines(tmp_path / "a.jsonl", *rows), PROMPTS)
    for step in range(4):
        batch = batch_at(data, 10, 0, step)
        labels = np.array([text[-2] for text in batch.texts])[batch.columns]
        assert (labels[0] == labels[1]).all() and (batch.columns[0] != batch.columns[1]).all()
        same = (labels[0][:, None] == labels[1]) & ~np.eye(10, dtype=bool)
        assert (np.array(batch.targets.hidden) >= same).all()
