"""Scores are the published metrics, tasks are read whole or refused, a run leaves a record."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from mlx_embeddinggemma.bench import cli, identity, paired, readme, record, report, scores, speed, tasks

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError

needs_sklearn = pytest.mark.skipif(
    not pytest.importorskip("importlib.util").find_spec("sklearn"), reason="needs the extra `bench`"
)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def data(tmp_path):
    """One small task of each type."""
    folder = tmp_path / "data"
    pairs = [
        {"s1": f"the {a} runs", "s2": f"a {b} is running", "score": int(a == b), "label": int(a == b)}
        for a in ("dog", "cat", "river")
        for b in ("dog", "cat", "stream")
    ]
    write(folder / "sts/Small/test.default.jsonl", pairs)
    write(folder / "pair/Pairs/test.en.jsonl", pairs)
    write(folder / "bitext/Lines/a-b.jsonl", pairs[::4])
    write(folder / "bitext/Columns/all.jsonl", [{"eng_Latn": "one", "deu_Latn": "eins"}] * 2)
    documents = [{"id": str(i), "title": "", "text": row["s1"]} for i, row in enumerate(pairs[::3])]
    write(folder / "retrieval/Find/en/corpus.jsonl", documents)
    write(
        folder / "retrieval/Find/en/queries.jsonl",
        [{"id": "q", "text": "a cat"}, {"id": "r", "text": "x"}],
    )
    write(folder / "retrieval/Find/en/qrels.jsonl", [{"query": "q", "doc": "1", "score": 1}])
    return folder


def test_spearman_equals_scipy_with_ties():
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the extra `bench`")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 300), rng.standard_normal(300)
    assert abs(scores.spearman(x, y) - stats.spearmanr(x, y).statistic) < 1e-12


@needs_sklearn
def test_average_precision_equals_scikit_learn_with_ties():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    similarity, labels = rng.integers(0, 20, 300) / 20, rng.integers(0, 2, 300)
    expected = average_precision_score(labels, similarity)
    assert scores.average_precision(similarity, labels) == pytest.approx(expected, abs=1e-12)


@needs_sklearn
def test_bitext_f1_is_the_weighted_f1():
    from sklearn.metrics import f1_score

    similarity = np.random.default_rng(0).random((40, 40)) + 0.6 * np.eye(40)
    expected = f1_score(range(40), similarity.argmax(axis=1), average="weighted", zero_division=0)
    assert scores.bitext_f1(similarity).mean() == pytest.approx(expected, abs=1e-12)


def test_ndcg_at_10_equals_trec_eval_with_ties_and_grades():
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="comes with the extra `mteb`")
    rng = np.random.default_rng(0)
    similarity = rng.integers(0, 5, (30, 50)) / 4
    ids = [str(i) for i in range(50)]
    relevant = [
        {int(d): float(rng.integers(1, 4)) for d in rng.choice(50, 3, False)} for _ in range(30)
    ]
    qrels = {str(q): {ids[d]: int(g) for d, g in row.items()} for q, row in enumerate(relevant)}
    run = {str(q): dict(zip(ids, map(float, row), strict=True)) for q, row in enumerate(similarity)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    expected = [theirs[str(q)]["ndcg_cut_10"] for q in range(30)]
    assert scores.ndcg_at_10(similarity, relevant, ids) == pytest.approx(expected, abs=1e-9)


def test_a_similarity_that_is_nan_is_refused():
    with pytest.raises(ValueError, match="got NaN"):
        scores.ndcg_at_10(np.array([[np.nan, 0.1]]), [{0: 1}], ["a", "b"])


def test_one_encoding_scores_every_dimension(demo):
    """Cutting the full vectors gives what encoding at that dimension gives."""
    model = EmbeddingGemma(demo)
    task = tasks.load(["STSBenchmark-captions"])[0]
    assert isinstance(task, tasks.STS)
    small = tasks.STS("small", "test", "default", task.first[:60], task.second[:60], task.gold[:60])
    at_once = scores.score(model, small, model.dimensions)
    for dim, found in at_once.items():
        a = model.encode(small.first, prompt_name="STS", truncate_dim=dim)
        b = model.encode(small.second, prompt_name="STS", truncate_dim=dim)
        expected = scores.spearman((a * b).sum(1), np.array(small.gold))
        assert found.value == pytest.approx(expected, abs=1e-9)


def test_bundled_tasks_are_whole_and_of_all_six_types():
    loaded = {task.name: task for task in tasks.load()}
    assert len({task.type for task in loaded.values()}) == 6
    sts, retrieval = loaded["STSBenchmark-captions"], loaded["XQuADRetrieval-en"]
    assert isinstance(sts, tasks.STS) and len(sts.gold) == 375
    assert isinstance(retrieval, tasks.Retrieval)
    assert (len(retrieval.queries), len(retrieval.documents)) == (1190, 240)
    listed = (tasks.BUNDLED / "LICENSES.md").read_text()
    assert all(f"/{task.task}`" in listed for task in loaded.values())


def test_published_scores_are_those_of_the_data_folder(shared):
    import lzma

    everything = json.loads(lzma.decompress((shared / "published-scores.json.xz").read_bytes()))
    everything = everything["all_scores"]
    for row in everything[::97]:
        found = tasks.published(row["task"], row["split"], row["subset"])
        assert found == pytest.approx(row["main_score"], abs=1e-6)
    assert tasks.published("RTE3", "test", "fr") == pytest.approx(0.9036, abs=1e-4)


def test_a_folder_of_task_files_is_read_by_its_layout(data):
    loaded = {task.name: task for task in tasks.load(data=data)}
    assert {"Small", "Pairs-en", "Lines-a-b", "Columns-eng_Latn-deu_Latn", "Find-en"} < set(loaded)
    found = loaded["Find-en"]
    assert isinstance(found, tasks.Retrieval)
    # The query that nothing answers is left out, as mteb does.
    assert found.queries == ["a cat"] and found.relevant == [{1: 1.0}]


def test_of_several_splits_the_test_split_counts(tmp_path):
    folder = tmp_path / "sts" / "Split"
    folder.mkdir(parents=True)
    for split in ("dev", "test", "train", "validation"):
        rows = [{"s1": split, "s2": "b", "score": score} for score in (0, 1)]
        write(folder / f"{split}.default.jsonl", rows)
    (task,) = tasks.load(["Split"], tmp_path)
    assert isinstance(task, tasks.STS) and task.first == ["test", "test"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"s1": "a"', "line 2: expected a JSON object"),
        ('{"s1": "a", "s2": "b"}', "line 2: expected a JSON object with s1 .str., s2 .str., score"),
        ('{"s1": "a", "s2": "b", "score": "high"}', "line 2: expected"),
        ("[1, 2]", "line 2: expected"),
        ("\xff", "line 2: expected"),
    ],
)
def test_a_damaged_task_file_is_refused_in_one_line(tmp_path, line, message):
    path = tmp_path / "sts" / "Bad" / "test.default.jsonl"
    write(path, [{"s1": "a", "s2": "b", "score": 1}])
    path.write_bytes(path.read_bytes() + line.encode("latin-1"))
    with pytest.raises(EmbeddingGemmaError, match=message) as caught:
        tasks.load(["Bad"], tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_task_is_an_error_that_lists_the_known_ones(tmp_path):
    with pytest.raises(EmbeddingGemmaError, match="known tasks: STSBenchmark-captions, RTE3"):
        tasks.load(["MSMARCO"])
    with pytest.raises(EmbeddingGemmaError, match="expected task files in"):
        tasks.load(data=tmp_path)


def test_a_dimension_the_model_has_not_is_an_error_before_anything_is_measured(demo, monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda name: pytest.fail("measured first"))
    with pytest.raises(EmbeddingGemmaError, match="has dimensions 768, 512, 256, 128, not 100"):
        record.bench([str(demo)], dims=[100], tasks=["STSBenchmark-captions"])


def test_the_interval_covers_the_true_difference():
    """95 of 100 intervals should; these are the differences of two known means."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        a, b = rng.normal(0.52, 0.2, 300), rng.normal(0.5, 0.2, 300)
        found = paired.difference(list(a), list(b), "nDCG@10")
        hits += found.low <= 2.0 <= found.high
    assert hits >= 52


