"""The lines of a generated function for one term: its value, which pairs count, their weights.

`s` is a similarity; in a sweep that is `folded`, `dot` is a product without its scales.
"""

import math
from collections.abc import Sequence
from typing import Any

from pairops.ops.terms.arguments import Partner
from pairops.ops.terms.term import ALL, NEG, POS

from .operands import TritonTermView
from .translate import literal


def weights(p: TritonTermView) -> list[str]:
    """Write `w`, what a pair adds to its weight, of which slopes need `share` and `d`."""
    statistic, cotangent = [_spread(k, p.transposed) for k in p.given]
    lines = keep(p)
    if p.term.statistic == "lse":
        lines += [f"    f = {value(p)} - {statistic}", *select(p, "f", "f", -math.inf)]
        lines.append(f"    share = {cotangent} * monoids.exp(f)")
    elif p.term.side == POS:
        # What does not depend on s, Triton would compute by other threads, with masks of their own.
        lines.append(f"    share = tl.where(s == s, {cotangent}, s)")
    else:
        lines.append(f"    share = tl.broadcast_to({cotangent}, s.shape)")
    lines.append(f"    d = {p.term.function.name}_slopes({_arguments(p)})")
    return [*lines, *select(p, "w", "share * d[0]", 0.0, _spared(p))]


def _spared(p: TritonTermView) -> bool:
    """Return whether a pair that a window drops has a share of 0, and a slope that is a number."""
    return p.term.statistic == "lse" and p.term.function.finite


def slopes(p: TritonTermView, at: int, k: int) -> list[str]:
    """Write the sum of slopes by the argument k, which is along the rows."""
    if p.bounded:  # by the base, the one argument that may be a vector
        return [f"    g{at} = by_vector[{at}] - row[{p.given[0]}] * tl.sum(owners, 1)"]
    lines = select(p, "w", f"share * d[{k + 1}]", 0.0, _spared(p))
    return [*lines, f"    g{at} = by_vector[{at}] + tl.sum(w, 1)"]


def bounded_weights(views: Sequence[TritonTermView], similarities: bool) -> list[str]:
    """Write `w` of the views of a bounded term: exp(scale · s) times the shares at s = 0."""
    lines = [f"    power = {power_of(views[0], similarities)}"]
    names = ["partners" if p.transposed else "owners" for p in views]
    for p, name in zip(views, names, strict=True):
        lines += [*keep(p), *select(p, name, "power", 0.0)]
    shares = [_spread(p.given[0], p.transposed) for p in views]
    if len(views) == 2 and not views[0].term.windows():
        return [*lines, f"    w = {names[0]} * ({shares[0]} + {shares[1]})"]
    parts = [f"{name} * {share}" for name, share in zip(names, shares, strict=True)]
    return [*lines, f"    w = {' + '.join(parts)}"]


def need_similarities(placed: Sequence[TritonTermView], facts: dict[str, Any]) -> bool:
    """Return whether full tiles need s: else exponents are made of what is multiplied."""
    unbounded = [p for p in placed if not p.bounded or p.term.windows()]
    return not facts["folded"] or any(p.term.side != POS for p in unbounded)


def power_of(p: TritonTermView, similarities: bool) -> str:
    """Write exp(scale · s) of a bounded term."""
    scale = f"(numbers[{p.numbers[0]}] * monoids.LOG2_E)"
    if similarities:
        return f"monoids.exp2(s * {scale})"
    return f"monoids.exp2(dot * col[0][None, :] * (row[0] * {scale})[:, None])"


def where_visited(p: TritonTermView, lines: list[str], otherwise: list[str]) -> list[str]:
    """Leave POS terms out of full tiles, which have no positives."""
    if p.term.side != POS:
        return lines
    indented = [f"    {line}" for line in lines]
    if not otherwise:
        return ["    if PARTIAL:", *indented]
    return ["    if PARTIAL:", *indented, "    else:", *[f"    {line}" for line in otherwise]]


def _spread(vector: int, transposed: bool) -> str:
    return f"col[{vector}][None, :]" if transposed else f"row[{vector}][:, None]"


def _arguments(p: TritonTermView) -> str:
    numbers, vectors = iter(p.numbers), iter(p.vectors)
    given = ["s"]
    for a in p.term.args:
        if isinstance(a, float):
            given.append(f"numbers[{next(numbers)}]")
        else:
            given.append(_spread(next(vectors), isinstance(a, Partner) != p.transposed))
    return ", ".join(given)


def value(p: TritonTermView) -> str:
    return f"{p.term.function.name}_value({_arguments(p)})"


def keep(p: TritonTermView) -> list[str]:
    """Write `keep`, the pairs that count; in a full tile only if there is a window."""
    side = {POS: "positive", NEG: "present & (positive == 0)", ALL: "present"}[p.term.side]
    windows = iter(p.vectors[len(p.vectors) - len(p.term.windows()) :])
    # Not the opposite comparison, so that a NaN counts.
    inside = [
        f"((s {sign} {_spread(next(windows), p.transposed)}) == 0)"
        for bound, sign in ((p.term.above, "<="), (p.term.below, ">="))
        if bound is not None
    ]
    if not inside:
        return ["    if PARTIAL:", f"        keep = {side}"]
    return [
        f"    keep = {' & '.join(inside)}",
        "    if PARTIAL:",
        f"        keep = keep & ({side})",
    ]


def select(p: TritonTermView, name: str, what: str, fill: float, spared: bool = False) -> list[str]:
    """Write: name = `what` where a pair counts, else `fill`. spared: or where a window drops it."""
    chosen = f"{name} = tl.where(keep, {what}, {literal(fill)})"
    if p.term.windows() and not spared:
        return [f"    {chosen}"]
    otherwise = [] if name == what else ["    else:", f"        {name} = {what}"]
    return ["    if PARTIAL:", f"        {chosen}", *otherwise]
