"""Memory, in bytes, that an engine holds while it serves one call of `forward` or `backward`.

Each formula counts its engine's code. Those of `cpu` and `blockwise` are checked against
measurement; those of `cuda`, `triton` and `chunked` are derived, **not measured yet**. Results
of ops are not in them, but for the gradients of `backward`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import extension
from pairops.ops.bindings.devices import (
    blocks_of_a_processor,
    capability,
    float32_level,
    processors,
    splits,
)
from pairops.ops.pairs.distances import Measure
from pairops.ops.terms.arguments import Between
from pairops.ops.terms.functions import one
from pairops.ops.terms.term import POS, Term

from .blockwise import grid
from .plan import plan_of
from .triton import chunks, tile_configs
from .triton.tile_configs import Configuration
from .weight_parts import two_parts_of

_MIB = 1 << 20
_PADDED = 128  # csrc/cuda/params/tile_shape.h: packed rows come in multiples of this
_PROCESSORS = 132  # an H100's, where there is no GPU


@dataclass(frozen=True)
class SizedCall:
    """The extents of one call and its terms."""

    n: int
    m: int
    d: int
    same: bool
    dtype: torch.dtype
    rows: Sequence[Term]
    cols: Sequence[Term]
    measure: Measure | None = None  # as the engine takes it
    wanted: tuple[bool, bool] = (False, False)  # gradients by x and y that `backward` returns

    @property
    def float_bytes(self) -> int:
        """The bytes of a number in the dtype of statistics."""
        return max(4, self.dtype.itemsize)

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.n,) if self.same else (self.n, self.m)

    @property
    def terms_and_owners(self) -> list[tuple[Term, int]]:
        """Every term with the number of its owners."""
        return [(term, self.n) for term in self.rows] + [(term, self.m) for term in self.cols]

    @property
    def band(self) -> bool:
        return all(term.side == POS for term, _ in self.terms_and_owners)

    def copies(self, *lengths: int) -> int:
        """Return the bytes of so many rows in the dtype of statistics."""
        return sum(lengths) * self.d * self.float_bytes

    def gradients(self) -> int:
        return self.copies(*[k for k, want in zip(self.lengths, self.wanted, strict=False) if want])

    def vectors(self, beside: int = 0) -> int:
        """Return the bytes of a value per owner for each argument, window, and `beside` more."""
        counts = [
            (len(term.args) + (term.above is not None) + (term.below is not None) + beside) * k
            for term, k in self.terms_and_owners
        ]
        return self.float_bytes * sum(counts)

    def further(self) -> list[Between]:
        """Return the further embeddings of all terms."""
        return [a for z in (*self.rows, *self.cols) for a in z.args if isinstance(a, Between)]

    def products(self, gradients: int = 0) -> int:
        """Return the bytes of further embeddings, with so many gradients of the learned ones."""
        columns = [a.owners.shape[1] * (1 + gradients * a.grad) for a in self.further()]
        return self.float_bytes * (self.n + self.m) * sum(columns)


# ── native ──


def _native_forward(call: SizedCall) -> int:
    """Count positions, sorted vectors, states of columns, and all columns packed."""
    tiles = 3 if _directed(call) else 1  # s, and closeness from either side
    size = 4 * sum(call.lengths) + call.vectors() + _native_squares(call)
    size += _native_team(call, 1, tiles) + _native_products(call, call.m)
    if call.band:
        return size
    of_columns = [k for _, k in call.terms_and_owners] if call.same else [call.m] * len(call.cols)
    return size + call.copies(call.m) + 2 * call.float_bytes * sum(of_columns)


def _native_backward(call: SizedCall) -> int:
    """Count gradients, and a stripe of columns packed for both products; for extremes alone,
    sorted positions."""
    terms = (*call.rows, *call.cols)
    if all(term.extreme or term.function is one for term in terms):
        return call.gradients() + 8 * sum(call.lengths)
    tiles = 5 if _directed(call) else 2  # those of the forward pass, and weights
    size = call.gradients() + 4 * sum(call.lengths) + call.vectors(2) + _native_squares(call)
    if call.measure is not None:  # gradients through squared norms
        size += call.float_bytes * sum(call.lengths) * (1 + call.same)
    size += _native_team(call, 3, tiles)
    gradients = sum(z.has_grad * k for term, k in call.terms_and_owners for z in term.operands())
    size += call.float_bytes * gradients * (1 + call.same)
    if call.band:
        return size
    tile = _native_tile()
    stripe = tile * min(max(12 * _MIB // max(call.float_bytes * tile * call.d, 1), 1), 64)
    size += _native_products(call, min(stripe, call.m))
    if call.same and call.further():  # one set counts as two
        size += call.copies(call.n)
    return size + call.copies(min(stripe, call.m)) * (1 + call.wanted[0])


def _native_products(call: SizedCall, columns: int) -> int:
    """Count further embeddings of so many columns packed, and of each thread its rows and tiles."""
    rows = torch.get_num_threads() * _native_tile()
    cells = [(columns + rows) * a.owners.shape[1] + rows * _native_tile() for a in call.further()]
    return call.float_bytes * sum(cells)


def _native_takes_extremes(call: SizedCall) -> bool:
    plan = plan_of(call.rows, call.cols)
    return plan is not None and plan.short and plan.few


def _directed(call: SizedCall) -> bool:
    return call.measure is not None and call.measure.directed


def _native_squares(call: SizedCall) -> int:
    """Count squared norms, and their reciprocals if the distance depends on the anchor."""
    vectors = (call.measure is not None) + _directed(call)
    return call.float_bytes * vectors * sum(call.lengths)


def _native_team(call: SizedCall, rows: int, squares: int) -> int:
    tile = _native_tile()
    return torch.get_num_threads() * call.float_bytes * tile * (rows * call.d + squares * tile)


def _native_tile() -> int:
    return 1 if extension.native is None else int(extension.native.TILE)


# ── blockwise ──


def _blockwise_forward(call: SizedCall) -> int:
    """Count sorted, scaled copies, and three more of the last one while it is made."""
    making = 3 * call.copies(call.lengths[-1])
    if call.dtype.itemsize < call.float_bytes:
        making += call.lengths[-1] * call.d * call.dtype.itemsize
    return call.copies(*call.lengths) + call.products() + max(making, _blockwise_tile(call, 2))


def _blockwise_backward(call: SizedCall) -> int:
    """Count the copies, a sum for each side in pieces, the gradients, and four more of one while
    it is taken through the scale."""
    sides = zip((call.n, call.m), call.wanted, strict=True)
    sums = [call.n, call.n] if call.same else [length for length, want in sides if want]
    end = call.copies(*sums) + 4 * call.copies(max(sums, default=0))
    return call.copies(*call.lengths, *sums) + call.products(2) + max(end, _blockwise_tile(call, 4))


def _blockwise_tile(call: SizedCall, of_term: int) -> int:
    area = min(grid.ROWS, call.n) * min(grid.COLS, call.m)
    return call.float_bytes * area * (2 + of_term * len(call.terms_and_owners))


# ── cuda, triton, chunked ──


def _several() -> int:
    return processors(torch.device("cuda", 0)) if torch.cuda.is_available() else _PROCESSORS


class _Shape(NamedTuple):
    """Rows and warps of a block, columns of a tile, and how many blocks share a gradient."""

    rows: int
    warps: int
    columns: int
    shares: int

    def cells(self, call: SizedCall, tiles_in_cell: int = 1) -> int:
        return -(-call.n // self.rows) * -(-call.m // (self.columns * tiles_in_cell))

    def parts(self, owners: int, partners: int, each: int, shares: int) -> int:
        """Return how many parts partners are cut into, with `each` bytes of results apiece."""
        blocks = -(-owners // self.rows) * shares
        at_a_time = _several() * blocks_of_a_processor(self.warps)
        return splits(blocks, -(-partners // self.columns), at_a_time, each)


def _cuda_shape(call: SizedCall) -> _Shape:
    """Return the shape that csrc/cuda/params/shape_table.h has."""
    split = _is_split(call)
    rows, columns = (64, 32) if split or call.d > 128 else (128, 64)
    return _Shape(rows, rows // 16, columns, -(-call.d // (128 if split else 256)))


def _is_split(call: SizedCall) -> bool:
    return cuda_kernels.precision(call.dtype, float32_level()) == "split"


def _cuda_prepared(call: SizedCall) -> int:
    """Count float16 in panels of 64, twice for float32."""
    row = 128 * -(-call.d // 64) * (1 + _is_split(call))
    return sum(-(-length // _PADDED) * _PADDED * (row + 8) for length in call.lengths)


def _configuration(call: SizedCall) -> Configuration:
    known = capability(torch.device("cuda", 0)) if torch.cuda.is_available() else (9, 0)
    level = float32_level() if call.dtype == torch.float32 else "highest"
    narrow = two_parts_of(call.dtype, call.n, call.m)
    return tile_configs.choose(known, call.dtype, call.d, level, narrow)


def _triton_shape(call: SizedCall) -> _Shape:
    config = _configuration(call)
    return _Shape(config.rows, config.warps, config.cols, config.parts)


def _triton_copies(call: SizedCall, beside: int) -> tuple[int, int]:
    """Count sorted copies and vectors; then temporaries of the last copy."""
    config = _configuration(call)
    row = config.precision.stored.itemsize * config.padded
    making = row * call.lengths[-1] * (1 if config.precision.unit else 3)
    return row * sum(call.lengths) + call.vectors(beside), making


def _states(call: SizedCall, shape: _Shape, tile_bytes: int = 0) -> int:
    """Count states in parts, of rows and then of columns, and, where there are several parts, so
    many bytes for each tile of a windowed term."""
    sides = [(call.rows, call.n, call.m), (call.cols, call.m, call.n)]
    if call.same:
        sides = [((*call.rows, *call.cols), call.n, call.n)]
    found = [0]
    for terms, owners, partners in sides:
        each = 8 * len(terms) * owners
        parts = shape.parts(owners, partners, each, 1)
        windowed = tile_bytes * sum(term.has_tile_mask for term in terms) * (parts > 1)
        tiles = -(-owners // shape.rows) * -(-partners // shape.columns)
        found.append(each * parts + windowed * tiles)
    return max(found)


def _sums(call: SizedCall, shape: _Shape) -> int:
    """Count gradients in parts, which are added up before the other set's are there."""
    size = most = 0
    for owners, partners, want in zip(call.lengths, (call.m, call.n), call.wanted, strict=False):
        each = call.copies(owners) if want else 0
        parts = shape.parts(owners, partners, each, shape.shares)
        most = max(most, size + each * (parts + (parts > 1)))
        size += each
    return most


