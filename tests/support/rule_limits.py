"""Problems on which the error rule is not kept, and by how much.

PYTHONPATH=tests python -m support.rule_limits

prints the table of docs/numerics.md, "Where the rule is not kept".
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from support.cancelling_problems import (  # fmt: skip
    attended,
    attended_by_snr,
    behind,
    one_reference,
    ranked,
    ten_pairs,
    two_passes,
    widened,
)
from support.error_rule import distance, times_allowed
from support.loss_comparison import Call, beside_dense
from support.loss_parameters import LABELLED, TWO_SETS

SEEDS, MANY = 12, 150
ENGINES = ["cpu", "blockwise", "dense"]
TWICE = ["nt_xent_loss", "decoupled_softmax_loss", "ms_loss", "sms_loss"]

Maker = Callable[[], Call]


class Worst(NamedTuple):
    """The result that is farthest beyond the rule."""

    times: float  # the error, as a multiple of what the rule allows
    error: float
    dense: float  # the error of dense torch
    largest: float  # entry of the truth


def worst_of(maker: Maker, seeds: int) -> dict[str, list[Worst]]:
    """By engine that serves the problems, the worst of each."""
    found: dict[str, list[Worst]] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        for engine, worst in of_problem(maker()).items():
            found.setdefault(engine, []).append(worst)
    return found


def of_problem(call: Call) -> dict[str, Worst]:
    """Of the losses and each gradient, by engine."""
    found: dict[str, Worst] = {}
    for engine, _, ours, orders, truth in beside_dense(*call, ENGINES):
        dense = list(orders)
        errors = distance(ours, truth), max(distance(z, truth) for z in dense)
        this = Worst(times_allowed(ours, dense, truth), *errors, float(truth.abs().max()))
        found[engine] = max(found.get(engine, this), this)
    return found


def problems() -> Iterator[tuple[str, Maker, int]]:
    """What a row of the table is about, its problems and how many they are."""
    for name in TWICE:
        made = functools.partial(two_passes, name, torch.bfloat16, 0.03)
        yield f"`{name}`, bfloat16", made, SEEDS
        yield "the same after `.float()`", functools.partial(widened, made), SEEDS
    for name in TWICE[:2]:
        made = functools.partial(two_passes, name, torch.float32, 0.001)
        yield f"`{name}`, float32 rows 0.001 apart", made, SEEDS
    yield "`info_nce_loss`, nearest to a wrong row", behind, SEEDS
    yield "`hard_negative_info_nce_loss`, ten pairs", ten_pairs, SEEDS
    yield "`info_nce_loss` one way, one row as all references", one_reference, SEEDS
    for compared in ("cosine", "sqeuclidean"):
        for temperature in (0.01, 0.05):
            ranks = functools.partial(ranked, compared, temperature)
            yield f"`smooth_ap_loss`, {compared}, τ = {temperature}", ranks, MANY
    for compared in ("cosine", "dot"):
        for temperature in (0.015, 0.05):
            attends = functools.partial(attended, compared, temperature)
            yield f"`tal_loss`, {compared}, τ = {temperature}", attends, MANY
    yield "`tal_loss`, snr", attended_by_snr, MANY


def others() -> tuple[str, Maker, int]:
    """Of all losses but those of two passes, the one that is farthest off on the same rows."""
    names = [name for name in (*LABELLED, *TWO_SETS) if name not in TWICE]
    makers = {name: functools.partial(two_passes, name, torch.bfloat16, 0.03) for name in names}
    name = max(names, key=lambda name: worst_of_all(worst_of(makers[name], SEEDS)))
    return f"`{name}`, the worst of {len(names)} others, bfloat16", makers[name], SEEDS


def worst_of_all(found: dict[str, list[Worst]]) -> Worst:
    return max(max(of_engine) for of_engine in found.values())


def row(what: str, maker: Maker, seeds: int) -> str:
    cells, found = [what, str(seeds)], worst_of(maker, seeds)
    for engine in ENGINES:
        times = [each.times for each in found.get(engine, [])]
        beyond = sum(each > 1 for each in times)
        cells.append(f"{shown(max(times))} ({beyond})" if times else "")
    cells += [f"{z:.1e}" for z in worst_of_all(found)[1:]]
    return f"| {' | '.join(cells)} |"


def shown(times: float) -> str:
    return "∞" if times == math.inf else f"{times:.2g}" if times < 100 else f"{times:,.0f}"


def main() -> None:
    torch.set_num_threads(1)
    print(f"| problems | number | {' | '.join(ENGINES)} | error | dense torch | largest entry |")
    print("|---|" + 7 * "--:|")
    for what, maker, seeds in itertools.chain(problems(), [others()]):
        print(row(what, maker, seeds), flush=True)


if __name__ == "__main__":
    main()
