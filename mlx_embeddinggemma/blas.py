"""A fast BLAS for MLX on Linux.

MLX's Linux wheel calls the reference BLAS, whose matrix product is some 50 times slower than
OpenBLAS. Here the entries for it in libmlx's own jump table (its PLT) are pointed at OpenBLAS: the
wheel `scipy-openblas32`, which exports its functions under prefixed names only, or else the
system's library. Nothing is loaded into the process's global scope, so numpy's or torch's BLAS stays
theirs, and it does not matter whether `mlx.core` was imported before or already used.

ELF structures: System V gABI, chapter 5; relocation types from the x86-64 and AArch64 psABIs (the
latter was never run here). On macOS MLX uses Metal and Accelerate, and this does nothing.
"""

import ctypes
import importlib.util
import mmap
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
REMEDY = 'pip install "mlx-embeddinggemma[cpu]", or install your system\'s OpenBLAS'

# Dynamic section tags, and the relocation types of a jump table: x86-64's, AArch64's.
DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_JMPREL = 2, 5, 6, 23
JUMP_SLOT = (7, 1026)
RTLD_DI_LINKMAP = 2
ROW_MAJOR, NO_TRANSPOSE = 101, 111
SPIN = "OPENBLAS_THREAD_TIMEOUT"  # a power of two

_lock = threading.Lock()
_in_force: str | None = None
_set_threads: Callable[[int], object] | None = None
_threads: int | None = None
_warned = False


def use_openblas() -> str | None:
    """Makes MLX's CPU matrix products use OpenBLAS; cheap when that is already so.

    Returns:
        The path of the library in force, or None where nothing was changed (not Linux, or no
        OpenBLAS, of which one warning tells).
    """
    global _in_force, _set_threads, _warned
    if sys.platform != "linux":
        return None
    with _lock:
        if _in_force is None and not _warned:
            try:
                path, library, prefix = _find_openblas()
                _bind(library, prefix)
                _set_threads = library[f"{prefix}openblas_set_num_threads"]
                set_threads(1)  # most batches are parted among the cores; for others the encoder asks
                _in_force = path
            except (OSError, LookupError) as error:
                _warned = True
                warnings.warn(f"MLX keeps its slow reference BLAS ({error}): {REMEDY}", stacklevel=4)
        return _in_force


def threads() -> int | None:
    """How many threads each matrix product may use, None before anybody said so."""
    return _threads


def set_threads(n: int) -> None:
    """How many threads each matrix product may use, from now on; nothing without OpenBLAS.

    To be called while no product runs: how its edges round would be left to chance.
    """
    global _threads
    _threads = n
    if _set_threads:
        _set_threads(n)


def _find_openblas() -> tuple[str, ctypes.CDLL, str]:
    """Path, handle and name prefix of an OpenBLAS that multiplies correctly."""
    candidates = [("libopenblas.so.0", "")]
    # Found, not imported: its __init__ reads package metadata, which takes 0.1 s.
    if spec := importlib.util.find_spec("scipy_openblas32"):
        for folder in spec.submodule_search_locations or ():
            candidates.insert(0, (f"{folder}/lib/libscipy_openblas.so", "scipy_"))
    for path, prefix in candidates:
        try:
            library = _load(path)
        except OSError:
            continue
        if _multiplies(library[f"{prefix}cblas_sgemm"]):
            return path, library, prefix
    raise LookupError("no OpenBLAS was found")


def _load(path: str) -> ctypes.CDLL:
    """Loads an OpenBLAS whose threads sleep as soon as they have no work.

    They would spin for 2**26 cycles, on a core that MLX, or another process, needs. The library
    reads the variable when it is loaded; nobody else (numpy's OpenBLAS, a child process) shall find it.
    """
    if SPIN in os.environ:
        return ctypes.CDLL(path)
    os.environ[SPIN] = "10"
    try:
        return ctypes.CDLL(path)
    finally:
        del os.environ[SPIN]


