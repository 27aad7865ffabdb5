"""Code generation: a recipe written out as Triton functions that the sweeps are compiled with.

For `lse:neg:affine>` a sweep over rows gets, besides INIT, MERGE and FINALIZE,

    def visit(s, row, col, numbers, positive, present, at, state, PARTIAL):
        f = affine_value(s, numbers[0], numbers[1])
        keep = (s <= row[2][:, None]) == 0
        if PARTIAL:
            keep = keep & present & (positive == 0)
        f = tl.where(keep, f, float("-inf"))
        o0, o1 = monoids.lse_from_tile(f, at)
        m0, m1 = monoids.lse_merge(state[0], state[1], o0, o1)
        ...

so that a recipe costs no test at run time, and a kernel no line per loss.
"""

import hashlib
import linecache
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
import triton.language as tl

from pairops.ops.terms import recipe
from pairops.ops.terms.arguments import Partner
from pairops.ops.terms.term import ALL, NEG, POS

from .kernels import accumulators
from .kernels import math as triton_math
from .operands import TritonTermView, along_rows
from .translate import literal, source


@dataclass(frozen=True)
class Facts:
    """Facts of a recipe that a sweep is compiled with."""

    terms: int
    states: int = 0  # numbers per row
    arguments: int = 0  # extremes that keep their argument
    tile_masks: int = 0  # terms with a tile mask
    gradients: int = 0  # vectors along the rows that get a gradient
    row_vectors: int = 0
    col_vectors: int = 0
    scaled: bool = False  # True: there are scales beside the embeddings
    normalized: bool = True  # they are inverse norms, in two parts, else powers of two
    rows_are_y: bool = False  # the rows of the sweep are y
    band_only: bool = False  # there are POS terms only
    tile_list: bool = False  # the tiles to visit are listed
    embeddings: bool = True  # the gradient by the rows is wanted
    listed: bool = False  # positives are a list


class Sweep(NamedTuple):
    facts: Facts
    functions: tuple[Any, ...]


_SWEEPS: dict[tuple[Any, ...], Sweep] = {}


def forward(placed: Sequence[TritonTermView], **facts: Any) -> Sweep:
    """Return the functions INIT, VISIT, MERGE and FINALIZE of these terms."""
    return _once(_forward, placed, facts)


def backward(placed: Sequence[TritonTermView], **facts: Any) -> Sweep:
    """Return the function VISIT of these terms' gradients."""
    return _once(_backward, placed, facts)


def _once(
    write: Callable[[Sequence[TritonTermView], dict[str, Any]], Sweep],
    placed: Sequence[TritonTermView],
    facts: dict[str, Any],
) -> Sweep:
    terms = [(recipe.key(p.term), p.transposed, p.numbers, p.vectors, p.given) for p in placed]
    key = write, *terms, *facts.items()
    if key not in _SWEEPS:
        _SWEEPS[key] = write(placed, facts)
    return _SWEEPS[key]


def _forward(placed: Sequence[TritonTermView], facts: dict[str, Any]) -> Sweep:
    init, visit, merge = [], [], []
    values, arguments = [], []
    new: list[str] = []
    seen: list[str] = []
    for p in placed:
        monoid = p.term.statistic + ("_at" if p.term.keeps_argument else "")
        size = 2 if p.term.statistic in ("sum", "lse") or p.term.keeps_argument else 1
        held = list(range(len(new), len(new) + size))
        new += [f"m{k}" for k in held]
        mine, tile = ("".join([f"{letter}{k}, " for k in held]) for letter in "mo")
        state, other = ([f"{name}[{k}]" for k in held] for name in ("state", "other"))
        init.append(f"    {mine}= monoids.{monoid}_init(R)")
        lines = [f"    f = {_value(p)}", *_keep(p), *_select(p, "f", "f", p.term.monoid.neutral)]
        lines.append(f"    {tile}= monoids.{monoid}_from_tile(f, at)")
        lines.append(f"    {mine}= monoids.{monoid}_merge({', '.join(state)}, {tile})")
        otherwise = [f"    {mine}= {', '.join(state)},"]
        if p.term.has_tile_mask:
            # A pair counts in its tile's Σ exp(f − maximum), if only as NaN.
            selected = (
                f"o{held[1]} != 0" if p.term.statistic == "lse" else "tl.max(keep.to(tl.int32), 1)"
            )
            bit = f"b{len(seen)}"
            # Reduce to one row and not to a scalar, which Triton 3.7 refuses on Blackwell.
            lines.append(f"    {bit} = tl.max(({selected}).to(tl.int32)[None, :], 1)")
            otherwise.append(f"    {bit} = tl.zeros((1,), tl.int32)")
            seen.append(bit)
        visit += _where_visited(p, lines, otherwise)
        if p.term.keeps_argument:
            other[1] += ".to(tl.int32, bitcast=True)"
            values.append(state[0])
            arguments.append(
                f"monoids.argument({', '.join(state)}, {literal(p.term.monoid.neutral)})"
            )
        else:
            values.append(f"monoids.{monoid}_finalize({', '.join(state)})")
        merge.append(f"    {mine}= monoids.{monoid}_merge({', '.join([*state, *other])})")
    functions = {
        "init": ("R: tl.constexpr", init, new),
        "visit": (
            "s, row, col, numbers, positive, present, at, state, PARTIAL: tl.constexpr",
            visit,
            [*new, *seen],
        ),
        "merge": ("state, other", merge, new),
        "finalize": ("state", [], [*values, *arguments]),
    }
    known = Facts(
        len(placed), states=len(new), arguments=len(arguments), tile_masks=len(seen),
        band_only=all(p.term.side == POS for p in placed), **facts,
    )  # fmt: skip
    return Sweep(known, _compiled(placed, functions))