def test_no_measurable_loss_is_said_only_when_the_interval_allows_it():
    assert paired.Difference(-0.1, -0.3, 0.1).verdict == "no measurable loss"
    assert paired.Difference(-0.1, -0.9, 0.7).verdict == "undecided"
    assert paired.Difference(-0.4, -0.6, -0.1).verdict == "worse"
    assert paired.Difference(0.4, 0.1, 0.6).verdict == "better"


def test_equal_variants_differ_by_nothing():
    similarity = list(np.random.default_rng(0).random(50))
    found = paired.difference(similarity, similarity, "Spearman", list(range(50)))
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_mean_of_tasks_is_known_better_than_each():
    rng = np.random.default_rng(2)
    tasks = [rng.normal(0.5, 0.2, (2, n)) for n in (200, 300, 400, 500)]
    found = [paired.difference(list(a), list(b), "nDCG@10") for a, b in tasks]
    mean = paired.mean(found)
    assert mean.value == pytest.approx(np.mean([one.value for one in found]))
    # Independent: variances add up.
    widths = np.array([one.high - one.low for one in found])
    assert mean.high - mean.low == pytest.approx(np.sqrt((widths**2).sum()) / 4, rel=0.1)


def run(*argv):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args(list(argv)))


@pytest.fixture(scope="module")
def output(demo, tmp_path_factory):
    """Of one run of two variants, which are the same."""
    folder = tmp_path_factory.mktemp("bench")
    os.symlink(demo, folder / "again")
    argv = ["--model", str(demo), str(folder / "again"), "--tasks", "Tatoeba-nov-eng"]
    assert run(*argv, "--dims", "256", "128", "--rounds", "1", "--output", str(folder / "out")) == 0
    return folder / "out"


