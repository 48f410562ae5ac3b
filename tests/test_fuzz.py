"""Some two thousand inputs that nobody meant; `python tests/fuzz.py` runs more of them."""

import re

import fuzz
import fuzz_targets
import numpy as np
import pytest
from fuzz_targets import Random, check_vectors, mutated_json

from mlx_embeddinggemma import EmbeddingGemmaError

INPUTS = 200  # of each target


@pytest.fixture(scope="module")
def faults() -> list[fuzz.Fault]:
    return fuzz.run(INPUTS * len(fuzz_targets.TARGETS))


@pytest.mark.slow
@pytest.mark.parametrize("target", fuzz_targets.TARGETS)
def test_every_input_succeeds_or_is_refused_in_one_line(target, faults):
    assert [fault for fault in faults if fault.target == target] == []


def broken(monkeypatch, tmp_path, target) -> str | None:
    """What the fuzzer says of a target that does this."""
    monkeypatch.setitem(fuzz_targets.TARGETS, "broken", target)
    monkeypatch.chdir(tmp_path)
    return fuzz.fault_of(0, 0, ["broken"], tmp_path / "base", tmp_path / "scratch")


def raises(error):
    def target(rng, base, folder):
        raise error

    return target


class Panic(BaseException):
    pass


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (raises(KeyError("x")), "KeyError"),
        (raises(Panic("x")), "Panic"),
        (raises(TypeError("'<' not supported")), "TypeError"),
        (raises(EmbeddingGemmaError("x" * 2000)), "a message of 2000 characters"),
        (raises(EmbeddingGemmaError("a\nb")), "a message of several lines"),
        (lambda rng, base, folder: (folder / ".out.partial-1").mkdir(), "left .*partial"),
        (
            lambda rng, base, folder: check_vectors(np.zeros((4, 8)), 8),
            "of length",
        ),
    ],
)
def test_the_fuzzer_notices(target, says, monkeypatch, tmp_path):
    assert re.search(says, broken(monkeypatch, tmp_path, target) or "")


def test_the_fuzzer_accepts_what_is_told_in_one_line(monkeypatch, tmp_path):
    for target in (
        raises(EmbeddingGemmaError("expected this, got that")),
        raises(TypeError("expected texts, got int")),
        lambda rng, base, folder: None,
    ):
        assert broken(monkeypatch, tmp_path, target) is None


def test_an_input_is_drawn_from_its_seed_and_number_alone():
    def drawn() -> list[bytes]:
        edits = [edit(Random("0 1"), b"some bytes") for edit in fuzz_targets.TEXT_EDITS]
        return edits + [
            mutated_json(Random(f"0 {n}"), {"a": [1, 2], "b": {"c": None}}) for n in range(50)
        ]

    assert drawn() == drawn()
    assert len(set(drawn())) > 40
