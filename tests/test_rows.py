"""Tables, row by row: what pandas reads of the same file, with the lines where rows begin."""

import csv
import gzip
import io
import json
import math
import tracemalloc

import pytest

from mlx_embeddinggemma.embed import _texts_of
from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.rows import kind_of, quoted, read_rows

CSV = {
    "plain": "a,b\n1,x\n2,y\n",
    "quotes, commas, line ends": 'a,b\n"1, one","x\ny"\n"say ""hi""","p\r\nq"\n',
    "carriage returns": "a,b\r1,x\r2,y\r",
    "semicolons": "a;b\n1,5;x, y\n2;z\n",
    "tabs": "a\tb\n1\tx;y\n2\tz\n",
    "bars": "a|b\n1|x\n",
    "one column": "a\nx\ny\n",
    "blank lines": "\n\na,b\n\n1,x\n  \t \n2,y",
    "blank lines of one column": 'a\nx\n\n  \n""\ny\n',
    "short rows": "a,b,c\n1\n2,x\n",
    "missing": "a,b\nNA,x\n,nan\nNone,null\n<NA>,N/A\n",
    "a byte order mark": "\ufeffa,b\n1,é\n",
    "spaces kept": "a,b\n x , y\n",
    "line separators within": "a,b\n1\x0b\x85\u2028,x\x1c\n",
    "a long field": "a,b\n1," + "x" * 200_000 + "\n",
}


def columns(path):
    return [row for _, row in read_rows(path)]


@pytest.mark.parametrize("name", CSV)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_csv_is_read_as_pandas_reads_it(tmp_path, name, pack):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / f"a.csv{'.gz' if pack is gzip.compress else ''}"
    path.write_bytes(pack(CSV[name].encode()))
    delimiter = {"semicolons": ";", "tabs": "\t", "bars": "|"}.get(name, ",")
    expected = pandas.read_csv(path, sep=delimiter, dtype=str, encoding="utf-8-sig").to_dict("records")
    expected = [{k: v if isinstance(v, str) else None for k, v in row.items()} for row in expected]
    before = csv.field_size_limit()
    assert columns(path) == expected
    assert csv.field_size_limit() == before


def test_excels_line_names_the_separator(tmp_path):
    (tmp_path / "a.csv").write_bytes("sep=;\r\nid;text, and more\r\n1;x\r\n".encode("utf-16"))
    assert list(read_rows(tmp_path / "a.csv")) == [("line 3", {"id": "1", "text, and more": "x"})]


def test_rows_are_where_they_begin(tmp_path):
    (tmp_path / "a.csv").write_text('\na,b\n"x\ny",1\n\nz,2\n1,2,3\nw,3\n')
    rows = dict(read_rows(tmp_path / "a.csv"))
    assert [*rows] == ["line 3", "line 6", "line 7", "line 8"]
    assert str(rows["line 7"]) == "expected 2 columns, as in the header, got 3"


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ('a,b\n1,"x\ny\n', "line 2", "not CSV: a quote opens and never closes"),
        ('a,b\n1,x\n2,"x" y\n', "line 3", "not CSV: ',' expected after"),
        ("a,b,a\n1,2,3\n", "line 1", "two columns are called 'a'"),
    ],
)
def test_faults_of_csv_are_told(tmp_path, text, where, message):
    (tmp_path / "a.csv").write_text(text)
    place, fault = list(read_rows(tmp_path / "a.csv"))[-1]
    assert place == where and message in str(fault)


ROWS = [{"text": "a", "n": 1}, {"text": None, "list": ["x", "é\n"]}, {"text": "[c"}]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSON.GZ"])
@pytest.mark.parametrize("indent", [None, 1, "\t"])
def test_json_arrays_are_read_as_json_reads_them(tmp_path, suffix, indent):
    text = "\n" + json.dumps(ROWS, indent=indent) + "\n"
    pack = gzip.compress if suffix.endswith("GZ") else bytes
    (tmp_path / f"a{suffix}").write_bytes(pack(text.encode()))
    assert columns(tmp_path / f"a{suffix}") == ROWS


def test_elements_of_an_array_have_their_lines(tmp_path):
    (tmp_path / "a.json").write_text('[\n{"a": 1},\n\n{"a":\n 2}, 5,\r\n{"a": 3}]')
    rows = list(read_rows(tmp_path / "a.json"))
    assert [where for where, _ in rows] == ["line 2", "line 4", "line 5", "line 6"]
    assert str(rows[2][1]) == "expected a JSON object, got 5"


