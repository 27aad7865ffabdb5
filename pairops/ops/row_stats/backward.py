"""The gradient of row statistics: an engine's sweep, the pairs of extremes, then the scale."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pairops.ops.engines import ENGINES
from pairops.ops.engines.blockwise import engine as blockwise_engine
from pairops.ops.pairs.distances import Squares
from pairops.ops.pairs.indexing import add_rows
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import apply_scale, normalize_backward
from pairops.ops.terms.arguments import Argument, Between, Partner, Table
from pairops.ops.terms.term import Term, Wanted


def wanted(
    terms: Sequence[Term], need_x: bool, need_y: bool, need_vectors: Iterable[bool]
) -> Wanted:
    """Return the wanted gradients. need_vectors: one flag per vector, as `pack` orders them."""
    flags = iter(need_vectors)
    by_args, rounded = [], True
    for term in terms:
        rounded = rounded and not term.keeps_argument
        needed = [(has_grad, next(flags)) for _, _, has_grad in term.operands()]
        by_args.append([need for has_grad, need in needed if has_grad])
    return Wanted(need_x, need_y, rounded, by_args)


def of_terms(
    pairs: Pairs,
    rows: Sequence[Term],
    cols: Sequence[Term],
    engine: str,
    statistics: Sequence[Tensor],
    arguments: Sequence[Tensor],
    tile_masks: Tensor | None,
    cotangents: Sequence[Tensor],
    wanted: Wanted,
) -> tuple[Tensor | None, Tensor | None, dict[int, list[Tensor]]]:
    """Compute gradients by x and y, None if not wanted, and by each term's tensors with gradient.

    They are in the dtype of statistics, or in any if `wanted.rounded`. arguments: of terms that
    keep one. The gradients by x and y include those through the squared norms of a distance.
    """
    serving = ENGINES[engine]
    if torch.is_grad_enabled():
        pairs = pairs.with_differentiable_scales()
        if serving is not blockwise_engine:
            serving, tile_masks = blockwise_engine, None
    assert serving.backward is not None, "torch differentiates that engine's forward itself"
    terms = [(0, term) for term in rows] + [(1, term) for term in cols]
    swept = [k for k, (_, term) in enumerate(terms) if not term.extreme]
    extremes = [k for k, (_, term) in enumerate(terms) if term.keeps_argument]
    composed: list[int] = []  # the terms that are differentiated as functions of similarities
    if pairs.measure is not None:
        composed = extremes if serving.TAKES_DISTANCES else swept + extremes
    operand_counts = {k: sum(z.has_grad for z in terms[k][1].operands()) for k in composed}
    squares = pairs.squares() if composed else None
    if squares is not None:
        terms, wanted = _composed(squares, pairs, terms, composed, wanted)
    gradients: list[tuple[Tensor | None, Tensor | None]] = []
    by_term: dict[int, list[Tensor]] = {}
    if swept:
        dx, dy, flat = serving.backward(
            pairs,
            [terms[k][1] for k in swept if terms[k][0] == 0],
            [terms[k][1] for k in swept if terms[k][0] == 1],
            [statistics[k] for k in swept],
            [cotangents[k] for k in swept],
            tile_masks,
            wanted.of(swept),
        )
        gradients.append((dx, dy))
        remaining = iter(flat)
        for k in swept:
            by_term[k] = [next(remaining) for z in terms[k][1].operands() if z.has_grad]
    if extremes:
        rows_of = (
            apply_scale(pairs.x, pairs.scales.x, pairs.dtype),
            apply_scale(pairs.other, pairs.scales.y, pairs.dtype),
        )
    for k, argument in zip(extremes, arguments, strict=True):
        axis, term = terms[k]
        by_owner, by_partner, by_term[k] = extreme_backward(
            term, rows_of[axis], rows_of[1 - axis], argument, cotangents[k]
        )
        dx, dy = (by_owner, by_partner) if axis == 0 else (by_partner, by_owner)
        if wanted.x:
            dx = dx + dy if pairs.y is None else dx
            dx = normalize_backward(dx, pairs.x, pairs.scales.x, pairs.relation.valid_x)
        if wanted.y:
            dy = normalize_backward(dy, pairs.other, pairs.scales.y, pairs.relation.valid_y)
        gradients.append((dx, dy))
    if squares is not None:
        slopes = [by_term[k][operand_counts[k] :] for k in composed]
        by_term |= {k: by_term[k][: operand_counts[k]] for k in composed}
        if pairs.scales.x is None:
            axes, known = (0,) if pairs.y is not None else (0, 1), pairs.relation
            of_x, of_y = (pairs.x, known.valid_x), (pairs.other, known.valid_y)
            gradients.append(
                (
                    squares.gradient(slopes, axes, *of_x) if wanted.x else None,
                    squares.gradient(slopes, (1,), *of_y) if wanted.y else None,
                )
            )

    def added(k: int) -> Tensor:
        return functools.reduce(torch.add, [z for g in gradients if (z := g[k]) is not None])

    return added(0) if wanted.x else None, added(1) if wanted.y else None, by_term


_Terms = list[tuple[int, Term]]  # each with the axis of its owners


def _composed(
    squares: Squares, pairs: Pairs, terms: _Terms, composed: Sequence[int], wanted: Wanted
) -> tuple[_Terms, Wanted]:
    """Compose some of the terms with the distance; return all terms and the gradients to ask for.

    Gradients by squared norms are among these where a gradient leads through them, by windows
    never."""
    made, args = list(terms), []
    constant = pairs.scales.x is not None  # squared norms of unit vectors
    need_y = wanted.x if pairs.y is None else wanted.y
    by_squares = squares.wanted(wanted.x and not constant, need_y and not constant)
    for k, (axis, term) in enumerate(terms):
        count = sum(z.has_grad for z in term.operands())
        args.append([True] * count if wanted.args is None else [*wanted.args[k]])
        if k in composed:
            args[k] += by_squares + [False] * len(term.windows())
            # The pair of an extreme was inside the window, even if rounding now puts it outside.
            alone = replace(term, above=None, below=None) if term.extreme else term
            made[k] = axis, squares.of_term(alone, axis)
    return made, wanted._replace(args=args, rounded=wanted.rounded and constant)


def by_vector(
    terms: Sequence[Term],
    by_term: Mapping[int, Sequence[Tensor]],
    needs: Sequence[bool] | None = None,
    *,
    unknown: bool = False,
) -> list[Tensor]:
    """Return gradients in the order of `pack`'s vectors; with `unknown`, only their shapes.

    needs: one flag per vector; None: all that have a gradient.
    """
    result: list[Tensor] = []
    for k, term in enumerate(terms):
        found = iter(by_term.get(k, ()))
        for _, z, has_grad in term.operands():
            gradient = next(found, None) if has_grad else None
            if not has_grad or not (needs is None or needs[len(result)]):
                result.append(z.new_empty(0))
            elif unknown:
                result.append(torch.empty_like(z, memory_format=torch.contiguous_format))
            else:
                assert gradient is not None, "every term with a gradient was weighed"
                result.append(gradient)
    return result


def extreme_backward(
    term: Term, owners: Tensor, partners: Tensor, argument: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute an extreme's gradients by owners, by partners and by the term's tensor arguments.

    They go to one pair per owner: O(N·D), and no sweep. All of it is differentiable torch.

    owners, partners: scaled embeddings.  argument: (N,) the partner that attained the extreme, or
    −1.
    """
    found = argument >= 0
    at = argument.clamp(min=0)
    if partners.shape[0] == 0:  # nothing to index; every argument is −1
        by_vector = [torch.zeros_like(z) for _, z, has_grad in term.operands() if has_grad]
        return torch.zeros_like(owners), torch.zeros_like(partners), by_vector

    def select(values: Any) -> Tensor:
        """Replace values without a pair by 0, since 0·NaN would pass a NaN on."""
        return torch.where(found if values.dim() == 1 else found.unsqueeze(1), values, 0)

    owner, partner = select(owners), select(partners.index_select(0, at))
    s = (owner * partner).sum(1)
    # Further embeddings of the pair of each owner, by the argument that holds them.
    others = {
        k: (select(a.owners), select(a.partners.index_select(0, at)))
        for k, a in enumerate(term.args)
        if isinstance(a, Between)
    }
    args = [
        (others[k][0] * others[k][1]).sum(1) if k in others else _of_pairs(a, at)
        for k, a in enumerate(term.args)
    ]
    slope, *slopes = term.slopes(s, *args)
    weight = select(cotangent * slope).unsqueeze(1)
    by_vector = []
    for k, a in enumerate(term.args):
        if isinstance(a, Partner):
            by_vector.append(add_rows(a.values, at, select(cotangent * slopes[k])))
        elif isinstance(a, Tensor):
            by_vector.append(select(cotangent * slopes[k]))
        elif isinstance(a, Between) and a.grad:
            by_product = select(cotangent * slopes[k]).unsqueeze(1)
            by_partners = add_rows(a.partners, at, by_product * others[k][0])
            by_vector += [by_product * others[k][1], by_partners]
    return weight * partner, add_rows(partners, at, weight * owner), by_vector


def _of_pairs(argument: Argument, at: Tensor) -> Any:
    """Return the argument of the pair of each owner with its partner `at`."""
    if isinstance(argument, Table):
        return argument.values[argument.owners, argument.partners[at]]
    return argument.values[at] if isinstance(argument, Partner) else argument