def test_a_run_leaves_a_record_with_its_settings_and_raw_samples(output, demo):
    written = record.read(output / "record.json")
    assert written["settings"]["dims"] == [256, 128] and written["settings"]["rounds"] == 1
    assert written["tasks"]["Tatoeba-nov-eng"]["published"] == pytest.approx(0.566735)
    model = written["models"][0]
    assert model["name"] == "demo" and model["sha256"] == identity.sha256(demo)
    assert list(model["quality"]["Tatoeba-nov-eng"]) == ["256", "128"]
    measured = model["speed"][0]
    assert [one["tokens"] for one in measured["latency"]] == list(speed.LENGTHS)
    assert all(one["samples_s"] for one in measured["latency"] + measured["batches"])
    assert 20 < measured["memory_mb"]["idle"] <= measured["memory_mb"]["load_peak"] < 4000
    assert not (output / "unfinished.jsonl").exists()


def test_the_report_is_made_from_the_record(output):
    written = record.read(output / "record.json")
    text = report.markdown(report.Merged([written]))
    assert text in (output / "report.md").read_text()
    score = written["models"][0]["quality"]["Tatoeba-nov-eng"]["256"]["score"]
    assert f"{100 * score:.2f}" in text and "56.67" in text
    # The two variants are the same files.
    assert "+0.00 [+0.00, +0.00] =" in text


def test_a_readmes_table_changes_with_its_record_and_only_with_it(output, tmp_path):
    written = record.read(output / "record.json")
    text = "<!-- generated: quality record.json Tatoeba-nov-eng -->\n<!-- end -->\n"
    (tmp_path / "record.json").write_text(json.dumps(written))
    made = readme.regenerated(text, tmp_path)
    score = written["models"][0]["quality"]["Tatoeba-nov-eng"]["256"]
    assert f"{100 * score['score']:.2f}" in made and "2 differences to demo" in made
    assert readme.regenerated(made, tmp_path) == made
    score["score"] += 0.01
    (tmp_path / "record.json").write_text(json.dumps(written))
    assert readme.regenerated(made, tmp_path) != made


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("speed record.json", "marker of `quality` or `engines`, got 'speed'"),
        ("quality record.json STS99", "no task STS99"),
        ("engines record.json", "schema compare 1, got 2"),
        ("quality absent.json", "cannot read .*absent.json"),
    ],
)
def test_a_readmes_marker_that_names_nothing_known_is_an_error(output, marker, message):
    with pytest.raises(EmbeddingGemmaError, match=message):
        readme.regenerated(f"<!-- generated: {marker} -->\n<!-- end -->", output)


