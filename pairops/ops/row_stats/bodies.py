"""Bodies of the ops `row_stats` and `row_stats_backward`, and their fakes for compilers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pairops.ops.bindings.schemas import library
from pairops.ops.distributed.allocation import refusing
from pairops.ops.engines import ENGINES, first_use, tile_masks_shape
from pairops.ops.pairs.distances import Measure
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Cache, Relation, Scales
from pairops.ops.pairs.similarity import no_autocast
from pairops.ops.terms.recipe import unpack

from . import picked_rows
from .backward import by_vector
from .backward import wanted as gradients_wanted


def _forward(
    x: Tensor,
    y: Tensor | None,
    scale_x: Tensor | None,
    scale_y: Tensor | None,
    relation: list[Tensor],
    picked: Tensor | None,
    measure: str,
    prepared: list[Tensor],
    vectors: list[Tensor],
    numbers: list[float],
    recipe: str,
    engine: str,
    traced: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    scales, cache = Scales(scale_x, scale_y), Cache({engine: prepared})
    related = Relation.of(relation, picked)
    pairs = Pairs(x, y, related, scales, cache, measure=Measure.of(measure))
    with torch.no_grad(), no_autocast(x.device.type), first_use.in_body():
        rows, cols = unpack(recipe, numbers if traced is None else traced.tolist(), vectors)
        found = picked_rows.forward(ENGINES[engine], pairs, rows, cols)
        # A compiler may not know how many rows are picked, nor then how many tiles there are.
        return found if picked is None else (*found[:2], x.new_empty(0, dtype=torch.uint8))


def backward(
    x: Tensor,
    y: Tensor | None,
    scale_x: Tensor | None,
    scale_y: Tensor | None,
    relation: list[Tensor],
    picked: Tensor | None,
    measure: str,
    prepared: list[Tensor],
    vectors: list[Tensor],
    numbers: list[float],
    recipe: str,
    engine: str,
    traced: Tensor | None,
    statistics: list[Tensor],
    arguments: list[Tensor],
    tile_masks: Tensor,
    cotangents: list[Tensor],
    need_x: bool,
    need_y: bool,
    need_vectors: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute gradients of Σ cotangent·statistic by x, y and every vector, empty if not needed.

    A vector without a gradient, a window's, gets an empty tensor too. In grad mode all of it is a
    differentiable function of embeddings, vectors, statistics and cotangents. Then `blockwise`
    sweeps whatever the engine was, and visits all tiles: tile masks serve only their own engine.
    """
    scales, cache = Scales(scale_x, scale_y), Cache({engine: prepared})
    related = Relation.of(relation, picked)
    pairs = Pairs(x, y, related, scales, cache, measure=Measure.of(measure))
    with no_autocast(x.device.type), first_use.in_body():
        rows, cols = unpack(recipe, numbers if traced is None else traced.tolist(), vectors)
        terms = (*rows, *cols)
        dx, dy, by_term = picked_rows.backward(
            engine, pairs, rows, cols, statistics, arguments, tile_masks, [*cotangents],
            gradients_wanted(terms, need_x, need_y, need_vectors),
        )  # fmt: skip
        # Round once, when all is added up.
        dx = x.new_empty(0) if dx is None else dx.to(x.dtype)
        dy = x.new_empty(0) if dy is None else dy.to(x.dtype)
        return dx, dy, by_vector(terms, by_term, need_vectors)


def _forward_fake(
    x: Tensor,
    y: Tensor | None,
    scale_x: Tensor | None,
    scale_y: Tensor | None,
    relation: list[Tensor],
    picked: Tensor | None,
    measure: str,
    prepared: list[Tensor],
    vectors: list[Tensor],
    numbers: list[float],
    recipe: str,
    engine: str,
    traced: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    scales, cache = Scales(scale_x, scale_y), Cache({engine: prepared})
    related = Relation.of(relation, picked)
    pairs = Pairs(x, y, related, scales, cache, measure=Measure.of(measure))
    n, m = pairs.shape
    rows, cols = unpack(recipe, _stand_ins(numbers, traced), vectors)
    owners = [(term, n) for term in rows] + [(term, m) for term in cols]
    statistics = [x.new_empty(length, dtype=pairs.dtype) for _, length in owners]
    arguments = [
        x.new_empty(length, dtype=torch.int64) for term, length in owners if term.keeps_argument
    ]
    tile_masks: tuple[int | torch.SymInt, ...] = (0,)
    if picked is None:
        tile_masks = tile_masks_shape(ENGINES[engine], pairs, rows, cols)
    return statistics, arguments, x.new_empty(tile_masks, dtype=torch.uint8)


def _backward_fake(
    x: Tensor,
    y: Tensor | None,
    _scale_x: Tensor | None,
    _scale_y: Tensor | None,
    _relation: list[Tensor],
    _picked: Tensor | None,
    _measure: str,
    _prepared: list[Tensor],
    vectors: list[Tensor],
    numbers: list[float],
    recipe: str,
    _engine: str,
    traced: Tensor | None,
    _statistics: list[Tensor],
    _arguments: list[Tensor],
    _tile_masks: Tensor,
    _cotangents: list[Tensor],
    need_x: bool,
    need_y: bool,
    need_vectors: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    rows, cols = unpack(recipe, _stand_ins(numbers, traced), vectors)
    dx, dy = (
        torch.empty_like(z, memory_format=torch.contiguous_format) if needed else z.new_empty(0)
        for z, needed in ((x, need_x), (x if y is None else y, need_y))
    )
    return dx, dy, by_vector([*rows, *cols], {}, need_vectors, unknown=True)


def _stand_ins(numbers: list[float], traced: Tensor | None) -> list[float]:
    """Return zeros for numbers that a graph computes, since there are no values."""
    return numbers if traced is None else [0.0] * traced.shape[0]


# Only here can a refused allocation be distinguished from other errors in compiled code.
library.impl("row_stats", refusing(_forward), "CompositeExplicitAutograd")
library.impl("row_stats_backward", refusing(torch.no_grad()(backward)), "CompositeExplicitAutograd")
torch.library.register_fake("pairops::row_stats", _forward_fake)
torch.library.register_fake("pairops::row_stats_backward", _backward_fake)
