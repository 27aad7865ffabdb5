"""With `group=` every loss is that of one process with the rows of all ranks."""

from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import losses
from support.engine_names import WIDE
from support.error_rule import Dense, assert_within_rule
from support.exhaustive import exhaustive_but
from support.gloo_ranks import Ranks
from support.loss_parameters import THOROUGH, is_first, parameters, variants
from support.rank_problems import GATHERED, RING, SHARDS, Problem, check

pytestmark = pytest.mark.xdist_group("ranks")

SHARP = [  # scales of 32 to 67, or twice 14
    "distillation_loss", "hard_negative_info_nce_loss", "mlcd_loss", "multi_positive_loss",
    "proxy_anchor_loss", "tal_loss",
]  # fmt: skip


ONCE = exhaustive_but(losses.__all__, lambda name: name in THOROUGH)
LAYOUTS = [
    pytest.param(name, params, layout, id=f"{variant.id}-{layout}")
    for variant in variants(losses.__all__)
    for name, params in [variant.values]
    for layout in SHARDS
    if layout == "uneven" or (is_first(name, params) and (layout != "even" or name in THOROUGH))
]


def most(name: str) -> int:
    """How many ranks there are at most: four take twice as long as three."""
    return 4 if name in THOROUGH else 3


def is_one_of_a_kind(name: str, params: dict[str, Any], layout: str) -> bool:
    """Three losses on every layout, the others where ranks have unequal rows."""
    return is_first(name, params) and (name in THOROUGH or layout == "uneven")


@pytest.mark.parametrize(("name", "params", "layout"), exhaustive_but(LAYOUTS, is_one_of_a_kind))
def test_value_and_gradient_are_those_of_one_process(
    ranks: Ranks, name: str, params: dict[str, Any], layout: str
) -> None:
    problem = Problem(name, params).learned()
    check(ranks, problem, 1e-12, layouts=[layout], most=most(name), gathered=RING)


@pytest.mark.parametrize("name", ONCE)
def test_all_rows_gathered_at_once(ranks: Ranks, name: str) -> None:
    problem = Problem(name, parameters(name)[0]).learned()
    layouts = ["uneven", "empty"]
    check(ranks, problem, 1e-12, layouts=layouts, most=most(name), gathered=GATHERED)


@pytest.mark.parametrize("distance", ["l2", "sqeuclidean", "snr"])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("smooth_ap_loss", {"temperature": 0.5}),
        ("lifted_structure_loss", {"form": "original"}),
        ("triplet_loss", {"mining": "semihard"}),
        ("ms_loss", {}),
    ],
)
def test_distances(ranks: Ranks, name: str, params: dict[str, Any], distance: str) -> None:
    """An engine that knows no distances gets squares of each row, or of each positive pair."""
    problem = Problem(name, params | {"distance": distance, "normalize": False})
    layouts = ["uneven", "empty"]
    check(ranks, problem, 1e-11, layouts=layouts, most=most(name), engine="blockwise")


@pytest.mark.parametrize("name", ONCE)
def test_float32_is_that_of_one_process(ranks: Ranks, name: str) -> None:
    """But where a statistic is 32 or more, which in float32 is a gradient that is right to 2e-6:
    there two roundings of it differ by as much, and both are held to the error rule."""
    problem = Problem(name, parameters(name)[0], torch.float32)
    if name not in SHARP:
        check(ranks, problem, 1e-6, layouts=["uneven"], most=most(name))
        return

    def by_dense(problem: Problem) -> list[Tensor]:
        with pairops.engine("dense"):
            return list(problem.one().values())

    truth, dense = by_dense(problem.widened()), Dense(lambda: by_dense(problem))
    for size, sizes in SHARDS["uneven"].items():
        if size > most(name):
            continue
        found = ranks.run(size, "support.rank_functions:step", problem.shared(sizes))
        ours = {"value": found[0]["value"], **problem.averaged(found)}
        for k, (at, exact) in enumerate(zip(["value", *problem.leaves], truth, strict=True)):
            assert_within_rule(f"{size} ranks: {at}", ours[at], dense.result(k), exact)


@pytest.mark.parametrize("engine", [name for name in WIDE if name not in ("cpu", "dense")])
@pytest.mark.parametrize("name", THOROUGH)
def test_on_other_engines(ranks: Ranks, name: str, engine: str) -> None:
    problem = Problem(name, parameters(name)[0])
    check(ranks, problem, 1e-12, layouts=["uneven", "empty"], engine=engine)
