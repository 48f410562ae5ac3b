"""Whatever wrote a text file, its text is read right, or the file is refused by its name."""

import gzip
import os
import tracemalloc
import warnings

import pytest

from mlx_embeddinggemma.errors import EmbeddingGemmaError
from mlx_embeddinggemma.text_files import open_lines, read_text, shown

TEXTS = {
    "cp1252": "Der Bäcker öffnet früh, l'été à Orléans: “¿Qué pasó?” für 5 €",
    "cp1250": "Gdańsk leży nad Bałtykiem, a w mieście jest piękny, długi pomost nad morzem i źródło. "
    "Żółta łódź wypłynęła wcześnie rano na połów śledzi, bo później miał być wiatr.",
    "cp1251": "Лошадь бежит по полю и ест траву, а кошка спит почти весь день.",
    "cp1253": "Η γάτα κοιμάται στο σαλόνι με τα μικρά της",  # all letters that are Western in cp1252
    "cp1256": "القطة تنام معظم اليوم والحصان يركض في الحقل ويأكل العشب",
    "cp874": "แมวนอนเกือบทั้งวัน และม้าวิ่งในทุ่งหญ้า",
    "cp932": "猫は一日のほとんどを眠って過ごし、馬は野原を走り、草を食べます。"
    "今日は天気がいいので、公園で子供たちが遊んでいます。",
    "gb18030": "猫一天中的大部分时间都在睡觉，马在田野里奔跑，吃草。天气很好，孩子们在公园里玩耍。",
    "cp949": "고양이는 하루의 대부분을 자고, 말은 들판을 달리며 풀을 먹습니다. 날씨가 좋습니다.",
}


def bytes_in(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("encoding", TEXTS)
def test_older_encodings_are_found_and_said(tmp_path, encoding):
    path = bytes_in(tmp_path / "old.txt", TEXTS[encoding].encode(encoding))
    with pytest.warns(UserWarning, match=f"old.txt is not UTF-8: read as {encoding}"):
        assert read_text(path) == TEXTS[encoding]


@pytest.mark.parametrize(
    "text", ["café", "naïve résumé", "Müller", "¿Qué?", "25 m² – 1º", "Ångström", "10 µm"]
)
def test_short_western_texts_are_no_chinese(tmp_path, text):
    path = bytes_in(tmp_path / "a.txt", text.encode("cp1252"))
    with pytest.warns(UserWarning, match="read as cp1252"):
        assert read_text(path) == text


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
        (b"\xff\xfe\0\0", "utf-32-le"),
        (b"\0\0\xfe\xff", "utf-32-be"),
        (b"", "utf-8"),
        (b"", "utf-16-le"),
        (b"", "utf-16-be"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_marks_are_believed_and_no_part_of_the_text(tmp_path, mark, encoding, pack):
    text = "A first line\nand a second, with é and 猫\n"
    path = bytes_in(tmp_path / "a.txt", pack(mark + text.encode(encoding)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_text(path) == text
    with open_lines(path) as lines:
        assert "".join(lines) == text


def test_only_three_ends_end_a_line(tmp_path):
    inside = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    path = bytes_in(tmp_path / "a.txt", f"a{inside}b\nc\r\nd\re\n\nf".encode())
    with open_lines(path) as lines:
        assert list(lines) == [f"a{inside}b\n", "c\n", "d\n", "e\n", "\n", "f"]
    with open_lines(path, newline="") as lines:
        assert list(lines) == [f"a{inside}b\n", "c\r\n", "d\r", "e\n", "\n", "f"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\0b", "is binary"),
        (b"text\n" * 300_000 + b"\0", "is binary"),
        (bytes(range(256)) * 4, "is binary"),
        (bytes(range(1, 256)) * 4, "is binary"),
        (b"%PDF-1.7 \xe9", "is a PDF"),
        (b"PK\x03\x04 docx", "is a zip archive or an Office document"),
        (b"PAR1 ...", "is parquet: name it .parquet"),
        (b"\xff\xfea", "is not whole utf-16 text"),
        (b"\xff\xfe\0\xd8a\0", "is not whole utf-16 text"),
        (gzip.compress(b"text" * 100)[:-9], "is a damaged gzip file"),
        (gzip.compress(b"text" * 100)[:20] + b"x" * 30, "is a damaged gzip file"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, data, message):
    path = bytes_in(tmp_path / "a.txt", data)
    with pytest.raises(EmbeddingGemmaError, match=f"a.txt {message}"):
        read_text(path)
    with pytest.raises(EmbeddingGemmaError, match=f"a.txt.* {message}"), open_lines(path) as lines:
        list(lines)


def test_damaged_utf8_stays_utf8(tmp_path):
    path = bytes_in(tmp_path / "a.txt", "fünf\nsüße Bäume\n".encode() + b"caf\xe9\n")
    with pytest.warns(UserWarning, match="1 byte that is not UTF-8, read as U\\+FFFD"):
        assert read_text(path) == "fünf\nsüße Bäume\ncaf\ufffd\n"
    with pytest.raises(EmbeddingGemmaError, match="line 3: expected UTF-8 text, got the byte 0xe9"):
        with open_lines(path) as lines:
            list(lines)


def test_devices_and_folders_are_no_files(tmp_path):
    with pytest.raises(EmbeddingGemmaError, match="/dev/zero is a device"):
        read_text("/dev/zero")
    with pytest.raises(IsADirectoryError):
        read_text(tmp_path)
    assert read_text(os.devnull) == ""


def test_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    bytes_in(tmp_path / "a.txt", b"mine")
    assert read_text("~/a.txt") == "mine"
    with pytest.raises(FileNotFoundError):
        read_text("~nosuchuser/a.txt")


def test_lines_of_a_large_file_take_little_memory(tmp_path):
    path = bytes_in(
        tmp_path / "a.txt.gz", gzip.compress("a line of some text é\n".encode() * 1_000_000, 1)
    )
    tracemalloc.start()
    with open_lines(path) as lines:
        assert sum(1 for _ in lines) == 1_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20  # the file is 23 MB


@pytest.mark.parametrize(
    ("name", "line"), [("a\nb", r"a\nb"), ("\udcff", r"\udcff"), ("\x1b[2J", r"\x1b[2J")]
)
def test_names_are_shown_on_one_line(name, line):
    assert shown(name) == line and shown("naïve 猫 👩‍👧") == "naïve 猫 👩‍👧"
