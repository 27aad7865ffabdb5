"""Retrieval over the rows of several ranks: as one process that has them all."""

from typing import Any

import pytest
import torch

from pairops.retrieval import average_precisions, evaluate, first_ranks
from support import gloo_ranks
from support.exhaustive import exhaustive_but
from support.rank_problems import GATHERED, RING, SHARDS, Problem

pytestmark = pytest.mark.xdist_group("ranks")

N, M = 24, 31
SIZES = [sizes for of_layout in SHARDS.values() for sizes in of_layout.values() if len(sizes) < 4]


def problem(case: str) -> Problem:
    """24 queries of whole numbers, so that products are exact and many are equal."""
    found = Problem("ms_loss", {})
    x, y = torch.randint(-2, 3, (N, 4)).double(), torch.randint(-2, 3, (M, 4)).double()
    labels, ref_labels = torch.randint(0, 6, (N,)), torch.randint(0, 6, (M,))
    labels[:2] = torch.tensor([-100, 77])  # ignored, and alone
    found.args, found.keywords = (x, labels), {"distance": "dot"}
    if case in ("references", "ids", "sqeuclidean"):
        found.keywords |= {"ref_emb": y, "ref_labels": ref_labels}
        found.apart = {at: [3, 0, 28] for at in ("ref_emb", "ref_labels", "ref_ids")}
    if case == "ids":
        found.keywords |= {"ids": torch.arange(N), "ref_ids": torch.randperm(M)}
    if case == "ignore_index":
        found.keywords["ignore_index"] = 3
    if case == "optimistic":
        found.keywords["ties"] = "optimistic"
    if case == "NaN":
        x[7] = torch.nan
    if case in ("sqeuclidean", "snr"):
        found.keywords |= {"distance": case, "normalize": False}
    if case == "bfloat16":
        found.args = x.bfloat16(), labels
    return found


CASES = [
    "one set",
    "references",
    "ids",
    "ignore_index",
    "optimistic",
    "NaN",
    "sqeuclidean",
    "snr",
    "bfloat16",
]


@pytest.mark.parametrize(
    ("case", "counted", "gathered"),
    exhaustive_but(
        [
            (case, counted, way)
            for case in CASES
            for counted, way in ((0, RING), (100, RING), (0, GATHERED))
        ],
        lambda case, counted, way: (
            (case in ("one set", "ids", "snr") and way == RING)
            or (case == "optimistic" and counted == 0 and way == GATHERED)
        ),
    ),
)
def test_ranks_find_what_one_process_finds(
    ranks: gloo_ranks.Ranks, case: str, counted: int, gathered: int
) -> None:
    given = problem(case)
    args, keywords = given.args, given.keywords
    one, first = evaluate(*args, **keywords), first_ranks(*args, **keywords)
    precisions = average_precisions(*args, **keywords)
    assert 0 < one.map_at_r < 1
    for sizes in SIZES:
        shared = given.shared(sizes, counted=counted, gathered=gathered)
        found = ranks.run(len(sizes), "support.retrieval_of_ranks:retrieved", shared)
        for got in found:
            assert not isinstance(got, tuple), f"{sizes}: {got}"
            assert got[0] == found[0][0]  # to the last bit
        ours: Any = found[0][0]
        assert ours.queries == one.queries
        assert ours.recall == pytest.approx(one.recall, abs=1e-14)
        for name in ("mrr", "map_at_r", "r_precision"):
            assert getattr(ours, name) == pytest.approx(getattr(one, name), abs=1e-12)
        assert torch.cat([got[1] for got in found]).tolist() == first.tolist()
        for k in (0, 1):
            mine = torch.cat([got[2][k] for got in found])
            torch.testing.assert_close(mine, precisions[k], rtol=0, atol=1e-12)


@pytest.mark.parametrize("counted", [0, 1000], ids=["in strips", "counted"])
def test_memory_does_not_grow_with_the_ranks(ranks: gloo_ranks.Ranks, counted: int) -> None:
    rows, d = 16, 8192  # positives are few numbers beside the embeddings
    given = {"rows": rows, "d": d, "counted": counted, "gathered": RING}
    held = {
        size: max(ranks.run(size, "support.retrieval_of_ranks:retrieval_peak", [given] * size))
        for size in (2, 4)
    }
    assert held[2] > 2 * 4 * rows * d, "less than the two blocks of a ring"
    assert held[4] <= 1.05 * held[2], held


def test_ranks_without_queries_or_references(ranks: gloo_ranks.Ranks) -> None:
    nothing = {"x": torch.zeros(0, 3), "labels": torch.zeros(0, dtype=torch.int64)}
    what = "pairops.retrieval.evaluate(x, labels, lone='zero', progress=show, group=group)"
    found = ranks.run(
        2, "support.rank_functions:call",
        [{"what": what, "show": k and None, **nothing} for k in (False, True)],
    )  # fmt: skip
    assert [got.queries for got in found] == [0, 0]
    few = {"x": torch.eye(3)[:2], "labels": torch.zeros(2, dtype=torch.int64)}
    alone = ranks.run(
        2, "support.rank_functions:call",
        [{"what": what, "show": False, **rows} for rows in (nothing, few)],
    )  # fmt: skip
    assert alone[0] == alone[1] == evaluate(*few.values(), lone="zero")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ties", ["pessimistic", "optimistic"], "disagree about ties"),
        ("map_at_r", [True, False], "disagree about map_at_r"),
        ("recall_at", [[1], [0]], "recall_at[0] is 0"),
    ],
)
def test_ranks_are_called_alike(
    ranks: gloo_ranks.Ranks, name: str, values: list[Any], message: str
) -> None:
    what = f"pairops.retrieval.evaluate(x, labels, {name}=given, group=group)"
    rows = {"x": torch.eye(3), "labels": torch.zeros(3, dtype=torch.int64)}
    given = [{"what": what, "given": value, **rows} for value in values]
    for got in ranks.run(2, "support.rank_functions:call", given):
        assert message in got[1]