@pytest.mark.parametrize(
    "text", ["[", "[{}", '[{"a": 1},]', "[{}] x", "[{} {}]", "[{}\n{}", "[" * 100_000, '[{"a": tru}]']
)
def test_a_broken_array_is_told(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert str(columns(tmp_path / "a.json")[-1]).startswith("not JSON: ")


def test_an_empty_array_and_an_empty_file_have_no_rows(tmp_path):
    for name, text in (("a.json", " [ ] \n"), ("b.csv", ""), ("c.jsonl", "\n\n"), ("d.tsv", "a\tb\n")):
        (tmp_path / name).write_text(text)
        assert columns(tmp_path / name) == []


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "nonsense", "[1]", '"text"', "{", '{"a": 1} {}'],
)
def test_a_bad_line_is_one_bad_row(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'{{"a": 1}}\n{line}\n\n{{"a": 2}}\n')
    rows = list(read_rows(tmp_path / "a.jsonl"))
    assert [where for where, _ in rows] == ["line 1", "line 2", "line 4"]
    assert isinstance(rows[1][1], EmbeddingGemmaError) and len(str(rows[1][1])) < 160


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_parquet_is_read_as_it_was_written(tmp_path, pack):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"text": ["a", None, "c"] * 700, "pos": [["x"], [], None] * 700})
    frame["kind"] = pandas.Categorical(["p", "q", "p"] * 700)
    file = io.BytesIO()
    frame.to_parquet(file)
    path = tmp_path / ("a.parquet.gz" if pack is gzip.compress else "a.parquet")
    path.write_bytes(pack(file.getvalue()))
    rows = list(read_rows(path))
    assert rows[1] == ("row 2", {"text": None, "pos": [], "kind": "q"}) and len(rows) == 2100
    path.write_bytes(pack(b"PAR1 nonsense PAR1"))
    with pytest.raises(EmbeddingGemmaError, match="is not parquet, or is damaged"):
        list(read_rows(path))


def test_what_a_file_is_by_its_name():
    assert [kind_of(n) for n in ("x.csv", "x.CSV.gz", "a.b.TSV", "x.ndjson")] == [
        ".csv", ".csv", ".tsv", ".ndjson",
    ]  # fmt: skip
    assert [kind_of(n) for n in ("x.txt", "x.gz", "csv", "x.csv.zip", "-", "")] == [None] * 6


def test_a_table_takes_little_memory(tmp_path):
    with (tmp_path / "a.csv").open("w") as file:
        file.write("id,text\n" + "1,a text of some length\n" * 300_000)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(tmp_path / "a.csv")) == 300_000
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "value", ["x" * 10**6, 10**400, [[[[["deep"]]]]] * 100, {"a": "b" * 999}, math.nan]
)
def test_a_quoted_value_is_short(value):
    assert len(quoted(value)) < 160


def texts(path, column=None):
    with _texts_of(str(path), column) as found:
        return list(found)


def test_the_only_column_of_text_is_chosen_and_said(tmp_path):
    (tmp_path / "a.csv").write_text("id,words,score\n1,first,0.5\n2,second,\n")
    with pytest.warns(UserWarning, match="a.csv: the texts are those of the column words"):
        assert texts(tmp_path / "a.csv") == ["first", "second"]
    assert texts(tmp_path / "a.csv", "id") == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "text", "column", "message"),
    [
        (
            "a.csv",
            "title,text\na,b\n",
            None,
            "several columns of text: title, text; choose with --column",
        ),
        ("a.csv", "a,b\n1,2\n", None, "no column of text: a, b; choose with --column"),
        ("a.csv", "a,b\n1,2\n", "c", "has no column c, but a, b"),
        ("a.csv", "id,text\n1,x\n2,None\n", "text", "line 3: no text in the column 'text'"),
        ("a.csv", "id,text\n1,x\n2,nan\n", "text", "line 3: no text in the column 'text'"),
        ("a.csv", "id,text\n1,x\n2\n", "text", "line 3: no text in the column 'text'"),
        ("a.jsonl", '{"text": "x"}\n{"text": null}\n', "text", "line 2: no text in the column 'text'"),
        ("a.jsonl", '{"text": "x"}\n{"body": "x"}\n', "text", "line 2: no text in the column 'text'"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": NaN}\n',
            "text",
            "line 2: expected 'text' to be a text, got nan",
        ),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": ["y"]}\n',
            "text",
            r"line 2: expected 'text' .* got \['y'\]",
        ),
        ("a.json", '[{"text": "x"}, 7]', "text", "line 1: expected a JSON object, got 7"),
    ],
)
def test_a_text_that_is_missing_is_told_by_its_line(tmp_path, name, text, column, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(EmbeddingGemmaError, match=message):
        texts(tmp_path / name, column)


def test_strings_that_say_none_are_strings_where_there_is_a_null(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "None"}\n{"text": ""}\n')
    assert texts(tmp_path / "a.jsonl", "text") == ["None", ""]


def test_lines_are_kept_each_one(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\n\r\n  third \r\n\r\n")
    assert texts(tmp_path / "a.txt") == ["first", "", "  third ", ""]
