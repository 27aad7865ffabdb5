"""The CPU engine: it checks tensors, and hands addresses to sweeps compiled ahead of time.

`csrc/recipes.h` lists the terms that are served, in every combination; on a CPU `csrc/cpu/` runs
them, with as many threads as torch has. The results do not depend on the number of threads.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.bindings.extension import MISSING
from pairops.ops.bindings.extension import native as _native
from pairops.ops.pairs.indexing import any_above
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.arguments import Between, Partner
from pairops.ops.terms.levels import numbered, resolved, without_pairs
from pairops.ops.terms.recipe import cpu_key
from pairops.ops.terms.term import Term, Wanted

from .cpu_addresses import TILE, CpuCall
from .plan import SERVED, Plan, declines_pairs, plan_of, serves

NAME = "cpu"
TAKES_EARLIER = "anywhere"
TAKES_DISTANCES = True
TAKES_LISTS = True
DEVICE: str | None = "cpu"

_MOST = 2**31 - 1  # rows: csrc/math/accumulators.h counts columns in 32 bits
SMALL = 512 * 512  # pairs whose similarities are saved at most, in float32


def missing() -> str | None:
    return MISSING


def declines(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str | None:
    reason = declines_pairs(pairs)
    if reason is not None:
        return reason
    if any_above(pairs.shape, _MOST):
        return f"there are {max(pairs.shape)} rows; the cpu engine counts {_MOST} at most"
    for term in (*rows, *cols):
        if any(isinstance(a, Between) and a.grad for a in term.args):
            return (
                f"{term.function.name} takes a product of learned embeddings; here it is constant"
            )
        if cpu_key(term) not in SERVED:
            return f"no recipe in csrc/recipes.h has the term {cpu_key(term)}"
    return None


def prepare(_pairs: Pairs) -> list[Tensor]:
    return []


def forward(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Compute statistics; tile masks are (terms that have one, row tiles, column tiles), and in one
    set 1 also where the mirrored tile has a pair inside the window."""
    made = planned_forward(pairs, rows, cols, _plan(rows, cols))
    masks = made.tile_masks
    if masks is None:
        masks = torch.empty(tile_masks_shape(pairs, rows, cols), dtype=torch.uint8, device="cpu")
    # The results of an op may not be views of one another.
    return [z.clone() for z in made.every.split(made.sizes)], made.arguments, masks


def _plan(rows: Sequence[Term], cols: Sequence[Term]) -> Plan:
    plan = plan_of(rows, cols)
    assert plan is not None, "terms refer to earlier ones"
    assert serves(plan), "the engine has not declined"
    return plan


class Made(NamedTuple):
    """The results of `planned_forward`."""

    every: Tensor  # the statistics, one after the other
    sizes: list[int]  # of each
    arguments: list[Tensor]
    tile_masks: Tensor | None  # None where no term has one
    whole: bool  # True: each earlier term that is an argument found a pair of every owner


