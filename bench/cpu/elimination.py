"""Where the time of a native sweep goes on one thread: each part by itself, or left out.

The engine is not instrumented; parts are told apart by sweeps that lack them. Milliseconds, which
add up to the whole sweep:

- products: those of the visited tiles, at the rate of the micro-kernel on one tile in cache.
  Derived from that rate.
- functions: by how much the loss's terms take longer than one plain sum of similarities over the
  same tiles. A difference of two measured sweeps.
- packing: of all columns, and as much again for the rows, which is assumed. In forward what the
  columns cost is extrapolated, from sweeps of 12 and of 24 rows to one of none; in backward it is
  measured, by a sweep whose bits say that no tile keeps a pair, together with the zeros that a
  gradient begins as and its way back through the scale.
- tiles: the plain sum at D = 1 less its own products and packing. Masks, the sum, merging,
  waiting for one's turn. A difference.
- rest: the plain sum at D less products, packing and tiles. What these cost more in one sweep
  than apart, and what padded tiles and the second half of those on the diagonal multiply. A
  difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.contestants import Step
from bench.cpu.engine_sweeps import Sweeps, Terms, pairs_of
from bench.problems import Setting, problem
from bench.report import columns, number, percent
from bench.yardsticks import gigaflop, products
from pairops.ops.engines.cpu_addresses import TILE
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import NEG, total

PARTS = ("products", "functions", "packing", "tiles", "rest")
KERNEL = "product"  # in the place of a loss: the micro-kernel alone
FEW = 12  # rows: whole panels of every instruction set

Key = tuple[str, str, int]  # what is timed, in which sweep, at which D


def visited(bits: Tensor | None) -> float:
    """The share of the tiles on and above the diagonal that a backward sweep visits."""
    if bits is None:
        return 1.0
    tiles = bits.shape[1]
    return bits.amax(0).triu().sum().item() / (tiles * (tiles + 1) / 2)


def plain(pairs: Pairs, windowed: bool) -> Terms:
    """A sum of similarities over negatives, nearly all pairs. With a window, which keeps each of
    them, bits may say which tiles are visited."""

    def of(owners: int) -> tuple[Any, ...]:
        return (total(NEG, 1.0, 0.0, above=torch.full((owners,), -2.0) if windowed else None),)

    n, m = pairs.shape
    return of(n), () if pairs.y is None else of(m)


def idle(pairs: Pairs) -> Sweeps:
    """Of which backward visits no tile."""
    n, m = pairs.shape
    nothing = torch.zeros(1, -(-n // TILE), -(-m // TILE), dtype=torch.uint8)
    return Sweeps(pairs, plain(pairs, True), nothing)


def steps(whole: Mapping[str, Sweeps], n: int, d: int) -> dict[Key, Step]:
    """What `parts` needs the times of beside the losses' own sweeps and the micro-kernel."""
    found: dict[Key, Step] = {}
    given = problem(Setting("ms", n, d))
    for depth in {d, 1}:
        for loss, sweeps in whole.items():
            pairs = pairs_of(loss, n, depth)
            bits = None if sweeps.bits is None else sweeps.bits.amax(0, keepdim=True)
            forward = Sweeps(pairs, plain(pairs, False))
            backward = forward if bits is None else Sweeps(pairs, plain(pairs, True), bits)
            found[f"plain {loss}", "forward", depth] = forward.forward
            found[f"plain {loss}", "backward", depth] = backward.backward
            found[f"idle {loss}", "backward", depth] = idle(pairs).backward
        x, labels = given.x.detach()[:, :depth].contiguous(), given.other
        for rows in (FEW, 2 * FEW):
            few = Pairs.of(x[:rows], labels[:rows], ref_emb=x, ref_labels=labels)
            found[f"{rows} rows", "forward", depth] = Sweeps(few, plain(few, False)).forward
        few = Pairs.of(x[:FEW], labels[:FEW], ref_emb=x, ref_labels=labels)
        found[f"idle {FEW} rows", "backward", depth] = idle(few).backward
    return found


def parts(
    loss: str,
    sweep: str,
    n: int,
    d: int,
    share: float,
    ms: Mapping[Key, float],
    rates: Mapping[tuple[str, int], float],
) -> dict[str, float]:
    """Milliseconds of every part.

    share: of the tiles, that the sweep visits; ms: of all steps; rates: GFLOP/s of the
    micro-kernel, by sweep and D.
    """
    needed = products(loss)

    def multiplied(depth: int) -> float:
        similarities = gigaflop(needed.forward, n, depth) / rates["forward", depth]
        if sweep == "forward":
            return 1e3 * similarities
        weighted = gigaflop(needed.backward - needed.forward, n, depth) / rates["backward", depth]
        return 1e3 * share * (similarities + weighted)

    def packed(depth: int) -> float:
        if sweep == "forward":
            of_columns = 2 * ms[f"{FEW} rows", sweep, depth] - ms[f"{2 * FEW} rows", sweep, depth]
            return 2 * of_columns
        of_columns = ms[f"idle {FEW} rows", sweep, depth]
        return ms[f"idle {loss}", sweep, depth] + of_columns

    sum_, least = ms[f"plain {loss}", sweep, d], ms[f"plain {loss}", sweep, 1]
    found = {
        "products": multiplied(d),
        "functions": ms[loss, sweep, d] - sum_,
        "packing": packed(d),
        "tiles": least - multiplied(1) - packed(1),
    }
    found["rest"] = ms[loss, sweep, d] - sum(found.values())
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of those with parts."""
    head = "isa", "D", "terms of", "sweep", "ms", *PARTS, "visited"
    return columns(head, [cells(row) for row in rows if row["parts_ms"] is not None])


def cells(row: Mapping[str, Any]) -> list[object]:
    shares = [percent(row["parts_ms"][part] / row["ms"]) for part in PARTS]
    names = [row[name] for name in ("isa", "d", "loss", "sweep")]
    return [*names, number(row["ms"]), *shares, percent(row["tiles_visited"])]
