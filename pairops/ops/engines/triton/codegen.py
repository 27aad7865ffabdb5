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
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
import triton.language as tl

from pairops.ops.terms import recipe
from pairops.ops.terms.term import POS

from . import term_text
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
    folded: bool = False  # VISIT gets products without their scales


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
    terms = [
        (recipe.key(p.term), p.transposed, p.numbers, p.vectors, p.given, p.bounded) for p in placed
    ]
    key = write, *terms, *facts.items()
    if key not in _SWEEPS:
        _SWEEPS[key] = write(placed, facts)
    return _SWEEPS[key]


def _forward(placed: Sequence[TritonTermView], facts: dict[str, Any]) -> Sweep:
    init, visit, merge = [], [], []
    values, arguments = [], []
    new: list[str] = []
    seen: list[str] = []
    similarities = term_text.need_similarities(placed, facts)
    for p in placed:
        monoid = p.term.statistic + ("_at" if p.term.keeps_argument else "")
        size = 2 if p.term.statistic in ("sum", "lse") or p.term.keeps_argument else 1
        if p.bounded:
            monoid, size = "powers", 1
        held = list(range(len(new), len(new) + size))
        new += [f"m{k}" for k in held]
        mine, tile = ("".join([f"{letter}{k}, " for k in held]) for letter in "mo")
        state, other = ([f"{name}[{k}]" for k in held] for name in ("state", "other"))
        init.append(f"    {mine}= monoids.{monoid}_init(R)")
        value, neutral = term_text.value(p), p.term.monoid.neutral
        if p.bounded:
            value, neutral = term_text.power_of(p, similarities), 0.0
        lines = [f"    f = {value}", *term_text.keep(p), *term_text.select(p, "f", "f", neutral)]
        lines.append(f"    {tile}= monoids.{monoid}_from_tile(f, at)")
        lines.append(f"    {mine}= monoids.{monoid}_merge({', '.join(state)}, {tile})")
        otherwise = [f"    {mine}= {', '.join(state)},"]
        if p.term.has_tile_mask:
            # A pair counts in its tile's Σ exp(f − maximum), if only as NaN.
            selected = (
                f"o{held[-1]} != 0" if p.term.statistic == "lse" else "tl.max(keep.to(tl.int32), 1)"
            )
            bit = f"b{len(seen)}"
            # Reduce to one row and not to a scalar, which Triton 3.7 refuses on Blackwell.
            lines.append(f"    {bit} = tl.max(({selected}).to(tl.int32)[None, :], 1)")
            otherwise.append(f"    {bit} = tl.zeros((1,), tl.int32)")
            seen.append(bit)
        visit += term_text.where_visited(p, lines, otherwise)
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
            f"{_first_parameter(facts)}, row, col, numbers, positive, present, at, state, "
            "PARTIAL: tl.constexpr",
            [*_scaled(facts), *visit],
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
    similarities = term_text.need_similarities(placed, facts)
    # Terms that every tile visits come first, so that there are `weights` to add to.
    once = sorted(_once_a_term(placed), key=lambda views: views[0].term.side == POS)
    for first, views in enumerate(once):
        p, otherwise = views[0], []
        if p.bounded:
            lines = term_text.bounded_weights(views, similarities)
        else:
            lines = term_text.weights(p)
        lines.append("    weights = weights + w" if first else "    weights = w")
        for at, (term_id, k) in enumerate(slopes):
            if placed[term_id] is p:
                lines += term_text.slopes(p, at, k)
                otherwise.append(f"    g{at} = by_vector[{at}]")
        visit += term_text.where_visited(p, lines, otherwise) if first else lines
    given = _first_parameter(facts)
    parameters = f"{given}, row, col, numbers, positive, present, by_vector, PARTIAL: tl.constexpr"
    results = ["weights", *[f"g{at}" for at in range(len(slopes))]]
    known = Facts(
        len(placed), gradients=len(slopes),
        band_only=all(p.term.side == POS for p in placed), **facts,
    )  # fmt: skip
    return Sweep(known, _compiled(placed, {"visit": (parameters, _scaled(facts) + visit, results)}))


def _once_a_term(placed: Sequence[TritonTermView]) -> list[list[TritonTermView]]:
    """List the views, those of one bounded term in one set together: they have one exponential."""
    views: dict[Any, list[TritonTermView]] = {}
    for p in placed:
        # A term may be placed twice, with another cotangent.
        views.setdefault((p.term, p.given) if p.bounded else p, []).append(p)
    return list(views.values())


def _first_parameter(facts: dict[str, Any]) -> str:
    return "dot" if facts["folded"] else "s"


def _scaled(facts: dict[str, Any]) -> list[str]:
    """Write s, if it is not given. Its scales' product is the same if rows and columns swap."""
    if not facts["folded"]:
        return []
    return ["    s = dot * (row[0][:, None] * col[0][None, :])"]


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