def planned_forward(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], plan: Plan) -> Made:
    """Compute statistics of terms that may refer to earlier ones, in one call of the extension."""
    x, y = pairs.x, pairs.y
    n = x.shape[0]
    m = n if y is None else y.shape[0]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    every = torch.empty(plan.rows * n + (plan.count - plan.rows) * m, dtype=dtype, device="cpu")
    arguments: list[Tensor] = []
    found: list[int | None] = [None] * plan.count
    for k in plan.extremes:
        arguments += (torch.empty(n if k < plan.rows else m, dtype=torch.int64, device="cpu"),)
        found[k] = arguments[-1].data_ptr()
    tiles = -(-n // TILE), -(-m // TILE)
    tile_masks = at = None
    if plan.keeping:
        tile_masks = torch.zeros((plan.keeping, *tiles), dtype=torch.uint8, device="cpu")
        at = tile_masks.data_ptr()
    call = CpuCall(pairs, rows, cols, plan, dtype)
    _native.forward(
        plan.compiled, *call.shared, every.data_ptr(), found, at, tiles[0] * tiles[1],
        *call.settings,
    )  # fmt: skip
    sizes, whole = [n] * plan.rows + [m] * (plan.count - plan.rows), True
    for k, neutral, by_positive in plan.arguments:
        if by_positive and pairs.relation.all_positive:
            continue
        statistics = torch.split_with_sizes(every, sizes)
        if (statistics[k] == neutral).any():
            _repair(pairs, rows, cols, statistics, arguments, tile_masks)
            whole = False
            break
    return Made(every, sizes, arguments, tile_masks, whole)


def _repair(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    arguments: Sequence[Tensor],
    tile_masks: Tensor | None,
) -> None:
    """Reset owners without pairs in an earlier term: they have none in this term either. Terms that
    depend on a term with reset owners are computed again."""
    rows, cols = numbered(rows, cols, "rows"), numbered(cols, rows, "cols")
    argument = iter(arguments)
    masks: Iterator[Tensor] = iter(() if tile_masks is None else tile_masks)
    first = 0
    for axis, axis_terms in enumerate((rows, cols)):
        mine = statistics[first : first + len(axis_terms)]
        changed: set[int] = set()
        for k, term in enumerate(axis_terms):
            at = next(argument) if term.keeps_argument else None
            saved_mask = next(masks) if term.has_tile_mask else None
            if any(a.place in changed for a in term.earlier()):
                again, _ = resolved(term, axis_terms, mine, {})
                of_rows, of_cols = ((again,), ()) if axis == 0 else ((), (again,))
                made = planned_forward(pairs, of_rows, of_cols, _plan(of_rows, of_cols))
                mine[k].copy_(made.every)
                if at is not None:
                    at.copy_(made.arguments[0])
                if saved_mask is not None and made.tile_masks is not None:
                    saved_mask.copy_(made.tile_masks[0])
                changed.add(k)
            missing = without_pairs(term, axis_terms, mine)
            if missing is not None and missing.any():
                mine[k].masked_fill_(missing, term.monoid.neutral)
                if at is not None:
                    at.masked_fill_(missing, -1)
                changed.add(k)
        first += len(axis_terms)


def backward(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    tile_masks: Tensor | None,
    needs: Wanted,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute gradients; a tile takes less time without slopes by arguments."""
    plan = _plan(rows, cols)
    dx, dy, gradients = planned_backward(
        pairs, rows, cols, statistics, [], cotangents, tile_masks, needs, plan
    )
    blank = pairs.x.new_empty(0)
    return blank if dx is None else dx, blank if dy is None else dy, gradients


def planned_backward(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    arguments: Sequence[Tensor],
    cotangents: Sequence[Tensor] | Tensor,
    tile_masks: Tensor | None,
    needs: Wanted,
    plan: Plan,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Compute gradients of terms that may refer to earlier ones, which all have pairs.

    arguments: of extremes, if `plan.few` says that all terms are extremes; else extremes among the
    terms are left out.  cotangents: also in one tensor, if all sets have one length.
    """
    x, y = pairs.x, pairs.y
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    call = CpuCall(pairs, rows, cols, plan, dtype)
    gradients: list[Tensor] = []
    if not plan.short:
        gradients = _by_arguments(pairs, rows, cols, needs, dtype)
    dx = dy = by_x = by_y = bit = None
    if needs.x:
        dx = torch.zeros(x.shape, dtype=dtype, device="cpu")
        by_x = dx.data_ptr()
    # One set may count as two, whose gradients are added before they are rounded.
    counts_as_two = needs.x and call.counts_as_two
    if (needs.y and y is not None) or counts_as_two:
        dy = torch.zeros(x.shape if y is None else y.shape, dtype=dtype, device="cpu")
        by_y = dy.data_ptr()
    mask_bytes = 0
    if tile_masks is not None and plan.keeping:
        tile_masks = tile_masks.contiguous()
        bit, mask_bytes = tile_masks.data_ptr(), tile_masks.shape[1] * tile_masks.shape[2]
    slopes = [z.data_ptr() if z.shape[0] else None for z in gradients] if gradients else []
    if by_x or by_y or gradients:
        if isinstance(cotangents, Tensor):
            at, row = cotangents.data_ptr(), x.shape[0] * dtype.itemsize
            cotangent_addresses = [(at + k * row, 1) for k in range(plan.count)]
        else:
            # The imaginary part of a complex tensor may have a sign that is yet to be turned.
            cotangents = [z.resolve_neg() for z in cotangents]
            cotangent_addresses = [(z.data_ptr(), z.stride(0)) for z in cotangents]
        found: list[int | None] = [None] * plan.count
        if plan.extremes:
            arguments = [z.contiguous() for z in arguments]
        for k, argument in zip(plan.extremes, arguments):  # noqa: B905  (none, or all)
            found[k] = argument.data_ptr()
        whole = len(statistics) == 1
        every = statistics[0].contiguous() if whole else _one_after_the_other(statistics)
        _native.backward(
            plan.compiled, *call.shared, every.data_ptr(), found, cotangent_addresses, slopes, bit,
            mask_bytes, *call.settings, by_x, by_y,
        )  # fmt: skip
    if counts_as_two and dx is not None and dy is not None:
        dx, dy = dx.add_(dy), None
    return dx, dy, gradients


def mean(pieces: list[Any], n: int, every: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over anchors of the sum of pieces, and its slopes by every statistic.

    pieces: (shape, plus, minus or −1, offset, weight), see `row_stats/pieces.py`.  every: n
    statistics of each term, one after the other; so are the slopes.
    """
    mean = torch.empty((), dtype=every.dtype, device="cpu")
    slopes = torch.empty_like(every)
    _native.mean(
        every.dtype == torch.float64, pieces, n, every.shape[0] // n, every.data_ptr(),
        positives.data_ptr(), slopes.data_ptr(), mean.data_ptr(),
    )  # fmt: skip
    return mean, slopes


def _one_after_the_other(statistics: Sequence[Tensor]) -> Tensor:
    """Return a tensor at the address of all statistics: the first, if `planned_forward` made them.

    Those of another rank, or of a saved tensor that was packed, have any stride and lie anywhere,
    the last by chance where it should, so each is asked.
    """
    following = statistics[0].data_ptr()
    for z in statistics:
        if z.data_ptr() != following or not z.is_contiguous():
            return torch.cat([*statistics])
        following += z.nbytes
    return statistics[0]


def _by_arguments(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], needs: Wanted, dtype: torch.dtype
) -> list[Tensor]:
    """Allocate zeros for the gradient by each tensor argument, empty where it is not needed."""
    found: list[Tensor] = []
    k = 0
    for axis, axis_terms in enumerate((rows, cols)):
        for term in axis_terms:
            wanted = iter([True] * len(term.args) if needs.args is None else needs.args[k])
            for a in term.args:
                if isinstance(a, (Tensor, Partner)):
                    length = pairs.shape[1 - axis if isinstance(a, Partner) else axis]
                    length = length if next(wanted) else 0
                    found.append(torch.zeros(length, dtype=dtype, device="cpu"))
            k += 1
    return found


def tile_masks_shape(
    pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[int | torch.SymInt, ...]:
    n, m = pairs.shape
    keeping = sum(term.has_tile_mask for term in (*rows, *cols))
    return keeping, -(-n // TILE), -(-m // TILE)
