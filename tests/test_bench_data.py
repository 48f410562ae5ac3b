"""Bench data that cannot be scored is refused by file and line; what is scored gives finite numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlx_embeddinggemma.bench import cli, html, paired, record, report, scores, tasks

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError

KINDS = {
    "sts/T/test.default.jsonl": {"s1": "a", "s2": "b", "score": 1},
    "pair/T/test.default.jsonl": {"s1": "a", "s2": "b", "label": 1},
    "bitext/T/a-b.jsonl": {"s1": "a", "s2": "b"},
    "bitext/T/all.jsonl": {"eng_Latn": "a", "deu_Latn": "b"},
    "classification/T/train.x.jsonl": {"text": "a", "label": "l"},
    "classification/T/test.x.jsonl": {"text": "a", "label": "l"},
    "clustering/T/test.x.jsonl": {"text": "a", "label": "l"},
    "retrieval/T/x/corpus.jsonl": {"id": "c", "title": "t", "text": "a"},
    "retrieval/T/x/queries.jsonl": {"id": "q", "text": "a"},
    "retrieval/T/x/qrels.jsonl": {"query": "1", "doc": "1", "score": 1},
}
OTHERS = {"score": 0, "label": 0, "id": "1"}  # a second row that differs where it must


def good(path: str) -> list[dict]:
    """Two rows that can be scored."""
    row = KINDS[path]
    if path.endswith("qrels.jsonl"):
        return [row, row | {"doc": "c", "score": 2}]
    return [row, row | {key: value for key, value in OTHERS.items() if key in row}]


def write(folder: Path, path: str, lines: list[object]) -> Path:
    """A task of good files, one of them with these lines: values, or JSON as it stands."""
    for name in KINDS:
        if Path(name).parent == Path(path).parent and (Path(name).name != "all.jsonl" or name == path):
            rows = lines if name == path else good(name)
            if name != path and Path(path).name == "all.jsonl":
                continue
            text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    return folder / path


def refused(folder: Path, says: str) -> str:
    """The error of loading the folder's tasks: one short line."""
    with pytest.raises(EmbeddingGemmaError, match=says) as caught:
        tasks.load(sorted(set(tasks.known_names(folder)) - set(tasks.known_names())), folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


BAD = {
    "text": [None, 5, 1.5, True, ["a"], {"a": 1}],
    "name": [None, 1.5, ["a"], {"a": 1}],
    "number": [None, "1", "high", True, [1], 10**400],
}
KEYS = [
    (
        path,
        key,
        "number" if key == "score" else "name" if key in ("id", "query", "doc", "label") else "text",
    )
    for path, row in KINDS.items()
    for key in row
]


@pytest.mark.parametrize(("path", "key", "kind"), KEYS, ids=[f"{p} {k}" for p, k, _ in KEYS])
def test_a_value_of_another_kind_is_refused_with_its_line_and_column(tmp_path, path, key, kind):
    for value in BAD[kind]:
        if key == "title" and value is None:
            continue
        if path.startswith("pair") and value is True and key == "label":
            continue
        where = write(tmp_path, path, [*good(path), KINDS[path] | {key: value}])
        message = refused(tmp_path, rf"line 3: expected {key} \(")
        assert message.startswith(str(where)) and "None" not in message.partition(", got ")[0]


@pytest.mark.parametrize("path", KINDS)
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("5", "line 2: expected a JSON object"),
        ("[1, 2]", "line 2: expected a JSON object"),
        ("null", "line 2: expected a JSON object"),
        ("[" * 100_000, "line 2: expected a JSON object: nested too deeply"),
        ('{"a":' * 100_000, "line 2: expected a JSON object: nested too deeply"),
        ("9" * 5000, "line 2: expected a JSON object: Exceeds the limit"),
        ("NaN", "line 2: expected a JSON object: expected a finite number, got NaN"),
        ('{"x": Infinity}', "line 2: expected a JSON object: expected a finite number, got Infinity"),
        ('{"x": 1e999}', "line 2: expected a JSON object: expected a finite number, got 1e999"),
        ("{}", "line 2: expected a JSON object with"),
        ('{"s1": "' + "x" * 100_000 + '"}', "line 2: expected a JSON object with"),
        ("\udcff", "line 2: expected a JSON object: 'utf-8' codec"),
    ],
    ids=["5", "list", "null", "[[[", "{{{", "digits", "NaN", "inf", "1e999", "{}", "long", "latin-1"],
)
def test_a_line_that_is_no_row_is_refused_with_its_number(tmp_path, path, line, says):
    if path.endswith("all.jsonl") and line == "{}":
        says = "line 2: expected a JSON object with eng_Latn"
    write(tmp_path, path, [good(path)[0], line])
    refused(tmp_path, says)


