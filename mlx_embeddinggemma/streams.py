"""Standard streams that end no command: of any encoding, closed, full, or with nobody at the end."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

ESCAPE = "json escape"  # for `errors=`: what an encoding lacks as JSON's \\uXXXX


@contextmanager
def lasting() -> Iterator[None]:
    """For the time of a command the standard streams take what they are given.

    Standard output escapes what its encoding lacks; where it is closed, writing fails as it should.
    Standard error, which tells how things go, never stops them.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    # In this order, so that those that are closed get their own numbers, and no other file does.
    sys.stdin = sys.stdin or _closed(os.O_WRONLY, "r")
    sys.stdout = sys.stdout or _closed(os.O_RDONLY, "w")
    if sys.stderr is None:
        sys.stderr = _Patient(open(os.devnull, "wb"), None)  # noqa: SIM115
    elif isinstance(sys.stderr, io.TextIOWrapper):  # and not what a test or a notebook put there
        sys.stderr = _Patient(sys.stderr.buffer, sys.stderr)
    errors = getattr(sys.stdout, "errors", "strict")
    _reconfigure(sys.stdout, ESCAPE)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
            _reconfigure(sys.stdout, errors)
        except OSError:  # was told; Python would tell it again when it ends
            _discard(sys.stdout)
        sys.stderr.flush()
        if sys.stderr is not before[2] and before[2] is not None:
            sys.stderr.detach()  # type: ignore[union-attr]
        sys.stdin, sys.stdout, sys.stderr = before


def stdout_bytes() -> BinaryIO:
    """Standard output for bytes of UTF-8, also where a notebook or a test put text of its own there."""
    return getattr(sys.stdout, "buffer", None) or cast(BinaryIO, _AsText())


class _AsText:
    def write(self, data: bytes) -> int:
        sys.stdout.write(data.decode())
        return len(data)

    def flush(self) -> None:
        sys.stdout.flush()


class _Patient(io.TextIOWrapper):
    """A stream that drops what it cannot write."""

    def __init__(self, file: Any, like: Any):
        encoding = getattr(like, "encoding", "utf-8")
        super().__init__(file, encoding, "backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _discard(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _discard(self)


def _closed(flags: int, mode: Any) -> io.TextIOWrapper:
    """In the place of a closed stream: "Bad file descriptor" when it is read or written."""
    raw: Any = io.FileIO(os.open(os.devnull, flags), mode)
    return io.TextIOWrapper(io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw))


def _reconfigure(stream: Any, errors: str) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=errors)


def _discard(stream: Any) -> None:
    """What is still to be written, and all that comes, goes nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """JSON's own escapes: what is printed stays legible, and JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)), error.end


codecs.register_error(ESCAPE, _escaped)
