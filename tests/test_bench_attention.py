"""Every way to compute attention that is timed gives the same result; the table has ours."""

import json
import sys

import mlx.core as mx
import pytest
from mlx_embeddinggemma.bench import attention

from mlx_embeddinggemma import runtime


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(runtime, "batch_tokens", lambda: 600)
    mx.random.seed(0)  # rare draws round to more than the bound: the same ones each time


@pytest.mark.parametrize("kind", attention.KINDS)
def test_all_ways_agree(machine, kind):
    row = attention.measure(300, attention.KINDS[kind], mx.float32, rounds=1)
    assert row.apart < 2e-6
    assert {"32", "128", "whole", "chosen", "MLX's"} <= row.samples_s.keys()


def test_the_table_names_the_choice_and_json_has_the_samples(monkeypatch, capsys):
    monkeypatch.setattr(attention, "LENGTHS", (64, 300))
    for flags in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["attention", "--rounds", "2", *flags])
        attention.main()
        out = capsys.readouterr().out
        if flags:
            rows = json.loads(out)["rows"]
            assert [row["tokens"] for row in rows] == [64, 64, 300, 300]
            assert all(len(samples) == 2 for row in rows for samples in row["samples_s"].values())
        else:
            table = [line for line in out.splitlines() if line.startswith("| ")]
            assert len(table) == 6 and all(line.count("(") == 1 for line in table[2:])
            assert "milliseconds" in out and "Largest difference" in out


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(attention, "measure", interrupted)
    monkeypatch.setattr(sys, "argv", ["attention"])
    with pytest.raises(SystemExit, match="130"):
        attention.main()
    assert capsys.readouterr().err.endswith("interrupted: nothing is kept\n")


def test_no_rounds_are_wrong_usage(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attention", "--rounds", "0"])
    with pytest.raises(SystemExit):
        attention.main()
    assert "--rounds of 1 or more, got 0" in capsys.readouterr().err