def test_a_bitext_file_of_a_number_is_refused_when_names_are_listed(tmp_path):
    for line in ("5", "null", "[]", '"x"', "{}", '{"deu_Latn": "a"}', '{"eng_Latn": "a"}'):
        write(tmp_path, "bitext/T/a-b.jsonl", [line])
        with pytest.raises(EmbeddingGemmaError, match=r"a-b.jsonl, line 1: expected .* s1 and s2, or"):
            tasks.known_names(tmp_path)


NO_SCORE = [
    ("sts/T/test.default.jsonl", [{"score": 3}, {"score": 3}], "scores that differ, all 2 are 3.0"),
    ("sts/T/test.default.jsonl", [{}], "scores that differ, all 1 are 1.0"),
    ("pair/T/test.default.jsonl", [{}, {}], "labels that differ, all 2 are 1"),
    (
        "pair/T/test.default.jsonl",
        [{"label": 0}, {}, {"label": 5}],
        r"line 3: expected label \(1 or 0\), got 5",
    ),
    ("pair/T/test.default.jsonl", [{"label": 0}, {}, {"label": -1}], "got -1"),
    ("pair/T/test.default.jsonl", [{"label": 0}, {}, {"label": 0.5}], "got 0.5"),
    ("pair/T/test.default.jsonl", [{"label": 0}, {}, {"label": "1"}], "got '1'"),
    ("bitext/T/a-b.jsonl", [{}], "expected two rows or more"),
    ("classification/T/train.x.jsonl", [{}, {}], "train.x.jsonl: expected labels that differ, all 2"),
    ("clustering/T/test.x.jsonl", [{}, {}], "expected labels that differ"),
    (
        "retrieval/T/x/corpus.jsonl",
        [{}, {"id": "1"}, {"id": "c"}],
        "line 3: expected each id once, got 'c' twice",
    ),
    (
        "retrieval/T/x/corpus.jsonl",
        [{}, {"id": "1"}, {"id": 1}],
        "expected each id once, got '1' twice",
    ),
    (
        "retrieval/T/x/queries.jsonl",
        [{"id": "1"}, {"id": "1"}],
        "queries.jsonl, line 2: expected each id once",
    ),
    ("retrieval/T/x/qrels.jsonl", [{"score": 0}], "expected a score over 0, got none"),
    (
        "retrieval/T/x/qrels.jsonl",
        [{"score": -1}],
        r"line 1: expected score \(number of 0 or more\), got -1",
    ),
    ("retrieval/T/x/qrels.jsonl", [{}, {"score": 2}], "line 2: expected one score for .* got two"),
    ("retrieval/T/x/qrels.jsonl", [{}, {"doc": "z"}], "line 2: no query .* or no document 'z'"),
    ("retrieval/T/x/qrels.jsonl", [{}, {"query": "z"}], "line 2: no query 'z'"),
]


@pytest.mark.parametrize(("path", "changes", "says"), NO_SCORE)
def test_data_that_score_nothing_are_refused(tmp_path, path, changes, says):
    write(tmp_path, path, [KINDS[path] | change for change in changes])
    refused(tmp_path, says)


@pytest.mark.parametrize("path", KINDS)
def test_an_empty_file_is_refused(tmp_path, path):
    for content in ("", "\n", " \n\n"):
        where = write(tmp_path, path, [content])
        assert refused(tmp_path, "is empty").startswith(str(where))


