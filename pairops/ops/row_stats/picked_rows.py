"""Statistics of rows that are picked from x by index, and their gradient: a block at a time.

The rows of a block are copied, an engine sweeps them, and what their copies get is added up by the
row of x. So working memory does not grow with the number of picked rows, whichever engine serves
the call. Terms of columns need all rows at once: then one block has all.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pairops.ops.engines import ENGINES, Engine, cpu_engine, tile_masks_shape
from pairops.ops.engines.plan import plan_of, serves
from pairops.ops.pairs.indexing import add_rows
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.picked import copied, of_rows
from pairops.ops.terms.term import Term, Wanted

from . import levels

# A block has an eighth as many rows as x, or so many if that is more: so few are not worth a start.
# Their copies and gradients then take little beside those of x.
ROWS = 4096
# A block repeats its anchors' lists: as many entries as there are rows, or so many.
ENTRIES = 1 << 22


def most(x: Tensor, count: int) -> tuple[int, int]:
    """Return how many rows a block has at most, of `count` picked from x, and entries of a list."""
    return max(x.shape[0] // 8, ROWS), max(count, ENTRIES)


def prepare(engine: Engine, pairs: Pairs) -> list[Tensor]:
    """Prepare the embeddings of pairs that are not picked; a block is prepared when it is swept."""
    return engine.prepare(pairs) if pairs.relation.picked is None else []


def forward(
    engine: Engine, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Compute `levels.forward`, of picked rows by blocks; tile masks of these are (bytes,), one
    block's after the other's."""
    if pairs.relation.picked is None:
        return levels.forward(engine, pairs, rows, cols)
    # An engine that torch differentiates holds all pairs at once, however few rows a block has.
    whole = bool(cols) or engine.backward is None
    statistics: list[Tensor] = []
    arguments: list[Tensor] = []
    tile_masks: list[Tensor] = []
    for first, _, block, terms in _blocks(pairs, rows, whole):
        made = levels.forward(engine, block, terms, cols)
        statistics, arguments = [
            parts if whole else _written(results, parts, first, pairs.shape[0])
            for results, parts in zip((statistics, arguments), made[:2], strict=True)
        ]
        tile_masks.append(made[2].flatten())
    return statistics, arguments, torch.cat(tile_masks)


def backward(
    engine: str,
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    statistics: Sequence[Tensor],
    arguments: Sequence[Tensor],
    tile_masks: Tensor | None,
    cotangents: list[Tensor],
    wanted: Wanted,
) -> tuple[Tensor | None, Tensor | None, dict[int, list[Tensor]]]:
    """Compute `levels.backward`, of picked rows by blocks.

    The CPU engine takes extremes alone itself: torch's way, `levels.backward`, takes more memory,
    and time for every column of each block.
    """
    picked = pairs.relation.picked
    if picked is None:
        return levels.backward(
            engine, pairs, rows, cols, statistics, arguments, tile_masks, cotangents, wanted
        )
    by_x = by_y = None
    if wanted.x:
        by_x = torch.zeros(pairs.x.shape, dtype=pairs.dtype, device=pairs.x.device)
    by_term: dict[int, list[Tensor]] = {k: [] for k in range(len(rows) + len(cols))}
    split, offset = len(rows), 0
    of_row_terms = sum(term.keeps_argument for term in rows)
    wanted = wanted._replace(rounded=False)  # it is rounded once, when all is added up
    of_cpu = engine == cpu_engine.NAME and not torch.is_grad_enabled()
    plan = plan_of(rows, cols) if of_cpu else None
    if plan is not None and not (plan.few and serves(plan)):
        plan = None
    for first, last, block, terms in _blocks(pairs, rows, bool(cols)):
        here, masks = slice(first, last), None
        if tile_masks is not None and tile_masks.numel():
            shape = [int(k) for k in tile_masks_shape(ENGINES[engine], block, terms, cols)]
            end = offset + math.prod(shape)
            masks, offset = tile_masks[offset:end].view(shape), end
        values = [z[here] for z in statistics[:split]] + [*statistics[split:]]
        attained = [z[here] for z in arguments[:of_row_terms]] + [*arguments[of_row_terms:]]
        given = [z[here] for z in cotangents[:split]] + cotangents[split:]
        slopes: dict[int, list[Tensor]] = {}
        if plan is None:
            dx, dy, slopes = levels.backward(
                engine, block, terms, cols, values, attained, masks, given, wanted
            )
        else:
            dx, dy, _ = cpu_engine.planned_backward(
                block, terms, cols, values, attained, given, None, wanted, plan
            )
        if dx is not None and by_x is not None:
            by_x = _added_rows(by_x, picked[here], dx)
        by_y = dy if by_y is None or dy is None else _added(by_y, dy)
        for k, parts in slopes.items():
            by_owner = [role == "owner" for role, _, grad in (*rows, *cols)[k].operands() if grad]
            by_term[k] = _written(by_term[k], parts, first, pairs.shape[0], by_owner)
    return by_x, by_y, by_term


def _blocks(
    pairs: Pairs, rows: Sequence[Term], whole: bool
) -> Iterator[tuple[int, int, Pairs, list[Term]]]:
    """Yield blocks: the first row and the end, pairs with copies, and the terms of its rows.
    whole: one block has all rows."""
    first = 0
    for last in [pairs.shape[0]] if whole else _ends(pairs):
        yield first, last, copied(pairs, first, last), of_rows(rows, first, last)
        first = last


def _ends(pairs: Pairs) -> list[int]:
    """Return where blocks end: they are even or, with a list, as large as `most` allows."""
    count, relation = pairs.shape[0], pairs.relation
    rows, entries = most(pairs.x, count)
    extent = -(-count // -(-count // rows)) if count else 1
    if relation.entries is None:
        return [*range(extent, count, extent), count]
    total = (relation.pos_end - relation.pos_begin).cumsum(0).cpu()
    ends, end = [], 0
    while end < count:
        before = int(total[end - 1]) if end else 0
        fitting = int(torch.searchsorted(total, before + entries, right=True))
        end = min(max(fitting, end + 1), end + extent, count)
        ends.append(end)
    return ends or [0]


def _added(total: Tensor, part: Tensor) -> Tensor:
    """Return the sum; without grad mode it overwrites `total`."""
    return total + part if torch.is_grad_enabled() else total.add_(part)


def _added_rows(total: Tensor, at: Tensor, rows: Tensor) -> Tensor:
    """Return the sum with rows added by destination, as `add_rows` does; without grad mode it
    overwrites `total`."""
    if torch.is_grad_enabled():
        return total + add_rows(total, at, rows)
    if total.device.type == "cpu":
        return total.index_add_(0, at, rows)
    return total.index_put_((at,), rows, accumulate=True)


def _written(
    results: list[Tensor],
    parts: Sequence[Tensor],
    first: int,
    count: int,
    by_row: Sequence[bool] | None = None,
) -> list[Tensor]:
    """Return results of all rows with the parts of a block, whose first row is `first`, among them.

    A part is written where it stands among `count` rows: if parts were kept, they would lie between
    the large buffers of one block and the next, and freed memory would be of no use to these.

    by_row: False for results that have no value for each row, whose parts are added up. None: all
    have one.
    """
    written = []
    for k, part in enumerate(parts):
        if by_row is not None and not by_row[k]:
            written.append(results[k] + part if results else part)
        elif len(part) == count:
            written.append(part)
        else:
            whole = results[k] if results else part.new_empty((count, *part.shape[1:]))
            whole[first : first + len(part)] = part
            written.append(whole)
    return written