def _triton_forward(call: SizedCall) -> int:
    copies, making = _triton_copies(call, 0)
    return copies + max(making, _states(call, _triton_shape(call)))


def _triton_backward(call: SizedCall) -> int:
    shape, (copies, making) = _triton_shape(call), _triton_copies(call, 2)
    tile_masks = any(term.has_tile_mask for term, _ in call.terms_and_owners)
    tile_list = 8 * shape.cells(call) if tile_masks else 0  # the list, and what sorts it
    return copies + max(making, _sums(call, shape) + tile_list)


def _chunked_forward(call: SizedCall) -> int:
    copies, making = _triton_copies(call, 0)
    return copies + max(making, _chunked_states(call) + 4 * _chunk(call))


def _chunked_backward(call: SizedCall) -> int:
    """Count sums in sorted order, and the largest of them twice more while it is reordered."""
    config, (copies, making) = _configuration(call), _triton_copies(call, 2)
    sums = [k for k, want in zip(call.lengths, call.wanted, strict=False) if want]
    most, row = max(sums, default=0), 4 * config.padded
    ordering = row * most + (call.copies(most) if config.padded > call.d else 0)
    pair = chunks.pair_bytes(config.precision, two_parts_of(call.dtype, call.n, call.m))
    return copies + max(making, row * sum(sums) + max(ordering, pair * _chunk(call)))