@pytest.mark.parametrize("path", KINDS)
def test_the_good_files_load_with_blank_lines_a_mark_and_missing_titles(tmp_path, path):
    """A byte order mark and blank lines are no rows; a title may be null, blank or left out."""
    rows = [{key: value for key, value in row.items() if key != "title"} for row in good(path)]
    if path.endswith("corpus.jsonl"):
        rows[0]["title"] = None
    where = write(tmp_path, path, ["", *rows, ""])
    where.write_bytes(b"\xef\xbb\xbf" + where.read_bytes().replace(b"\n", b"\r\n"))
    names = sorted(set(tasks.known_names(tmp_path)) - set(tasks.known_names()))
    (task,) = tasks.load(names, tmp_path)
    assert not isinstance(task, tasks.Retrieval) or set(task.titles) <= {"", "t"}


def test_labels_may_be_numbers_and_true_or_false_is_alike_or_not(tmp_path):
    write(
        tmp_path,
        "pair/T/test.default.jsonl",
        [KINDS["pair/T/test.default.jsonl"] | {"label": x} for x in (True, 0.0)],
    )
    (task,) = tasks.load(["T"], tmp_path)
    assert task.gold == [1, 0] and {type(label) for label in task.gold} == {int}


def test_a_query_whose_answers_are_all_graded_0_scores_0_as_in_trec_eval():
    found = scores.ndcg_at_10(np.array([[0.9, 0.1], [0.1, 0.9]]), [{0: 0.0}, {1: 1.0}], ["a", "b"])
    assert found.tolist() == [0.0, 1.0]


def test_vectors_that_are_alike_have_no_rank_correlation(demo, tmp_path):
    rows = [{"s1": "a", "s2": "b", "score": score} for score in (0, 1, 2)]
    write(tmp_path, "sts/T/test.default.jsonl", rows)
    (task,) = tasks.load(["T"], tmp_path)
    with pytest.raises(EmbeddingGemmaError, match="T has no Spearman at 768 dimensions: all its simil"):
        scores.score(EmbeddingGemma(demo), task, [768])


def test_a_cut_without_direction_is_an_error():
    vectors = np.zeros((3, 4), np.float32)
    vectors[:, 3] = 1
    assert scores.cut(vectors, 4).shape == (3, 4)
    with pytest.raises(
        EmbeddingGemmaError, match="cut to 2 dimensions came out as NaN, infinite or zero"
    ):
        scores.cut(vectors, 2)


