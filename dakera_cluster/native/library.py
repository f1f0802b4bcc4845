"""Opens the compiled kernels, and hands arrays to them.

The C code is built with the package (pyproject.toml, ``ext-modules``); ``kernels.h`` is the contract on both sides. A call
releases the GIL. Arrays must be contiguous and of exactly the type the kernel reads: ``given`` refuses all else, because C
would not notice. Called by the other modules of this package only.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from operator import is_
from pathlib import Path
from typing import Any

import cffi
import numpy as np
from _cffi_backend import buffer, from_buffer, newp, unpack

_HERE = Path(__file__).parent
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_ffi = cffi.FFI()
_ffi.cdef(_COMMENT.sub("", (_HERE / "kernels.h").read_text()))
_C_TYPES = {
    np.dtype(dtype): _ffi.typeof(f"{name}[]")
    for dtype, name in (
        (np.int8, "int8_t"),
        (np.int16, "int16_t"),
        (np.int32, "int32_t"),
        (np.int64, "int64_t"),
        (np.bool_, "uint8_t"),
        (np.uint8, "uint8_t"),
        (np.uint16, "uint16_t"),
        (np.uint32, "uint32_t"),
        (np.uint64, "uint64_t"),
        (np.float16, "uint16_t"),
        (np.float32, "float"),
        (np.float64, "double"),
    )
}


def opened(path: Path) -> Any:
    """The kernels in a shared library. Raises ImportError when there are none."""
    try:
        return _ffi.dlopen(str(path))
    except OSError as error:
        raise ImportError(
            f"the native kernels are not built ({error}); run: pip install -e . (or make setup)"
        ) from error


kernels: Any = opened(_HERE / f"_kernels{EXTENSION_SUFFIXES[0]}")
"""The functions of kernels.h."""
NULL: Any = _ffi.NULL


def given(array: np.ndarray, dtype: Any) -> Any:
    """``array`` as a C array. Raises TypeError for another dtype, BufferError or ValueError when it is not contiguous."""
    held = array.dtype
    # By identity where it will do: to compare dtypes costs as much as the rest. One of another byte order is no C type.
    if (held.type is not dtype and held != dtype) or held not in _C_TYPES:
        raise TypeError(f"expected an array of {np.dtype(dtype)}, got {held}")
    # Straight from cffi's own C: its Python front door costs as much again, and a recall passes a hundred and fifty arrays.
    return from_buffer(_C_TYPES[held], array, False)


def allocated(kind: str, count: int) -> Any:
    """Room for ``count`` structures of kernels.h, zeroed; it lives as long as what is returned."""
    return newp(_type_of(f"{kind}[]"), count)


def filled(kind: str, values: Any) -> Any:
    """A new array or structure of kernels.h with these values; it lives as long as what is returned."""
    return newp(_type_of(kind), values)


def seen(pointer: Any, size: int = -1) -> Any:
    """So many bytes of what a pointer points to, or all of what was allocated, which must outlive it; a slice is a copy, as
    bytes."""
    return buffer(pointer, size)


def listed(pointer: Any, count: int) -> list[Any]:
    """So many of the numbers that a pointer points to."""
    found: list[Any] = unpack(pointer, count)
    return found


class OverArrays:
    """What kernels read of ``arrays`` that are somebody else's: good for as long as they are the owner's."""

    arrays: tuple[np.ndarray, ...]

    def is_of(self, *arrays: np.ndarray) -> bool:
        """Whether they still are: the owner makes new ones when it grows."""
        return all(map(is_, self.arrays, arrays))


@cache
def _type_of(kind: str) -> Any:
    return _ffi.typeof(kind)


def address(pointer: Any) -> int:
    """Where a pointer points."""
    return int(_ffi.cast("intptr_t", pointer))
