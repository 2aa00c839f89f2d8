"""The compiled library: found, loaded, and compared with its sources and with the Python code that calls it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from rerankd.backends.cpu.native.descriptors import AGREED
from rerankd.backends.cpu.native.sources import digest
from rerankd.backends.cpu.native.units import UNITS, Unit, allowed
from rerankd.core import RerankdError

_T, _I, _P, _S = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p
_ARGUMENTS = {
    "run": (_T, _T, _I, _S),
    "pack": (_T, _I, _I, _P, _P),
    "pack_int8": (_T, _I, _I, _P, _P, _P),
}
"""The arguments of each function that Python calls: the threads of `run`, then the unit's number."""


class KernelsError(RerankdError):
    """The compiled kernels do not fit the Python code that calls them."""


class _Agreed(ctypes.Structure):
    """`agreed` of operations.h."""

    _fields_ = (("name", ctypes.c_char_p), ("value", _I))


def load_library(dtype: torch.dtype) -> tuple[ctypes.CDLL, Unit] | None:
    """The library and its fastest unit for rows of a dtype on this processor, within the cap.

    None where no library was built, or the processor has no such unit.

    KernelsError for a library that was compiled from other sources than those beside it.
    """
    for path in sorted(Path(__file__).parent.glob("_kernels*.so")):
        library = ctypes.CDLL(str(path))
        _check_sources(library, path)
        found = [unit for unit in UNITS if unit.dtype == dtype and allowed(unit) and runs(library, unit)]
        return (library, found[-1]) if found else None
    return None


def runs(library: ctypes.CDLL, unit: Unit) -> bool:
    """Whether the library was compiled with a unit, and the processor runs it."""
    return bool(library.rerankd_largest_weight(unit.number) and library.rerankd_runs(unit.number))


def prepare(library: ctypes.CDLL) -> None:
    """Declare the arguments of the library's functions.

    KernelsError for a library whose structs, operations or ABI number are not those of descriptors.py.
    """
    _check_agreement(library)
    for name, arguments in _ARGUMENTS.items():
        getattr(library, f"rerankd_{name}").argtypes = arguments


def _check_sources(library: ctypes.CDLL, path: Path) -> None:
    beside = digest(path.parent)
    if beside is None:
        return
    compiled: bytes | None = None
    if hasattr(library, "rerankd_sources"):
        library.rerankd_sources.restype = ctypes.c_char_p
        compiled = library.rerankd_sources()
    if compiled != beside.encode():
        checkouts = (root for root in path.parents if (root / "setup.py").exists() and root / "src" in path.parents)
        root = next(checkouts, None)
        command = "pip install --force-reinstall rerankd" if root is None else f"pip install -e {root}"
        raise KernelsError(
            f"The compiled kernels {path} were built from other sources than those beside them. "
            f"Build them again: {command}"
        )


def _check_agreement(library: ctypes.CDLL) -> None:
    found: list[tuple[str, int]] = []
    if hasattr(library, "rerankd_agreed"):
        library.rerankd_agreed.restype = ctypes.POINTER(_Agreed)
        library.rerankd_agreed.argtypes = (_I,)
        while entry := library.rerankd_agreed(len(found)):
            found.append((entry.contents.name.decode(), entry.contents.value))
    expected = list(AGREED.items())
    if found != expected:
        differing = sorted({name for name, _ in {*found} ^ {*expected}})
        raise KernelsError(
            f"The compiled kernels {library._name} and the Python code that calls them are of different versions; they "
            f"differ in {', '.join(differing) or 'the order of operations'}. Install rerankd again."
        )
