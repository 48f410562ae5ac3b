"""Files of text, whoever wrote them, to the strings that they hold.

A byte order mark is believed. What is valid UTF-8 without one is UTF-8. The rest is older: its
bytes tell the encoding, and a warning says which. What is no text is refused.
"""

import gzip
import io
import os
import re
import stat
import warnings
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mlx_embeddinggemma.errors import EmbeddingGemmaError

BLOCK = 1 << 20  # bytes looked at together
GZIP = b"\x1f\x8b"
MARKS = {  # UTF-32's little-endian mark begins with UTF-16's
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
KNOWN_BINARY = {
    b"%PDF-": "a PDF: save its text",
    b"PK\x03\x04": "a zip archive or an Office document: save its text, or a table as CSV",
    b"PAR1": "parquet: name it .parquet",
    b"\xd0\xcf\x11\xe0": "an old Office document: save its text, or a table as CSV",
}
# What people's files are in; a detector that may answer anything finds Chinese in German.
ENCODINGS = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874"),
    *("koi8_r", "cp932", "euc_jp", "gb18030", "big5", "cp949"),
]
ACCENTED = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüŒœ"
SIGNS = "€‚„…†‡‰‹›‘’“”•–—™¡¢£¥§©ª«®°±²´µ·º»¼½¾¿×"
WESTERN = re.compile(f"[\0-\x7f\xa0{ACCENTED}{SIGNS}]*")
# Words of other scripts, read as Western ones; and letters of Polish and Romanian.
UNLIKELY = re.compile(rf"[{ACCENTED}]{{3}}|[^\W\d_][º¿¡][^\W\d_]")
CONTROLS = re.compile(rb"[\0-\x06\x0e-\x19\x1c-\x1f\x7f]")
KEPT = re.compile("[\udc80-\udcff]")  # how a byte that is not of its encoding is kept
UNSHOWN = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(text: object) -> str:
    """For one line of a terminal: control characters and odd bytes of file names are escaped."""
    return UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def read_text(path: str | Path) -> str:
    r"""A whole file, its line ends as "\n". Damaged bytes become U+FFFD, with a warning.

    Raises:
        EmbeddingGemmaError: it is not text.
        OSError: it cannot be read.
    """
    name = shown(path)
    with open_bytes(path) as raw:
        file = io.BytesIO(raw.read())
    encoding = find_encoding(file, name)
    with _wholly(encoding, name):
        text = file.read().decode(encoding, "surrogateescape")
    _no_nul(text, name)
    text, damaged = KEPT.subn("\ufffd", text)
    if damaged:
        what = "1 byte that is" if damaged == 1 else f"{damaged:,} bytes that are"
        warnings.warn(f"{name}: {what} not {_called(encoding)}, read as U+FFFD", stacklevel=2)
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def open_lines(path: str | Path, *, newline: str | None = None) -> Iterator[Iterator[str]]:
    r"""A file's lines, each with its end, one after the other: the file may be larger than memory.

    Only "\n", "\r\n" and "\r" end a line, as in editors and grep.

    Args:
        path: the file.
        newline: None makes every end a "\n"; "" leaves them as they are.

    Raises:
        EmbeddingGemmaError: it is not text; names the line where one is at fault.
        OSError: it cannot be read.
    """
    name = shown(path)
    with open_bytes(path) as file:
        once = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
        encoding = _marked(file) if once else find_encoding(file, name)
        with lines_of(file, encoding, name, newline=newline) as lines:
            yield lines


@contextmanager
def lines_of(
    file: BinaryIO,
    encoding: str | None = None,
    name: str = "standard input",
    *,
    newline: str | None = None,
) -> Iterator[Iterator[str]]:
    """The lines of a stream; without an encoding in UTF-8 or what its byte order mark says."""
    encoding = encoding or _marked(file)
    text = io.TextIOWrapper(file, encoding, "surrogateescape", newline)
    try:
        with _wholly(encoding, name):
            yield _checked(text, name)
    finally:
        text.detach()  # whoever opened the stream closes it


