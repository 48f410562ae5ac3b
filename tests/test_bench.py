"""Scores equal mteb's, and a run leaves a record from which its tables come."""

import json

import numpy as np
import pytest
from mlx_embeddinggemma.bench import cli, record, report, scores, tasks

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError


def test_spearman_equals_scipy_with_ties():
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the extra `reference`")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 300), rng.standard_normal(300)
    assert abs(scores.spearman(x, y) - stats.spearmanr(x, y).statistic) < 1e-12


def test_ndcg_at_10_of_known_ranks():
    similarity = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    expected = (1 + 1 / np.log2(3) + 1 / np.log2(4)) / 3
    assert scores.ndcg_at_10(similarity, np.array([0, 1, 2])) == pytest.approx(expected)
    far = np.tile(np.linspace(1, 0, 20), (1, 1))
    assert scores.ndcg_at_10(far, np.array([10])) == 0


def test_one_encoding_scores_every_dimension(demo):
    """Cutting the full vectors gives what encoding at that dimension gives."""
    model = EmbeddingGemma(demo)
    task = tasks.load(["STSBenchmark-captions"])[0]
    assert isinstance(task, tasks.STS)
    small = tasks.STS("small", task.first[:60], task.second[:60], task.gold[:60])
    at_once = scores.score(model, small, model.dimensions)
    for dim, value in at_once.items():
        a = model.encode(small.first, prompt_name="STS", truncate_dim=dim)
        b = model.encode(small.second, prompt_name="STS", truncate_dim=dim)
        assert scores.spearman((a * b).sum(1), np.array(small.gold)) == pytest.approx(value, abs=1e-9)


def test_bundled_tasks_are_whole():
    sts, retrieval = tasks.load()
    assert isinstance(sts, tasks.STS) and isinstance(retrieval, tasks.Retrieval)
    assert (sts.name, len(sts.gold)) == ("STSBenchmark-captions", 375)
    assert (len(retrieval.queries), len(retrieval.documents)) == (1190, 240)
    assert max(retrieval.relevant) < 240


def test_an_unknown_task_is_an_error_that_lists_the_known_ones():
    with pytest.raises(EmbeddingGemmaError, match="known tasks: STSBenchmark-captions, XQuAD"):
        tasks.load(["MSMARCO"])
    with pytest.raises(EmbeddingGemmaError, match="expected task files in"):
        tasks.load(data="/nowhere")


def test_the_whole_stsbenchmark_is_scored_where_its_file_is(shared, tmp_path):
    import tarfile

    with tarfile.open(shared / "mteb-subset.tar.xz") as archive:
        name = f"mteb-subset/{tasks.WHOLE_STS}"
        archive.extract(name, tmp_path, filter="data")
    task = tasks.load(["STSBenchmark"], tmp_path / "mteb-subset")[0]
    assert isinstance(task, tasks.STS) and len(task.gold) == 1379
    # The bundled part is part of it, in order.
    part = tasks.load(["STSBenchmark-captions"])[0]
    assert isinstance(part, tasks.STS) and task.first[250:625] == part.first


@pytest.mark.slow
def test_a_run_leaves_record_and_report(demo, tmp_path, capsys):
    import argparse

    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    asked = ["--model", str(demo), "--tasks", "STSBenchmark-captions", "--dims", "256", "128"]
    assert cli.run(parser.parse_args([*asked, "--output", str(tmp_path / "out")])) == 0
    written = json.loads((tmp_path / "out" / "record.json").read_text())
    assert written["schema"] == record.SCHEMA
    model = written["models"][0]
    assert list(model["scores"]["STSBenchmark-captions"]) == ["256", "128"]
    assert all(len(samples) == 12 for samples in model["speed"]["latency_s"].values())
    assert 20 < model["speed"]["peak_mb"]["under_load"] < 2000
    assert report.markdown(written) in capsys.readouterr().out
    assert report.markdown(written) in (tmp_path / "out" / "report.md").read_text()


def test_a_dimension_the_model_has_not_is_an_error(demo):
    with pytest.raises(EmbeddingGemmaError, match="has dimensions 768, 512, 256, 128, not 100"):
        record.bench([str(demo)], dims=[100], tasks=["STSBenchmark-captions"])