def _chunk(call: SizedCall) -> int:
    """Return the number of pairs of a chunk."""
    parts = two_parts_of(call.dtype, call.n, call.m)
    rows, cols = chunks.extent(call.n, call.m, _configuration(call).precision, parts)
    return rows * chunks.pitch(cols)


def _chunked_states(call: SizedCall) -> int:
    """Count states in parts, which go on from chunk to chunk, and themselves while they begin."""
    parts = two_parts_of(call.dtype, call.n, call.m)
    extent = chunks.extent(call.n, call.m, _configuration(call).precision, parts)
    size = 0
    for terms, owners, along in ((call.rows, call.n, extent), (call.cols, call.m, extent[::-1])):
        shared = chunks.parts(*along, _several(), 4 * owners, chunks.TILE)
        size += 8 * len(terms) * owners * (1 + shared)
    return size


class Working(NamedTuple):
    forward: Callable[[SizedCall], int]
    backward: Callable[[SizedCall], int]
    prepared: Callable[[SizedCall], int] = lambda _: 0  # once for all calls with the same pairs
    # The tile mask of a term, for an engine that cannot be asked where there is no GPU.
    tile_masks: Callable[[SizedCall], int] | None = None
    # Whether `backward` takes the extremes of a call in one process. If not, torch does.
    takes_extremes: Callable[[SizedCall], bool] = lambda _: False


WORKING = {
    "cpu": Working(_native_forward, _native_backward, takes_extremes=_native_takes_extremes),
    "blockwise": Working(_blockwise_forward, _blockwise_backward),
    "cuda": Working(
        lambda call: _states(call, _cuda_shape(call), tile_bytes=1),
        lambda call: _sums(call, _cuda_shape(call)),
        _cuda_prepared,
        lambda call: _cuda_shape(call).cells(call, 8),
    ),
    "triton": Working(
        _triton_forward, _triton_backward, tile_masks=lambda call: _triton_shape(call).cells(call)
    ),
    "chunked": Working(_chunked_forward, _chunked_backward, tile_masks=lambda _: 0),
}
