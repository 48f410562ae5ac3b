"""Training files: what is read, what is refused with its line, what a batch holds."""

import json

import numpy as np
import pytest
from mlx_embeddinggemma.convert.tuning import read_texts

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.finetune.batches import batch_at, make_batch, steps_per_epoch
from mlx_embeddinggemma.finetune.data import read
from mlx_embeddinggemma.finetune.mining import read_corpus
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


def table(path, text, prompts=PROMPTS):
    path.write_text(text)
    return read(path, prompts)


PAIR = (QUERY + "q", DOCUMENT + "p")


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "positive": "p"},
        {"query": "q", "answer": "p"},
        {"question": "q", "answer": "p"},
        {"query": "q", "passage": "p"},
        {"query": "q", "document": "p"},
        {"id": "5", "question": "q", "context": "p", "answers": {"text": ["a"], "answer_start": [0]}},
        {"query": "q", "pos": ["p"], "neg": []},
        {"query": "q", "pos": ["p"], "neg": [], "pos_scores": [1.0], "prompt": "search"},
        {"Query ": "q", "POSITIVE": "p"},
        {"anchor": "q", "positive": "p", "question": "another", "context": None},
        {"anchor": "q", "positive": "p", "title": None},
        {"anchor": "q", "positive": "p", "title": " "},
        {"anchor": "q", "positive": "p", "title": float("nan")},
    ],
)
def test_pairs_have_many_names(tmp_path, row):
    data = read(lines(tmp_path / "a.jsonl", row), PROMPTS)
    assert data.kind == "pairs" and [r.texts for r in data.rows] == [PAIR]


def test_lists_of_positives_are_rows_and_lists_of_negatives_are_theirs(tmp_path):
    row = {"query": "q", "pos": ["p", "o"], "neg": ["n", "m"], "negative_10": "y", "negative_2": "x"}
    rows = read(lines(tmp_path / "a.jsonl", row), PROMPTS).rows
    negatives = tuple(DOCUMENT + text for text in "nmxy")
    assert [r.texts for r in rows] == [(*PAIR, *negatives), (QUERY + "q", DOCUMENT + "o", *negatives)]


@pytest.mark.parametrize("score", ["score", "scores", "label", "labels", "similarity_score"])
@pytest.mark.parametrize("names", [("sentence1", "sentence2"), ("sentence_0", "sentence_1")])
def test_scored_pairs_have_many_names(tmp_path, names, score):
    data = read(lines(tmp_path / "a.jsonl", {names[0]: "a", names[1]: "b", score: 0.5}), PROMPTS)
    assert data.kind == "scored" and data.rows[0].score == 0.5


@pytest.mark.parametrize(
    ("labels", "read_as"),
    [((0, 1), "01"), ((0.0, 1.0), "01"), (("x", "y"), "xy"), ((True, False), ["True", "False"])],
)
def test_labels_are_names_or_numbers(tmp_path, labels, read_as):
    rows = [
        {"sentence": f"{i}", "labels": label, "label_text": "?"} for i, label in enumerate(labels * 2)
    ]
    data = read(lines(tmp_path / "a.jsonl", *rows), PROMPTS)
    assert data.kind == "labelled" and [row.label for row in data.rows] == [*read_as] * 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            "question,context,answer",
            "answer and context may each be the positive: remove one, or call it",
        ),
        ("query,question,positive", "query and question may each be the anchor"),
        (
            "sentence1,sentence2,label,score_2,similarity_score",
            "similarity_score and label may each be",
        ),
        ("query,document,score", "anchor, positive and score are columns of different kinds"),
        ("anchor,positive,label", "anchor, positive and label are columns of different kinds"),
        ("query,text", "text and query are columns of different kinds"),
        ("text,label,vector", "text, label and vector are columns of different kinds"),
        ("text,negative_1", "text and negative_1 are columns of different kinds"),
        ("text,score", "text and score are columns of different kinds"),
        ("sentence1,sentence2", "expected the columns .*; got sentence1, sentence2"),
        ("premise,hypothesis,label", "expected the columns .*; got premise, hypothesis, label"),
        (
            "query_id,query,positive_passages",
            "expected the columns .*; got query_id, query, positive_pass",
        ),
        ("title,body", "expected the columns anchor .*; got title, body"),
    ],
)
def test_columns_that_tell_no_kind_or_two_are_refused(tmp_path, columns, message):
    row = ",".join("x" for _ in columns.split(","))
    with pytest.raises(EmbeddingGemmaError, match=f"a.csv, line 2: {message}"):
        table(tmp_path / "a.csv", f"{columns}\n{row}\n")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.ndjson", "a.parquet", "a.csv.gz"])
def test_all_tables_read_alike(tmp_path, name):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"query": ["q1", "q2"], "answer": ["p\n1", "é" * 200_000]})
    path = tmp_path / name
    if "csv" in name:
        frame.to_csv(path, sep=";")
    elif name == "a.tsv":
        frame.to_csv(path, sep="\t", index=False)
    elif name == "a.parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=name == "a.ndjson", indent=2 * (name == "a.json"))
    texts = [row.texts for row in read(path, PROMPTS).rows]
    assert texts == [(QUERY + "q1", DOCUMENT + "p\n1"), (QUERY + "q2", DOCUMENT + "é" * 200_000)]