def _backward(placed: Sequence[TritonTermView], facts: dict[str, Any]) -> Sweep:
    visit: list[str] = []
    slopes = along_rows(placed)
    # Terms that every tile visits come first, so that there are `weights` to add to.
    for first, p in enumerate(sorted(placed, key=lambda p: p.term.side == POS)):
        statistic, cotangent = [_spread(k, p.transposed) for k in p.given]
        lines, otherwise = _keep(p), []
        if p.term.statistic == "lse":
            lines += [f"    f = {_value(p)} - {statistic}", *_select(p, "f", "f", -math.inf)]
            lines.append(f"    share = {cotangent} * tl.exp(f)")
        else:
            lines.append(f"    share = tl.broadcast_to({cotangent}, s.shape)")
        lines.append(f"    d = {p.term.function.name}_slopes({_arguments(p)})")
        # The share of a pair that does not count is 0; its slope may be infinite or NaN.
        spared = p.term.statistic == "lse" and p.term.function.finite
        lines += _select(p, "w", "share * d[0]", 0.0, spared)
        lines.append("    weights = weights + w" if first else "    weights = w")
        for at, (term_id, k) in enumerate(slopes):
            if placed[term_id] is p:
                lines += _select(p, "w", f"share * d[{k + 1}]", 0.0, spared)
                lines.append(f"    g{at} = by_vector[{at}] + tl.sum(w, 1)")
                otherwise.append(f"    g{at} = by_vector[{at}]")
        visit += _where_visited(p, lines, otherwise) if first else lines
    parameters = "s, row, col, numbers, positive, present, by_vector, PARTIAL: tl.constexpr"
    results = ["weights", *[f"g{at}" for at in range(len(slopes))]]
    known = Facts(
        len(placed), gradients=len(slopes),
        band_only=all(p.term.side == POS for p in placed), **facts,
    )  # fmt: skip
    return Sweep(known, _compiled(placed, {"visit": (parameters, visit, results)}))


def _where_visited(p: TritonTermView, lines: list[str], otherwise: list[str]) -> list[str]:
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


def _value(p: TritonTermView) -> str:
    return f"{p.term.function.name}_value({_arguments(p)})"


def _keep(p: TritonTermView) -> list[str]:
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


def _select(
    p: TritonTermView, name: str, what: str, fill: float, spared: bool = False
) -> list[str]:
    """Write: name = `what` where a pair counts, else `fill`. spared: or where a window drops it."""
    chosen = f"{name} = tl.where(keep, {what}, {literal(fill)})"
    if p.term.windows() and not spared:
        return [f"    {chosen}"]
    otherwise = [] if name == what else ["    else:", f"        {name} = {what}"]
    return ["    if PARTIAL:", f"        {chosen}", *otherwise]


def _compiled(
    placed: Sequence[TritonTermView], functions: dict[str, tuple[str, list[str], list[str]]]
) -> tuple[Any, ...]:
    used = sorted({p.term.function.name for p in placed})
    pair_functions: dict[str, Any] = {}
    for name in used:
        pair_functions |= _module(source(name), f"{name}_value", f"{name}_slopes")
    found = []
    for name, (parameters, lines, results) in functions.items():
        body = [f"({parameters}):", *lines, f"    return {', '.join(results)},", ""]
        # Triton's cache on disk uses names: the same text gets the same name in every process.
        called = f"{name}_{hashlib.sha256(''.join(body).encode()).hexdigest()[:12]}"
        text = "\n".join([f"def {called}{body[0]}", *body[1:]])
        found.append(_module(text, called, **pair_functions)[called])
    return tuple(found)


def _module(text: str, *names: str, **known: Any) -> dict[str, Any]:
    """Return the functions of a source text, compiled when they are called.

    Triton reads the text from the cache where Python keeps the lines of its files."""
    # Named by its content, so that two threads may do it at once.
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    filename = f"<pairops.ops.engines.triton.generated {names[0]} {digest}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    module = types.ModuleType("pairops.ops.engines.triton.generated")
    vars(module).update({"tl": tl, "monoids": accumulators, "math": triton_math, **known})
    exec(compile(text, filename, "exec"), vars(module))
    return {name: triton.jit(getattr(module, name)) for name in names}
