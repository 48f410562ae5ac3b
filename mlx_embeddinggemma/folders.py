"""Folders that are written whole or not at all."""

import ctypes
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from mlx_embeddinggemma.errors import EmbeddingGemmaError

AT_FDCWD, EXCHANGE = -100, 2  # Linux's fcntl.h and fs.h; macOS's RENAME_SWAP is 2 as well


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields an empty temporary sibling of `target` that becomes `target` when the block succeeds.

    Whatever ends the block early, `target` stays as it was and the sibling is removed. A killed
    process leaves a sibling, `.{target}.partial-*`, never half a `target`; the next call removes it.

    Args:
        target: the folder to write.
        replace: put the new folder in the place of an existing one.

    Raises:
        EmbeddingGemmaError: `target` exists and `replace` is not set, or cannot be written.
    """
    try:
        if target.exists() and not replace:
            raise EmbeddingGemmaError(f"{target} exists: choose another folder or replace it (--force)")
        if target.exists() and not target.is_dir():
            raise EmbeddingGemmaError(f"{target} is a file; expected a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        _recover(target)
        partial = _new_sibling(target, "partial")
        alive = os.open(partial, os.O_RDONLY)
        fcntl.flock(alive, fcntl.LOCK_EX)  # let go when this process ends, however it ends
    except OSError as error:
        raise EmbeddingGemmaError(f"cannot write {target}: {error.strerror}") from None
    try:
        yield partial
        if target.exists() and not target.is_symlink() and _exchange(partial, target):
            pass  # `partial` is the old folder now, and goes as it would if the block had failed
        elif target.exists():
            old = _new_sibling(target, "old")
            try:
                os.replace(target, old)
                os.replace(partial, target)
            except OSError:
                if target.exists():
                    old.rmdir()
                else:
                    os.replace(old, target)
                raise
            shutil.rmtree(old)
        else:
            os.replace(partial, target)
    except OSError as error:
        # A source that went away comes here too: say which file.
        what = f" ({error.filename})" if partial.name not in str(error.filename or partial.name) else ""
        raise EmbeddingGemmaError(f"writing {target} failed: {error.strerror or error}{what}") from None
    finally:
        os.close(alive)
        shutil.rmtree(partial, ignore_errors=True)


def _new_sibling(target: Path, kind: str) -> Path:
    """An empty folder beside `target`, with the permissions that any new folder gets.

    `tempfile.mkdtemp` would close it to others, and the way to open it asks for the process's umask,
    which cannot be read without changing it under the files of other threads.
    """
    path = target.with_name(f".{target.name}.{kind}-{uuid4().hex[:8]}")
    path.mkdir()
    return path


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step: killed between two, a process would leave neither in its place.

    Returns:
        Whether it was done; not every file system can.
    """
    libc, paths = ctypes.CDLL(None), (os.fsencode(one), os.fsencode(other))
    if sys.platform == "darwin":
        return bool(libc.renamex_np(*paths, EXCHANGE) == 0)
    if not hasattr(libc, "renameat2"):
        return False
    return bool(libc.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], EXCHANGE) == 0)


def _recover(target: Path) -> None:
    """Cleans up after killed processes: puts back a folder just moved away, removes the rest."""
    siblings = list(target.parent.iterdir())
    for old in siblings:
        if old.name.startswith(f".{target.name}.old-"):
            if not target.exists() and any(old.iterdir()):
                os.replace(old, target)
            else:
                shutil.rmtree(old, ignore_errors=True)
    for partial in siblings:
        if partial.name.startswith(f".{target.name}.partial-") and not _in_use(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    """Whether the process that writes it lives."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
