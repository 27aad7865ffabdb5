"""The chunks of pairs that the engine `chunked` works on: so small that s and weights stay in an
L2 cache, so large that a product of theirs fills a GPU. Derived, **not measured yet**.

Both passes cut a call into the same chunks, since the order of the sums in s may depend on them.
"""

from typing import NamedTuple

from torch import Tensor

from pairops.ops.bindings.devices import splits

from .tile_configs import Precision

ROOM = 48 << 20  # bytes of s and of weights, of an H200's L2 cache of 50 MiB
_LONG = 4096  # rows, if the columns do not fit at once
_STEP = 128


class Extent(NamedTuple):
    rows: int
    cols: int


class Chunk(NamedTuple):
    """A chunk as `kernels/chunk.py` sees it, along its rows or, transposed, along its columns."""

    s: Tensor
    first_i: int
    many_i: int
    stride_i: int
    first_j: int
    many_j: int
    stride_j: int

    def along(self, axis: int) -> "Chunk":
        if axis == 0:
            return self
        return Chunk(
            self.s, self.first_j, self.many_j, self.stride_j,
            self.first_i, self.many_i, self.stride_i,
        )  # fmt: skip

    @property
    def rows(self) -> slice:
        return slice(self.first_i, self.first_i + self.many_i)

    @property
    def cols(self) -> slice:
        return slice(self.first_j, self.first_j + self.many_j)


def extent(n: int, m: int, precision: Precision, two_parts: bool) -> Extent:
    """Return the rows and columns of a chunk of n × m pairs.

    two_parts: whether a weight is the sum of two in `backward`, if not in `forward`.
    """
    area = ROOM // pair_bytes(precision, two_parts)
    rows = min(n, _LONG)
    cols = min(m, area // max(rows, 1) // _STEP * _STEP)
    if cols == m:
        rows = min(n, max(_STEP, area // max(pitch(m), 1) // _STEP * _STEP))
    return Extent(rows, cols)


def pair_bytes(precision: Precision, two_parts: bool) -> int:
    """Return the bytes of s and of the weight of a pair; one in float32 takes the place of s."""
    if not precision.fit:
        return 4
    return 8 if precision.fine or two_parts else 6


def pitch(cols: int) -> int:
    """Return how far apart rows of a chunk lie: rows that begin at 64 bytes are loaded at once."""
    return -(-cols // 16) * 16


TILE = 16, 64  # rows and columns of a tile of a program, of four warps
_AT_A_TIME = 4  # programs of a processor, with 128 registers a thread


def parts(
    owners: int, partners: int, processors: int, bytes_each: int, tile: tuple[int, int]
) -> int:
    """Return how many programs share a block of owners of a chunk, each with its own states."""
    blocks, tiles = -(-owners // tile[0]), -(-partners // tile[1])
    return splits(blocks, tiles, _AT_A_TIME * processors, bytes_each)