SCORED = '{"sentence1": "a", "sentence2": "b", "score": 1}'
GOOD_LINE = '{"anchor": "q", "positive": "p"}'
DEEP, LARGE = "[" * 100_000, "9" * 400


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (GOOD_LINE, DEEP, "not JSON: nested too deeply"),
        (GOOD_LINE, "9" * 9999, "not JSON: "),
        (GOOD_LINE, LARGE, "expected a JSON object, got 9"),
        (GOOD_LINE, '{"anchor": ["q"], "positive": "p"}', r"got \['q'\]"),
        (GOOD_LINE, '{"anchor": "q", "positive": [["p"]]}', "list of texts"),
        (GOOD_LINE, '{"anchor": "q", "positive": {"a": 1}}', "list of texts"),
        (GOOD_LINE, '{"anchor": null, "positive": "p"}', "no anchor"),
        (GOOD_LINE, '{"anchor": NaN, "positive": "p"}', "no anchor"),
        (GOOD_LINE, '{"anchor": "q", "positive": "p", "title": [1]}', "title to be"),
        (GOOD_LINE, '{"anchor": "q", "positive": "p", "task": [1]}', r"got \[1\]"),
        (GOOD_LINE, '{"anchor": "q", "positive": "p", "negative_1": 5}', "negative_1"),
        (GOOD_LINE, '{"anchor": "q", "pos": "[\'a\', \'b\']"}', "list of texts"),
        (GOOD_LINE, '{"anchor": "q", "positive": "p", "score": 1}', "score too"),
        (
            SCORED,
            f'{{"sentence1": "a", "sentence2": "b", "score": {LARGE}}}',
            "expected a number, got 9",
        ),
        (
            SCORED,
            '{"sentence1": "a", "sentence2": "b", "score": -Infinity}',
            "expected a number, got -inf",
        ),
        (
            SCORED,
            '{"sentence1": "a", "sentence2": "b", "score": 1e39}',
            r"expected a number, got 1e\+39",
        ),
        (SCORED, '{"sentence1": "a", "sentence2": "b", "score": [1]}', r"expected a number, got \[1\]"),
        (
            SCORED,
            '{"sentence1": "a", "sentence2": "b", "score": "inf"}',
            "expected a number, got 'inf'",
        ),
        (
            '{"text": "a", "label": "x"}',
            '{"text": "b", "label": Infinity}',
            "label to be a name .*, got inf",
        ),
        (
            '{"text": "a", "label": "x"}',
            '{"text": "b", "label": 0.5}',
            "label to be a name .*, got 0.5",
        ),
        ('{"text": "a", "label": "x"}', '{"text": "b", "label": ["x"]}', "label to be a name"),
        ('{"text": "a", "label": "x"}', '{"text": "b", "label": " "}', "label to be a name"),
        ('{"text": "a", "label": "x"}', '{"text": "b", "label": null}', "no label"),
        (
            '{"text": "a", "vector": [1]}',
            f'{{"text": "b", "vector": [{LARGE}]}}',
            "expected a number, got 9",
        ),
        (
            '{"text": "a", "vector": [1]}',
            '{"text": "b", "vector": [null]}',
            "expected a number, got None",
        ),
        (
            '{"text": "a", "vector": [1]}',
            '{"text": "b", "vector": {"0": 1}}',
            "to be a list of numbers",
        ),
        (
            '{"text": "a", "vector": [1]}',
            '{"text": "b", "vector": [1e30]}',
            "length that float32 can square",
        ),
        (
            '{"text": "a", "vector": [1]}',
            '{"text": "b", "vector": [1e-50]}',
            "length that float32 can squ",
        ),
    ],
)
def test_a_row_at_the_edge_is_a_bad_row_with_its_line(tmp_path, good, bad, message):
    (tmp_path / "a.jsonl").write_text(f"{good}\n{bad}\n{good}\n")
    with pytest.raises(
        EmbeddingGemmaError, match=f"a.jsonl has 1 bad row:\n  line 2: .*{message}"
    ) as raised:
        read(tmp_path / "a.jsonl", PROMPTS)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("word", ["None", "nan", "NaN", "null", "NA", "<NA>", ""])
def test_a_missing_value_of_csv_is_no_word(tmp_path, word):
    with pytest.raises(EmbeddingGemmaError, match="line 3: no positive"):
        table(tmp_path / "a.csv", f"anchor,positive\nq,p\nr,{word}\n")


def test_a_column_that_is_empty_in_the_first_row_counts(tmp_path):
    with pytest.raises(EmbeddingGemmaError, match="1 bad row:\n  line 2: no label"):
        table(tmp_path / "a.csv", "text,label\na,\nb,x\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.txt", "expected a .csv, .*, got .*a.txt"),
        ("none.csv", "cannot read .*: No such file"),
        ("binary.csv", "binary.csv is binary"),
        ("folder.csv", "cannot read .*: Is a directory"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, name, message):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "binary.csv").write_bytes(b"\0\1\2")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(EmbeddingGemmaError, match=message):
        read(tmp_path / name, PROMPTS)


def test_a_corpus_is_lines_or_a_table_with_titles(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\ntwo\x0b\x85three\n".encode())
    assert read_corpus(tmp_path / "a.txt", "> ") == ["> one", "> two\x0b\x85three"]
    (tmp_path / "a.tsv").write_text("_id\ttitle\ttext\n1\tT\tone\n2\t\ttwo\n")
    assert read_corpus(tmp_path / "a.tsv", DOCUMENT) == ["title: T | text: one", DOCUMENT + "two"]
    for text in ('{"text": null}', '{"body": "x"}', '{"text": ["x"]}', "[" * 100_000):
        (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + text)
        with pytest.raises(EmbeddingGemmaError, match="a.jsonl, line 2: "):
            read_corpus(tmp_path / "a.jsonl", DOCUMENT)


def test_calibration_texts_are_lines_of_any_encoding(tmp_path):
    (tmp_path / "a.txt").write_text(
        "\r\n".join(f"text {i} \x0b é" for i in range(40)), encoding="utf-16"
    )
    assert read_texts(tmp_path / "a.txt")[39] == "text 39 \x0b é"
