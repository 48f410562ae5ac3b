"""What counts as texts and titles: real containers of the libraries that people keep them in."""

import datetime
import decimal
import tracemalloc
import types

import numpy as np
import pytest
from vectors import assert_near

from mlx_embeddinggemma import EmbeddingGemma, EmbeddingGemmaError

TEXTS = ["the one", "the other", "", "é 日本語 🎉"]


@pytest.fixture(scope="module")
def model(tiny) -> EmbeddingGemma:
    return EmbeddingGemma(tiny)


@pytest.fixture(scope="module")
def expected(model) -> np.ndarray:
    return model.encode(TEXTS)


def pandas() -> types.ModuleType:
    return pytest.importorskip("pandas")


def polars() -> types.ModuleType:
    return pytest.importorskip("polars")


def pyarrow() -> types.ModuleType:
    return pytest.importorskip("pyarrow")


def datasets() -> types.ModuleType:
    return pytest.importorskip("datasets")


CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "generator": iter,
    "keys of a dict": lambda texts: dict.fromkeys(texts).keys(),
    "values of a dict": lambda texts: dict(enumerate(texts)).values(),
    "numpy": np.array,
    "numpy objects": lambda texts: np.array(texts, object),
    "numpy strings in a list": lambda texts: list(np.array(texts)),
    "pandas": lambda texts: pandas().Series(texts),
    "pandas strings": lambda texts: pandas().Series(texts, dtype="string"),
    "pandas categories": lambda texts: pandas().Series(texts, dtype="category"),
    "pandas, another index": lambda texts: pandas().Series(texts, index=[9, 7, 5, 3]),
    "pandas index": lambda texts: pandas().Index(texts),
    "pandas column": lambda texts: pandas().DataFrame({"text": texts})["text"],
    "pyarrow": lambda texts: pyarrow().array(texts),
    "pyarrow large": lambda texts: pyarrow().array(texts, "large_string"),
    "pyarrow view": lambda texts: pyarrow().array(texts, "string_view"),
    "pyarrow dictionary": lambda texts: pyarrow().array(texts).dictionary_encode(),
    "pyarrow chunks": lambda texts: pyarrow().chunked_array([texts[:1], texts[1:]]),
    "pyarrow column": lambda texts: pyarrow().table({"text": texts})["text"],
    "pyarrow scalars": lambda texts: list(pyarrow().array(texts)),
    "pandas on pyarrow": lambda texts: pyarrow() and pandas().Series(texts, dtype="string[pyarrow]"),
    "polars": lambda texts: polars().Series(texts),
    "polars column": lambda texts: polars().DataFrame({"text": texts})["text"],
    "datasets column": lambda texts: datasets().Dataset.from_dict({"text": texts})["text"],
    "datasets slice": lambda texts: datasets().Dataset.from_dict({"text": texts})[:]["text"],
    "lines": lambda texts: map(str.strip, texts),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_texts_come_in_any_of_these(model, expected, container):
    def fill(texts):
        return CONTAINERS[container](texts)

    assert_near(model.encode(fill(TEXTS)), expected)
    assert model.tokenize(fill(TEXTS)) == model.tokenize(TEXTS)
    assert model.count_tokens(fill(TEXTS)) == model.count_tokens(TEXTS)
    titled = model.encode_document(fill(TEXTS), titles=fill(["A", "B", "", "C"]))
    assert_near(titled, model.encode_document(TEXTS, titles=["A", "B", None, "C"]))


@pytest.mark.parametrize("text", ["the one", np.str_("the one"), type("Text", (str,), {})("the one")])
def test_one_string_is_one_text(model, expected, text):
    assert_near(model.encode(text), expected[0])
    assert model.tokenize(text) == model.tokenize(["the one"])[0]
    assert model.count_tokens(text) == len(model.tokenize(text))