def test_records_of_two_machines_are_compared_with_the_machine_named(output, tmp_path, capsys):
    other = record.read(output / "record.json")
    other["machine"]["chip"] = "another chip"
    other["settings"]["dims"] = [128]
    for model in other["models"]:
        model["quality"]["Tatoeba-nov-eng"].pop("256")
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert run("report", str(output / "record.json"), str(tmp_path / "other.json")) == 0
    printed = capsys.readouterr().out
    assert "demo (A)" in printed and "demo (B)" in printed and "another chip" in printed


def test_a_record_of_another_schema_is_refused(tmp_path):
    (tmp_path / "old.json").write_text('{"schema": 1}')
    with pytest.raises(EmbeddingGemmaError, match="schema 2, got 1"):
        record.read(tmp_path / "old.json")
    with pytest.raises(EmbeddingGemmaError, match="cannot read"):
        record.read(tmp_path / "none.json")


def test_speed_is_measured_on_real_text_of_the_asked_length(demo):
    model = EmbeddingGemma(demo)
    for length in speed.LENGTHS:
        tokens = model.count_tokens([speed.text_of(model, length, speed.english())])[0]
        assert 0.9 * length <= tokens <= length
    assert speed.english()[:64] != speed.english(1)[:64]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_stopped(demo, tmp_path, how):
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "mlx_embeddinggemma", "bench", "--model", str(demo), "--rounds", "0"]
    argv += ["--tasks", "Tatoeba-nov-eng", "STSBenchmark-captions", "--dims", "128"]
    argv += ["--output", str(out)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = out / "unfinished.jsonl"
    while not (journal.exists() and len(journal.read_text().splitlines()) == 2):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(how)
    printed, said = process.communicate()
    assert printed == "" and not list(out.glob("re*"))
    if how == signal.SIGINT:
        assert process.returncode == 130 and "the same command goes on from here" in said
    first = journal.read_text().splitlines()[1]
    with journal.open("a") as file:
        file.write('["quality half-writ')
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on with 1 finished steps" in done.stderr
    quality = record.read(out / "record.json")["models"][0]["quality"]
    assert quality["Tatoeba-nov-eng"] == json.loads(first)[1]
    assert len(quality) == 2


@pytest.mark.parametrize("step", ["speed.measure", "score"])
def test_a_failed_step_leaves_no_number(demo, tmp_path, monkeypatch, capsys, step):
    """The second variant's step fails, when those of the first are measured."""
    os.symlink(demo, tmp_path / "again")
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 2:
            raise EmbeddingGemmaError("out of memory")
        return {} if step == "speed.measure" else {768: scores.Score(0.5, np.zeros(2))}

    monkeypatch.setattr(f"mlx_embeddinggemma.bench.record.{step}", fail)
    argv = ["--model", str(demo), str(tmp_path / "again"), "--tasks", "Tatoeba-nov-eng"]
    argv += ["--rounds", "1" if step == "speed.measure" else "0", "--output", str(tmp_path / "out")]
    with pytest.raises(EmbeddingGemmaError, match="out of memory"):
        run(*argv)
    assert len(calls) == 2 and capsys.readouterr().out == ""
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished.jsonl"]


def test_other_steps_are_not_taken_for_those_of_another_run(tmp_path):
    record.Journal(tmp_path / "j", {"models": ["a"]}).put("step", 1)
    assert "step" in record.Journal(tmp_path / "j", {"models": ["a"]})
    assert "step" not in record.Journal(tmp_path / "j", {"models": ["b"]})
