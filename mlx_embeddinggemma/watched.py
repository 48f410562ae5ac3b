"""Files that are read as long as an encoder lives: the same, or the encoder ends.

A file may be touched, written again with the same bytes, or replaced by a copy: nothing that was read
has changed then. So a changed time or inode is no more than a reason to look: whatever was read so
far is read again and compared by checksum. If it is the same, the encoder is what the new file would
give, down to the rows that nobody has read yet; if not, it must not mix the two.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from mlx_embeddinggemma.errors import EmbeddingGemmaError

PIECE = 2**22  # bytes of a file in memory at a time


class Watched:
    """A file and the checksums of what was read from it.

    Args:
        path: of the file.
        status: of the file when its first bytes were read.
    """

    def __init__(self, path: Path, status: os.stat_result):
        self.path = path
        self._stamp = _stamp(status)
        self._parts: dict[tuple[int, int], int] = {}  # (offset, size) to checksum
        self._rows: dict[tuple[int, int], npt.NDArray[np.uint32]] = {}  # (offset, width); 0: not read

    @contextmanager
    def open(self) -> Iterator[int]:
        """The file's descriptor, once it was seen to be the same file as ever.

        Raises:
            EmbeddingGemmaError: it cannot be read, or became another.
        """
        try:
            file = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise EmbeddingGemmaError(f"cannot read {self.path}: {error.strerror}") from None
        try:
            self._check(file)
            yield file
        except OSError as error:
            raise EmbeddingGemmaError(f"cannot read {self.path}: {error.strerror}") from None
        finally:
            os.close(file)

    def note(self, offset: int, data: memoryview) -> None:
        """Remembers what was read."""
        key = (offset, data.nbytes)
        if key not in self._parts:
            self._parts[key] = crc32(data) or 1

    def note_rows(
        self, offset: int, count: int, indices: npt.NDArray[np.integer[Any]], rows: npt.NDArray[Any]
    ) -> None:
        """Remembers rows of a matrix of `count` rows that begins at byte `offset`."""
        key = (offset, rows[:1].nbytes)
        if (known := self._rows.get(key)) is None:
            known = self._rows.setdefault(key, np.zeros(count, np.uint32))  # threads may meet here
        for place in np.flatnonzero(known[indices] == 0).tolist():
            known[indices[place]] = crc32(rows[place].data) or 1

    def _check(self, file: int) -> None:
        stamp = _stamp(os.stat(file))
        if stamp == self._stamp:
            return
        if stamp.size != self._stamp.size:
            raise self._changed(f"it had {self._stamp.size:,} bytes and has {stamp.size:,}")
        for offset, size, checksum in self._noted():
            if _checksum(file, offset, size) != checksum:
                raise self._changed(f"bytes {offset:,} to {offset + size:,} are not what they were")
        self._stamp = stamp

    def _changed(self, reason: str) -> EmbeddingGemmaError:
        return EmbeddingGemmaError(f"{self.path} changed while it was read: start again ({reason})")

    def _noted(self) -> Iterator[tuple[int, int, int]]:
        for (offset, size), checksum in list(self._parts.items()):
            yield offset, size, checksum
        for (offset, width), known in list(self._rows.items()):
            for row in np.flatnonzero(known).tolist():
                yield offset + row * width, width, int(known[row])


def watch(path: Path) -> Watched:
    """A file that is remembered whole, such as a tokenizer's."""
    with path.open("rb") as file:
        watched = Watched(path, os.stat(file.fileno()))
        offset = 0
        while data := file.read(PIECE):
            watched.note(offset, memoryview(data))
            offset += len(data)
    return watched


def read_into(file: int, data: npt.NDArray[Any], offset: int) -> bool:
    """Fills an array from byte `offset` on.

    Returns:
        Whether the file held that much.
    """
    rest = data.reshape(-1).view(np.uint8).data
    while rest.nbytes:
        count = os.preadv(file, [rest], offset)
        if not count:
            return False
        rest, offset = rest[count:], offset + count
    return True


def _checksum(file: int, offset: int, size: int) -> int:
    """Of bytes of a file; -1 where it ends before."""
    checksum, end = 0, offset + size
    while offset < end:
        data = os.pread(file, min(PIECE, end - offset), offset)
        if not data:
            return -1
        checksum = crc32(data, checksum)
        offset += len(data)
    return checksum or 1


class Stamp(NamedTuple):
    """Differs whenever a file was written to, touched or replaced; `written` alone can be set back."""

    device: int
    inode: int
    size: int
    written: int
    changed: int


def _stamp(status: os.stat_result) -> Stamp:
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return Stamp(status.st_dev, status.st_ino, status.st_size, *times)