NO_TEXTS = {
    "dict": lambda: ({"a": "b"}, r"got a dict: pass one of its values"),
    "set": lambda: ({"a", "b"}, r"got a set, which has no order: pass sorted\(texts\)"),
    "frozenset": lambda: (frozenset("ab"), "got a frozenset, which has no order"),
    "bytes": lambda: (b"abc", r'got bytes: pass texts.decode\("utf-8"\)'),
    "bytearray": lambda: (bytearray(b"abc"), "got bytearray"),
    "number": lambda: (3, "got int"),
    "nan": lambda: (float("nan"), "got float"),
    "path": lambda: (__import__("pathlib").Path("a"), "got PosixPath"),
    "array of no dimension": lambda: (np.array("a"), "got ndarray"),
    "function": lambda: (len, "got builtin_function_or_method"),
    "pandas table": lambda: (
        pandas().DataFrame({"text": ["a"]}),
        r"DataFrame: pass one of",
    ),
    "pandas groups": lambda: (
        pandas().DataFrame({"text": ["a"], "b": [1]}).groupby("b")["text"],
        "text 0: expected a string, got tuple",
    ),
    "pyarrow table": lambda: (
        pyarrow().table({"text": ["a"]}),
        r'Table: .* texts\["NAME"\]',
    ),
    "pyarrow batch": lambda: (
        pyarrow().record_batch({"text": ["a"]}),
        "RecordBatch: pass one of its columns",
    ),
    "polars table": lambda: (
        polars().DataFrame({"text": ["a"]}),
        "DataFrame: pass one of",
    ),
    "polars lazy": lambda: (
        polars().LazyFrame({"text": ["a"]}),
        "LazyFrame: pass one of",
    ),
    "datasets": lambda: (
        datasets().Dataset.from_dict({"text": ["a"]}),
        "Dataset: pass one of its columns",
    ),
    "datasets streamed": lambda: (
        datasets().Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(),
        "IterableDataset: pass one of its columns",
    ),
    "datasets by split": lambda: (
        datasets().DatasetDict({"train": datasets().Dataset.from_dict({"text": ["a"]})}),
        "DatasetDict: pass one of its values",
    ),
    "nested": lambda: ([["a", "b"], ["c", "d"]], "text 0: expected a string, got list"),
    "pairs": lambda: ([("query", "document")], "text 0: expected a string, got tuple"),
    "dicts": lambda: ([{"text": "a"}], "text 0: expected a string, got dict"),
    "array of rows": lambda: (np.array([["a", "b"]]), "text 0: expected a string, got ndarray"),
    "array of bytes": lambda: (np.array([b"a"]), "text 0: expected a string, got bytes_"),
    "numbers": lambda: (np.arange(3), "text 0: expected a string, got int64"),
    "a null of pyarrow": lambda: (
        pyarrow().array(["a", None]),
        "text 1: expected a string, got a missing value",
    ),
    "numbers of pyarrow": lambda: (pyarrow().array([1]), "text 0: .* got int"),
    "a null of pandas": lambda: (
        pandas().Series(["a", None], dtype="string"),
        "text 1: expected a string, got a missing value",
    ),
    "NaN": lambda: (["a", float("nan")], "text 1: expected a string, got a missing value"),
    "a token list": lambda: ([[2, 5, 1]], "text 0: expected a string, got list"),
}


@pytest.mark.parametrize("kind", NO_TEXTS)
def test_what_is_no_texts_says_what_to_pass(model, kind):
    texts, says = NO_TEXTS[kind]()
    calls = (
        model.encode,
        model.encode_query,
        model.encode_document,
        model.tokenize,
        model.count_tokens,
    )
    for call in calls:
        with pytest.raises(TypeError, match=says) as raised:
            call(texts)
        assert "\n" not in str(raised.value)
    with pytest.raises(TypeError, match=says):
        model.encode_document(texts, titles=iter("titles"))


MISSING = {
    "None": lambda: None,
    "NaN": lambda: float("nan"),
    "numpy's NaN": lambda: np.float32("nan"),
    "numpy's NaN of 64 bits": lambda: np.float64("nan"),
    "numpy's NaT": lambda: np.datetime64("NaT"),
    "numpy's NaT of a time": lambda: np.timedelta64("NaT"),
    "a decimal's NaN": lambda: decimal.Decimal("NaN"),
    "pandas' NA": lambda: pandas().NA,
    "pandas' NaT": lambda: pandas().NaT,
    "pyarrow's null": lambda: pyarrow().scalar(None, "string"),
    "an untyped null": lambda: pyarrow().scalar(None),
    "nothing": lambda: "",
    "blanks": lambda: " \t\n\u3000",
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_missing_title_is_no_title(model, kind):
    expected = model.encode(["title: Weather | text: a", "title: none | text: b"])
    mine = model.encode_document(["a", "b"], titles=["Weather", MISSING[kind]()])
    assert_near(mine, expected)
    if kind != "an untyped null" and kind != "pyarrow's null":
        assert_near(model.encode_document("b", titles=MISSING[kind]()), expected[1])


@pytest.mark.parametrize("missing", ["None", "NaN", "NA", "mixed"])
def test_missing_titles_of_a_column(model, missing):
    column = {
        "None": lambda: polars().Series(["Weather", None]),
        "NaN": lambda: pandas().Series(["Weather", np.nan]),
        "NA": lambda: pandas().Series(["Weather", None], dtype="string"),
        "mixed": lambda: pandas().Series(["Weather", pandas().NaT], dtype=object),
    }[missing]()
    expected = model.encode(["title: Weather | text: a", "title: none | text: b"])
    assert_near(model.encode_document(["a", "b"], titles=column), expected)


@pytest.mark.parametrize(
    "title",
    [0, 1, 2.5, True, b"x", ["x"], {"a": 1}, datetime.date(2026, 1, 1), np.int64(3), np.inf, object()],
    ids=repr,
)
def test_another_title_is_a_type_error_with_its_index(model, title):
    with pytest.raises(TypeError, match=r"^title 1: expected a string, got \w+$"):
        model.encode_document(["a", "b"], titles=["x", title])
    with pytest.raises(TypeError, match=r"^title 1: expected a string, got \w+$"):
        model.encode_document(iter(["a", "b"]), titles=iter(["x", title]))


def test_titles_that_say_none_are_titles(model):
    """The words are words: only what is missing is."""
    for title in ("None", "nan", "NA", "0"):
        expected = model.encode(f"title: {title} | text: a")
        assert_near(model.encode_document("a", titles=title), expected)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("documents", "titles"), [(2, 1), (1, 2), (0, 1), (1, 0)])