@contextmanager
def open_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """A file's bytes; of a gzip file, those that were compressed.

    Raises:
        EmbeddingGemmaError: no file (a folder, a device), or a damaged gzip file.
        OSError: it cannot be opened.
    """
    path = os.path.expanduser(path)
    with open(path, "rb") as file:
        kind = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or os.path.samefile(path, os.devnull)):
            raise EmbeddingGemmaError(f"{shown(path)} is a device, not a file")
        packed = file.peek(2)[:2] == GZIP
        try:
            yield gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[misc]
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise EmbeddingGemmaError(f"{shown(path)} is a damaged gzip file: {error}") from None


def find_encoding(file: BinaryIO, name: str) -> str:
    """The encoding of a file that can be read twice; leaves it at its start.

    Args:
        file: at its start.
        name: how messages call it.

    Raises:
        EmbeddingGemmaError: it is not text.
    """
    block = file.read(BLOCK)
    for start, what in KNOWN_BINARY.items():
        if block.startswith(start):
            raise EmbeddingGemmaError(f"{name} is {what}")
    encoding = _by_mark(block) or _without_mark(block)
    decoder = getincrementaldecoder("utf-8")()
    while not encoding:
        if b"\0" in block:
            raise EmbeddingGemmaError(f"{name} is binary, not text")
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError:
            encoding = _guess(block, name)
        if not block:
            break
        block = file.read(BLOCK)
    file.seek(0)
    return encoding or "utf-8"


def _by_mark(start: bytes) -> str | None:
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), None)


def _marked(file: Any) -> str:
    return _by_mark(file.peek(4)) or "utf-8"


def _without_mark(start: bytes) -> str | None:
    """UTF-16 as some programs write it: every second byte of Western text is a zero."""
    for low, high, encoding in ((0, 1, "utf-16-le"), (1, 0, "utf-16-be")):
        letters, zeros = start[low::2], start[high::2]
        even = len(letters) == len(zeros)
        if even and zeros.count(0) * 2 > len(zeros) and not CONTROLS.search(letters):
            return encoding
    return None


def _guess(block: bytes, name: str) -> str:
    """The encoding of bytes that are not UTF-8.

    Western text is told by its letters: of short texts a detector makes Korean. The other
    encodings are told apart by charset-normalizer.
    """
    text = block.decode("utf-8", "ignore")
    whole = sum(not c.isascii() for c in text)
    if whole > len(block) - len(text.encode()):
        return "utf-8"  # with damage: whole characters outnumber the bytes that are none
    if len(CONTROLS.findall(block)) * 100 > len(block):
        raise EmbeddingGemmaError(f"{name} is binary, not text")
    western = block.decode("cp1252", "replace")
    encoding: str | None = "cp1252"
    if not WESTERN.fullmatch(western) or UNLIKELY.search(western):
        from charset_normalizer import from_bytes

        best = from_bytes(block, cp_isolation=ENCODINGS).best()
        encoding = best.encoding if best else None
    if encoding is None:
        raise EmbeddingGemmaError(f"{name} is not UTF-8, nor in another encoding that is known")
    warnings.warn(f"{name} is not UTF-8: read as {encoding}", stacklevel=3)
    return encoding


@contextmanager
def _wholly(encoding: str, name: str) -> Iterator[None]:
    """UTF-16 and UTF-32 cannot keep a wrong byte, and fail as a whole."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise EmbeddingGemmaError(f"{name} is not whole {encoding} text: {error.reason}") from None


def _checked(lines: io.TextIOWrapper, name: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        _no_nul(line, f"{name}, line {number},")
        if not line.isascii() and (wrong := KEPT.search(line)):
            raise EmbeddingGemmaError(
                f"{name}, line {number}: expected {_called(lines.encoding)} text, got the byte "
                f"0x{ord(wrong[0]) - 0xDC00:02x}"
            )
        yield line


def _called(encoding: str) -> str:
    return encoding.upper().removesuffix("-SIG")


def _no_nul(text: str, where: str) -> None:
    if "\0" in text:
        raise EmbeddingGemmaError(f"{where} is binary, not text")