@pytest.mark.filterwarnings("error")
def test_resamplings_without_a_score_are_left_out_and_nothing_is_decided_by_nan():
    found = paired.difference([0.9, 0.1, 0.2], [0.8, 0.2, 0.1], "AP", [1, 0, 0])
    assert (
        np.isnan(found.resampled).any() and found.known and np.isfinite([found.low, found.high]).all()
    )
    nothing = paired.difference([0.5, 0.5], [0.5, 0.5], "Spearman", [0, 1])
    assert not nothing.known and nothing.verdict == "undecided"
    assert paired.mean([found, nothing]).verdict == "undecided"
    assert paired.Difference(np.nan, np.nan, np.nan).verdict == "undecided"


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny):
    """A record of one model and one small task."""
    folder = tmp_path_factory.mktemp("small")
    rows = [{"s1": "a" * i, "s2": "b c", "score": i} for i in range(1, 5)]
    write(folder / "data", "sts/T/test.default.jsonl", rows)
    return record.bench([str(tiny)], tasks=["T"], data=folder / "data", rounds=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_record_or_page_holds_nan(small, tmp_path, bad):
    broken = json.loads(json.dumps(small))
    broken["models"][0]["quality"]["T"]["768"]["score"] = bad
    with pytest.raises(EmbeddingGemmaError, match=r"NaN or infinity at models.0.mean.768"):
        html.page(report.Merged([broken]))
    (tmp_path / "r.json").write_text(json.dumps(broken))
    with pytest.raises(
        EmbeddingGemmaError, match="is not a record of `bench`: expected a finite number"
    ):
        record.read(tmp_path / "r.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(models=[]),
        lambda r: r.update(models=5),
        lambda r: r.pop("machine"),
        lambda r: r.update(tasks=[]),
        lambda r: r["models"][0].pop("name"),
        lambda r: r["models"][0].update(quality={"T": {"768": {"score": "high", "items": None}}}),
        lambda r: r["models"][0].update(quality={"T": {"x" * 900: {}}}),
        lambda r: r["models"][0].update(speed=[{}]),
        lambda r: r["models"].append(
            {
                "name": "b",
                "size_bytes": 1,
                "speed": [],
                "quality": {"T": {"768": {"score": 1, "items": [[1]] * 4}}},
            }
        ),
    ],
)
def test_a_record_with_parts_missing_is_one_line(small, tmp_path, change, capsys):
    broken = json.loads(json.dumps(small))
    change(broken)
    (tmp_path / "r.json").write_text(json.dumps(broken))
    import argparse

    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    args = parser.parse_args(["report", str(tmp_path / "r.json"), "--output", str(tmp_path / "out")])
    with pytest.raises(EmbeddingGemmaError) as caught:
        cli.run(args)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "line", ["5", "[]", '["a"]', '[["a"], 1]', "[" * 100_000, "NaN", '["step", NaN]', "\xff"]
)
def test_a_journals_damaged_line_is_a_step_to_do_again(tmp_path, line):
    record.Journal(tmp_path / "j", {"run": 1}).put("done", 1)
    with (tmp_path / "j").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    again = record.Journal(tmp_path / "j", {"run": 1})
    assert "done" in again and "step" not in again


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"models": "demo"}, TypeError, "expected models to be a list, got 'demo'"),
        ({"models": []}, EmbeddingGemmaError, "expected models to name one or more"),
        ({"models": [None]}, TypeError, "expected models to be a path"),
        ({"models": ["x" * 300]}, EmbeddingGemmaError, "models: .* name too long"),
        ({"models": ["~nosuchuser/x"]}, EmbeddingGemmaError, "models: there is no such user"),
        ({"models": ["a\0b"]}, EmbeddingGemmaError, "models: .* null byte"),
        ({"dims": "768"}, TypeError, "expected dims to be a list"),
        ({"dims": 768}, TypeError, "expected dims to be a list"),
        ({"dims": [True]}, TypeError, "expected dims to be a whole number, got True"),
        ({"dims": ["768"]}, TypeError, "expected dims to be a whole number"),
        ({"dims": [5]}, EmbeddingGemmaError, "not 5"),
        ({"dims": [-1]}, EmbeddingGemmaError, "expected dims from 1"),
        ({"dims": np.array([5, 6])}, EmbeddingGemmaError, "not 5, 6"),
        ({"rounds": -1}, EmbeddingGemmaError, "expected rounds from 0 to 1,000, got -1"),
        ({"rounds": 10**30}, EmbeddingGemmaError, "expected rounds from 0"),
        ({"rounds": 1.5}, TypeError, "expected rounds to be a whole number"),
        ({"rounds": True}, TypeError, "expected rounds to be a whole number"),
        ({"tasks": "T"}, TypeError, "expected tasks to be a list"),
        ({"tasks": [5]}, TypeError, "expected tasks to be a path"),
        ({"data": 5}, TypeError, "expected data to be a path"),
        ({"data": "x" * 300}, EmbeddingGemmaError, "data: .* name too long"),
        ({"data": "absent"}, EmbeddingGemmaError, "expected task files in .absent"),
        ({"output": "a\0b"}, EmbeddingGemmaError, "output: .* null byte"),
    ],
)
def test_an_argument_that_is_off_is_named(options, error, says):
    with pytest.raises(error, match=says) as caught:
        record.bench(**{"models": ["demo"], "tasks": ["RTE3-fr"], "rounds": 0} | options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
