"""Explain a loss: its calls of `row_stats`, the terms of each, and the engine that serves it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pairops.ops.engines import asked_in_turn, engine
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.op import watched
from pairops.ops.terms.arguments import EarlierAt
from pairops.ops.terms.checks import function
from pairops.ops.terms.tensor_checks import check_embeddings
from pairops.ops.terms.term import Earlier, Term

__all__ = ["explain"]

_SIDES = {"pos": "positives", "neg": "negatives", "all": "all pairs"}


def explain(loss: Callable[..., Any], x: Tensor, *args: Any, **keywords: Any) -> None:
    """Print what a loss asks of `row_stats`: terms, the engine of each call, why others declined.

    The loss is called once, without gradients.

    Args:
        loss: a loss of this library or one's own, called as loss(x, *args, **keywords).
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        args: further arguments of the loss, such as labels.
        keywords: keywords of the loss.

    Raises:
        ValueError: the loss takes no statistic.

    Example:
        `pairops.explain(pairops.ms_loss, x, labels, distance="l2")`
    """
    function("loss", loss, "a loss")
    check_embeddings("x", x)
    with torch.no_grad(), engine("auto"), watched() as calls:
        loss(x, *args, **keywords)
    if not calls:
        raise ValueError("loss took no statistic; it must be built on pairops.row_stats")
    name = getattr(loss, "__name__", type(loss).__name__)
    print(f"{name}: {len(calls)} call{'s' * (len(calls) > 1)} of row_stats")
    for number, call in enumerate(calls, 1):
        print(f"{number}. {_compared(call.pairs)}")
        for axis, terms in (("row", call.rows), ("column", call.cols)):
            for line in _terms(terms):
                print(f"   of every {axis}: {line}")
        for asked, reason in asked_in_turn(call.pairs, call.rows, call.cols):
            print(f"   engine {asked}: {'serves it' if reason is None else f'declines: {reason}'}")


def _compared(pairs: Pairs) -> str:
    n, m = pairs.shape
    dtype = str(pairs.x.dtype).removeprefix("torch.")
    other = "itself" if pairs.y is None else f"{m:,} others"
    how = "similarities" if pairs.measure is None else f"distances, {pairs.measure.name}"
    unit = "unit vectors" if pairs.scales.x is not None else "rows as they are"
    return f"{n:,} rows of {pairs.x.shape[1]} {dtype} with {other}: {how} of {unit}"


def _terms(terms: Sequence[Term]) -> Iterator[str]:
    names = {id(term): f"term {number}" for number, term in enumerate(terms, 1)}
    for number, term in enumerate(terms, 1):
        given = ", ".join(["s", *[_shown(value, names) for value in term.args]])
        window = "".join(
            f", {word} {_shown(bound, names)}"
            for word, bound in (("above", term.above), ("below", term.below))
            if bound is not None
        )
        constant = "" if term.grad else ", held constant"
        of = f"{term.function.name}({given}) over {_SIDES[term.side]}"
        yield f"{number}) {term.statistic} of {of}{window}{constant}"


def _shown(value: Any, names: dict[int, str]) -> str:
    if isinstance(value, Earlier):
        value = value.term
    if isinstance(value, Term):
        return names.get(id(value), "an earlier term")
    if isinstance(value, EarlierAt):
        return f"term {value.place + 1}"
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    return f"{value:g}" if isinstance(value, float) else type(value).__name__.lower()