def _multiplies(sgemm: "ctypes._NamedFuncPointer") -> bool:
    """Whether [[1, 2], [3, 4]] @ [[5, 6], [7, 8]] comes out right, called as MLX calls it."""
    matrix = ctypes.c_float * 4
    a, b, c = matrix(1, 2, 3, 4), matrix(5, 6, 7, 8), matrix()
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    sgemm.restype = None
    sgemm(ROW_MAJOR, NO_TRANSPOSE, NO_TRANSPOSE, 2, 2, 2, one, a, 2, b, 2, zero, c, 2)
    return list(c) == [19, 22, 43, 50]


def _bind(library: ctypes.CDLL, prefix: str) -> None:
    """Points libmlx's jump table entries for `FUNCTIONS` at `library`."""
    slots = dict(_jump_slots(_mlx_path()))
    if "cblas_sgemm" not in slots:
        raise LookupError("this MLX does not call cblas_sgemm")
    for name in FUNCTIONS:
        if name in slots:
            address = ctypes.cast(library[prefix + name], ctypes.c_void_p).value
            _write_pointer(slots[name], address)


def _mlx_path() -> str:
    import mlx.core  # noqa: F401  (loads libmlx.so)

    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("/libmlx.so"):
            return line.split(maxsplit=5)[5]
    raise LookupError("libmlx.so is not loaded")


class _LinkMap(ctypes.Structure):
    """The first fields of glibc's `struct link_map`."""

    _fields_ = (("base", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_size_t))


class _Dynamic(ctypes.Structure):
    _fields_ = (("tag", ctypes.c_int64), ("value", ctypes.c_uint64))


class _Relocation(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("info", ctypes.c_uint64), ("addend", ctypes.c_int64))


class _Symbol(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_uint32),
        ("info", ctypes.c_uint8),
        ("other", ctypes.c_uint8),
        ("section", ctypes.c_uint16),
        ("value", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


def _jump_slots(path: str) -> Iterator[tuple[str, int]]:
    """Name of each function that a loaded library calls, and the address of its jump table entry."""
    link_map = ctypes.POINTER(_LinkMap)()
    handle = ctypes.c_void_p(ctypes.CDLL(path)._handle)
    if ctypes.CDLL(None).dlinfo(handle, RTLD_DI_LINKMAP, ctypes.byref(link_map)):
        raise LookupError(f"the dynamic linker does not describe {path}")
    base, dynamic = link_map.contents.base, link_map.contents.dynamic
    table: dict[int, int] = {}
    while (entry := _Dynamic.from_address(dynamic)).tag:
        table[entry.tag] = entry.value
        dynamic += ctypes.sizeof(_Dynamic)
    if not {DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_JMPREL} <= table.keys():
        raise LookupError(f"{path} has no jump table")
    # glibc has made these addresses absolute; other linkers leave offsets from the base.
    strings, symbols, relocations = (
        value if value >= base else value + base
        for value in (table[DT_STRTAB], table[DT_SYMTAB], table[DT_JMPREL])
    )
    for offset in range(0, table[DT_PLTRELSZ], ctypes.sizeof(_Relocation)):
        relocation = _Relocation.from_address(relocations + offset)
        if relocation.info & 0xFFFFFFFF in JUMP_SLOT:
            symbol = _Symbol.from_address(symbols + (relocation.info >> 32) * ctypes.sizeof(_Symbol))
            name = ctypes.string_at(strings + symbol.name).decode()
            yield name, base + relocation.offset


def _write_pointer(slot: int, address: int | None) -> None:
    """Stores an address in a jump table, which the linker may have made read-only."""
    page = slot - slot % mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    was_writable = _is_writable(slot)
    if not was_writable and libc.mprotect(
        ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE
    ):
        raise OSError(ctypes.get_errno(), "libmlx's jump table cannot be written")
    ctypes.c_void_p.from_address(slot).value = address
    if not was_writable:
        libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ)


def _is_writable(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions = line.split(maxsplit=2)[:2]
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return "w" in permissions
    raise LookupError(f"nothing is mapped at {address:#x}")