def test_titles_are_as_many_as_documents(model, lazy, documents, titles):
    texts, names = ["a"] * documents, ["x"] * titles
    with pytest.raises(EmbeddingGemmaError, match="expected a title for each"):
        model.encode_document(iter(texts) if lazy else texts, titles=iter(names) if lazy else names)


def test_titles_of_a_single_document(model):
    assert model.encode_document("a", titles="x").shape == (768,)
    assert model.encode_document("a", titles=["x"]).shape == (768,)
    assert model.encode_document(["a"], titles="x").shape == (1, 768)
    with pytest.raises(EmbeddingGemmaError, match="expected a title for each"):
        model.encode_document("a", titles=["x", "y"])
    with pytest.raises(EmbeddingGemmaError, match="expected a title for each"):
        model.encode_document("a", titles=iter(["x", "y"]))


@pytest.mark.parametrize("titles", [{"x": 1}, {"x", "y"}, b"xy", 3], ids=repr)
def test_titles_come_in_what_keeps_their_order(model, titles):
    with pytest.raises(TypeError, match="as titles, got"):
        model.encode_document(["a", "b"], titles=titles)


@pytest.mark.parametrize("prompt", [{"prompt": ""}, {"prompt": "p: "}, {"prompt_name": "STS"}], ids=str)
def test_titles_that_a_prompt_has_no_place_for_are_left_out_aloud(model, prompt):
    with pytest.warns(UserWarning, match="^1 titles were left out: the prompt") as seen:
        mine = model.encode_document(["a", "b"], titles=["x", None], **prompt)
    assert seen[0].filename == __file__
    assert_near(mine, model.encode(["a", "b"], **prompt))


def test_a_prompt_of_ones_own_takes_titles(model):
    mine = model.encode_document("a", titles="x", prompt="title: none | body: ")
    assert_near(mine, model.encode("title: x | body: a"))


def test_generators_are_read_once_and_only_so_far(model, monkeypatch):
    monkeypatch.setattr("mlx_embeddinggemma.encoder.CHUNK", 10)
    read, seen = [], []
    network = model.network

    def texts():
        for i in range(35):
            read.append(i)
            yield f"text {i}"

    def watched(ids, lengths):
        seen.append(len(read))
        return network(ids, lengths)

    monkeypatch.setattr(model, "network", watched)
    for call in (model.encode, lambda it: model.encode_document(it, titles=("t" for _ in range(35)))):
        read.clear(), seen.clear()
        assert call(texts()).shape == (35, 768)
        assert read == list(range(35))
        assert seen[0] <= 10 and seen == sorted(seen)


def test_what_a_generator_raises_comes_through(model):
    def texts():
        yield "a"
        raise RuntimeError("the database went away")

    with pytest.raises(RuntimeError, match="the database went away"):
        model.encode(texts())


def test_memory_does_not_grow_with_the_texts_of_a_generator(model, monkeypatch):
    """100 MB of text go through; what they leave are their digests and vectors."""
    monkeypatch.setattr("mlx_embeddinggemma.encoder.CHUNK", 5)
    monkeypatch.setattr(model, "max_length", 8)
    monkeypatch.setattr(model._tokenizer, "encode", lambda texts: [[2, 5, 1] for _ in texts])
    model.encode(["warm up"])
    tracemalloc.start()
    try:
        model.encode_document(
            (str(i) * 250_000 for i in range(100)), titles=(str(i) for i in range(100))
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6
