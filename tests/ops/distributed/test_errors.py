"""Errors instead of hangs: ranks that disagree, ranks that refuse, what has no distributed form."""

import time
from typing import Any

import pytest
import torch

import pairops
from support import gloo_ranks
from support.rank_problems import D, Problem, rows

pytestmark = pytest.mark.xdist_group("ranks")


def errors(ranks: gloo_ranks.Ranks, what: list[str], **names: Any) -> list[tuple[str, str]]:
    x, labels = rows(12)
    given = [
        {"what": one, "x": x[4 * k : 4 * k + 4], "labels": labels[4 * k : 4 * k + 4], **names}
        for k, one in enumerate(what)
    ]
    begin = time.monotonic()
    found = ranks.run(len(what), "support.rank_functions:call", given)
    assert time.monotonic() - begin < 10, "they waited for one another"
    assert all(isinstance(got, tuple) for got in found), found
    return found


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (
            ["ms_loss(x, labels", "ms_loss(x[:, :3], labels", "ms_loss(x, labels"],
            "disagree about x: ranks 0, 2 have torch.float64 (·, 6) on cpu; rank 1 has "
            "torch.float64 (·, 3) on cpu; all must have one",
        ),
        (
            ["ms_loss(x, labels", "ms_loss(x, labels", "ms_loss(x.float(), labels"],
            "disagree about x: ranks 0, 1 have torch.float64",
        ),
        (
            ["ms_loss(x, labels", "supcon_loss(x, labels", "ms_loss(x, labels"],
            "disagree about loss: ranks 0, 2 have ms_loss; rank 1 has supcon_loss",
        ),
        (
            ["ms_loss(x, labels", "ms_loss(x, labels, alpha=3.0", "ms_loss(x, labels, alpha=2.0"],
            "disagree about alpha: rank 0 has nothing; rank 1 has 3.0; rank 2 has 2.0",
        ),
        (
            [
                "ms_loss(x, labels",
                "ms_loss(x.clone().requires_grad_(), labels",
                "ms_loss(x, labels",
            ],
            "rank 1 has torch.float64 (·, 6) on cpu with grad",
        ),
        (
            ["proxy_nca_loss(x, labels, torch.ones(k, 6).double()"] * 2
            + ["proxy_nca_loss(x, labels, torch.ones(9, 6).double()"],
            "disagree about proxies: ranks 0, 1 have torch.float64 (8, 6) on cpu; rank 2 has "
            "torch.float64 (9, 6) on cpu",
        ),
        (
            ["pair_loss(x, labels, pairops.total('neg', b, 0.0), combine=torch.sqrt"] * 2
            + [
                "pair_loss(x, labels, pairops.total('neg', b.requires_grad_(), 0.0), "
                "combine=torch.sqrt"
            ],
            "disagree about terms",
        ),
        (
            [
                "info_nce_loss(x, x",
                "info_nce_loss(x, x, weight=x[:, 0].abs()",
                "info_nce_loss(x, x",
            ],
            "disagree about weight",
        ),
    ],
)
def test_ranks_that_disagree(ranks: gloo_ranks.Ranks, calls: list[str], message: str) -> None:
    b = torch.tensor(0.5, dtype=torch.float64)
    found = errors(ranks, [f"pairops.{call}, group=group)" for call in calls], k=8, b=b)
    assert set(found) == {found[0]}
    assert found[0][0] == "ValueError"
    assert message in found[0][1], found[0]


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("ms_loss(x, labels", "ms_loss(x, labels[:2]", "labels has shape (2,)"),
        ("ms_loss(x, labels, weight=w", "ms_loss(x, labels, weight=-w", "weight has the value -"),
        ("ms_loss(x, labels, weight=w", "ms_loss(x, labels, weight=w[:2]", "weight has shape (2,)"),
        (
            "decoupled_softmax_loss(x, labels",
            "decoupled_softmax_loss(x, labels[:2]",
            "labels has shape (2,)",
        ),
        ("info_nce_loss(x, x", "info_nce_loss(x, x[:2]", "y has 2 rows"),
        ("tal_loss(x, x, labels, weight=w", "tal_loss(x, x, labels, weight=-w", "weight has the"),
        ("proxy_nca_loss(x, labels, p", "proxy_nca_loss(x, labels + 70, p", "labels go from 7"),
        (
            "pair_loss(x, labels, pairops.total('neg', w, 0.0), combine=torch.abs",
            "pair_loss(x, labels, pairops.total('neg', w[:2], 0.0), combine=torch.abs",
            "argument 0 of affine has shape (2,)",
        ),
        ("ms_loss(x, labels", "ms_loss(x", "missing a required argument"),
    ],
)
def test_a_rank_that_refuses_its_arguments_tells_the_others(
    ranks: gloo_ranks.Ranks, good: str, bad: str, message: str
) -> None:
    good, bad = (f"pairops.{call}, group=group)" for call in (good, bad))
    w, p = torch.arange(1.0, 5.0, dtype=torch.float64), torch.eye(D, dtype=torch.float64)
    found = errors(ranks, [good, bad, good], w=w, p=p)
    assert message in found[1][1]
    for other in (found[0], found[2]):
        assert other[0] == "RuntimeError"
        assert f"rank 1 has {found[1][0]}: {found[1][1]}" in other[1]
    # Nothing of that is left over.
    x, labels = rows(12)
    given = [
        {
            "what": good,
            "x": x[4 * k : 4 * k + 4],
            "labels": labels[4 * k : 4 * k + 4],
            "w": w,
            "p": p,
        }
        for k in range(3)
    ]
    values = ranks.run(3, "support.rank_functions:call", given)
    assert all(torch.equal(value, values[0]) for value in values), values


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("pairops.ms_loss(x, labels, group=3)", "TypeError", "group is int"),
        ("pairops.mine(x, labels, group=group)", "ValueError", "mine has no form for several"),
        (
            "pairops.pair_weights(pairops.ms_loss, x, labels, group=group)",
            "ValueError",
            "pair_weights has no form for several",
        ),
        (
            "pairops.ms_loss(x, labels, group=dist.new_group([3]))",
            "ValueError",
            "group does not contain rank",
        ),
    ],
)
def test_what_cannot_be(ranks: gloo_ranks.Ranks, what: str, kind: str, message: str) -> None:
    if "new_group" in what:  # which all processes take part in
        calls = [what] * 3 + ["pairops.ms_loss(x, labels, group=group) and dist.new_group([3])"]
        given = [{"what": call, "x": rows()[0], "labels": rows()[1]} for call in calls]
        given[3]["what"] = "dist.new_group([3]) and None"
        found = ranks.run(4, "support.rank_functions:call", given)[:3]
    else:
        found = errors(ranks, [what] * 3)
    for got in found:
        assert got[0] == kind
        assert message in got[1]


def test_the_dense_engine_has_no_blocks(ranks: gloo_ranks.Ranks) -> None:
    given = Problem("ms_loss", {}).shared([12, 12], engine="dense")
    for got in ranks.run(2, "support.rank_functions:step", given):
        assert got[0] == "ValueError"
        assert "engine 'dense' cannot serve this call" in got[1]


def test_without_torch_distributed() -> None:
    x, labels = rows()
    alone = pairops.ms_loss(x, labels, group="auto")  # the default group, if there is one
    assert torch.equal(alone, pairops.ms_loss(x, labels))
    with pytest.raises(TypeError, match='group is bool; it must be None, "auto" or'):
        pairops.ms_loss(x, labels, group=True)  # type: ignore[call-arg]
    assert torch.equal(pairops.ms_loss(x, labels, group=None), pairops.ms_loss(x, labels))
