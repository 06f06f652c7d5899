"""The header of a GGUF file, read with every size checked before it is believed.

Called by ``gguf_model`` before the file is handed to the ``gguf`` package, which trusts counts and offsets: a damaged or
hostile file could make it loop for ever or map memory outside the tensor. Here each count is compared with the bytes that
are left, in Python integers, which do not overflow. Needs neither torch nor numpy.

Source: the GGUF specification, version 3 (ggml, docs/gguf.md); little-endian files only.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sgl_core.errors import ModelFormatError

__all__ = ["GgufHeader", "TensorInfo", "read_gguf_header", "read_gguf_metadata"]

Scalar = int | float | bool | str

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_MIN_ENTRY_BYTES = 8 + 4 + 1  # key length, type, a one-byte value: bounds a count before any loop over it
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
_MAX_DIMS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the file.

    Args:
        name: as ggml names it.
        shape: outermost dimension first, as numpy and torch have it (the file stores the reverse).
        ggml_type: number of the storage type.
        start: first byte in the file; ``[start, start + num_bytes)`` lies inside the file.
        num_bytes: recomputed from shape and type.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata without the arrays, and the tensor table."""

    metadata: dict[str, Scalar]
    tensors: tuple[TensorInfo, ...]

    @property
    def architecture(self) -> str:
        """``general.architecture``; empty if the file does not say."""
        return str(self.metadata.get("general.architecture", ""))


def read_gguf_header(path: Path, block_sizes: dict[int, tuple[int, int]]) -> GgufHeader:
    """Read and check the header of ``path``.

    Args:
        path: the file.
        block_sizes: ggml type number -> (elements in a block, bytes in a block).

    Raises:
        ModelFormatError: not a GGUF file, cut short, or a size in it cannot be; names the file and what is wrong.
    """
    with _mapped(path) as cursor:
        return _read(cursor, block_sizes)


def read_gguf_metadata(path: Path) -> dict[str, Scalar]:
    """The metadata of ``path`` without its arrays; nothing behind them is read.

    Raises:
        ModelFormatError: as ``read_gguf_header``.
    """
    with _mapped(path) as cursor:
        return _read_metadata(cursor)[0]


@contextmanager
def _mapped(path: Path) -> Iterator[_Cursor]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Cursor(data)
    except (_Damaged, ValueError) as error:  # ValueError: an empty file cannot be mapped; text that is not UTF-8
        raise ModelFormatError(f"model: {path} is damaged ({error}). Fetch the file again and compare its size.") from error


class _Damaged(Exception):
    """What is wrong, in words; becomes a ModelFormatError with the file's name."""


class _Cursor:
    """A position in the mapped file that never passes its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.pos = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.pos

    def skip(self, num_bytes: int) -> int:
        """Pass over ``num_bytes``; returns where they start."""
        if num_bytes > self.left:
            raise _Damaged(f"it ends inside its header: {num_bytes} bytes expected at {self.pos}, {self.left} left")
        start = self.pos
        self.pos += num_bytes
        return start

    def scalar(self, value_type: int) -> Scalar:
        layout = _FORMATS.get(value_type)
        if layout is None:
            raise _Damaged(f"unknown value type {value_type} at {self.pos}")
        value: Scalar = struct.unpack_from(layout, self.data, self.skip(struct.calcsize(layout)))[0]
        return value

    def u32(self) -> int:
        return int(self.scalar(4))

    def u64(self) -> int:
        return int(self.scalar(10))

    def string(self) -> str:
        length = self.u64()
        start = self.skip(length)
        return self.data[start : start + length].decode("utf-8")

    def skip_array(self) -> None:
        value_type, count = self.u32(), self.u64()
        if value_type in _FORMATS:
            self.skip(count * struct.calcsize(_FORMATS[value_type]))
        elif value_type == _STRING and count * 8 <= self.left:
            for _ in range(count):
                self.skip(self.u64())
        else:
            raise _Damaged(f"an array of {count} values of type {value_type} at {self.pos} cannot be")


def _read_metadata(cursor: _Cursor) -> tuple[dict[str, Scalar], int]:
    """The metadata, and how many tensors the table behind it has."""
    start = cursor.skip(len(_MAGIC))
    if cursor.data[start : start + len(_MAGIC)] != _MAGIC:
        raise _Damaged("it does not start with GGUF")
    version = cursor.u32()
    if version not in _VERSIONS:
        raise _Damaged(f"version {version}, expected one of {_VERSIONS}, little-endian")
    num_tensors, num_entries = cursor.u64(), cursor.u64()
    if num_entries * _MIN_ENTRY_BYTES + num_tensors * _MIN_TENSOR_BYTES > cursor.left:
        raise _Damaged(f"{num_tensors} tensors and {num_entries} entries do not fit in {cursor.left} bytes")
    metadata: dict[str, Scalar] = {}
    for _ in range(num_entries):
        key, value_type = cursor.string(), cursor.u32()
        if value_type == _ARRAY:
            cursor.skip_array()
        else:
            metadata[key] = cursor.string() if value_type == _STRING else cursor.scalar(value_type)
    return metadata, num_tensors


def _read(cursor: _Cursor, block_sizes: dict[int, tuple[int, int]]) -> GgufHeader:
    metadata, num_tensors = _read_metadata(cursor)
    table = [_tensor_entry(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"general.alignment is {alignment!r}, expected a positive int")
    data_start = -(-cursor.pos // alignment) * alignment
    return GgufHeader(metadata, tuple(_placed(*entry, data_start, len(cursor.data), block_sizes) for entry in table))


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, num_dims = cursor.string(), cursor.u32()
    if not 1 <= num_dims <= _MAX_DIMS:
        raise _Damaged(f"tensor {name!r} has {num_dims} dimensions, expected 1 to {_MAX_DIMS}")
    dims = [cursor.u64() for _ in range(num_dims)]
    return name, tuple(reversed(dims)), cursor.u32(), cursor.u64()


def _placed(
    name: str,
    shape: tuple[int, ...],
    ggml_type: int,
    offset: int,
    data_start: int,
    file_bytes: int,
    block_sizes: dict[int, tuple[int, int]],
) -> TensorInfo:
    if ggml_type not in block_sizes:
        raise _Damaged(f"tensor {name!r} has storage type {ggml_type}, which the installed gguf package does not know")
    elements, block_bytes = block_sizes[ggml_type]
    if 0 in shape or shape[-1] % elements:
        raise _Damaged(f"tensor {name!r} has shape {shape}, expected rows in blocks of {elements}")
    num_bytes = block_bytes
    for size in (*shape[:-1], shape[-1] // elements):
        num_bytes *= size
    start = data_start + offset
    if start + num_bytes > file_bytes:
        raise _Damaged(f"tensor {name!r} ends at byte {start + num_bytes}, but the file has only {file_bytes} bytes")
    return TensorInfo(name, shape, ggml_type, start, num_bytes)
