"""What else `group=` promises: reductions, references, few rows, what training does."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import losses
from support import gloo_ranks, loss_parameters
from support.exhaustive import exhaustive_but
from support.loss_parameters import THOROUGH
from support.rank_problems import GATHERED, RING, D, Problem, assert_equal, check, rows

pytestmark = pytest.mark.xdist_group("ranks")

BOTH = pytest.mark.parametrize("gathered", [RING, GATHERED], ids=["ring", "gathered"])


@pytest.mark.parametrize(
    ("name", "gathered"),
    exhaustive_but(
        [(name, RING) for name in losses.__all__] + [("ms_loss", GATHERED)],
        lambda name, way: name in ("ms_loss", "info_nce_loss") and way == RING,
    ),
)
def test_bits_are_the_same_from_run_to_run(
    ranks: gloo_ranks.Ranks, name: str, gathered: int
) -> None:
    given = Problem(name, loss_parameters.parameters(name)[0], torch.float32).shared(
        [3, 12, 9], gathered=gathered
    )
    first = ranks.run(3, "support.rank_functions:step", given)
    for _ in range(2):
        for a, b in zip(first, ranks.run(3, "support.rank_functions:step", given), strict=True):
            assert all(torch.equal(a[at], b[at]) for at in a if at != "aux")


@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "mean_pairs", "sum"])
@pytest.mark.parametrize("name", ["contrastive_loss", "nt_xent_loss", "margin_loss"])
def test_reductions_with_weights_and_ignored_rows(
    ranks: gloo_ranks.Ranks, name: str, reduction: str
) -> None:
    problem = Problem(name, {"reduction": reduction, "ignore_index": 2})
    problem.keywords["weight"] = torch.linspace(0, 2, 24, dtype=torch.float64)
    if name == "contrastive_loss":  # of a row that is 0, which mean_nonzero does not count
        problem.keywords |= {"pos_margin": -0.5, "neg_margin": 0.6}
    check(ranks, problem, 1e-12)


@BOTH
@pytest.mark.parametrize("name", ["ms_loss", "info_nce_loss", "triplet_loss", "proxy_nca_loss"])
def test_none_returns_the_local_rows_and_aux_is_of_them(
    ranks: gloo_ranks.Ranks, name: str, gathered: int
) -> None:
    problem = Problem(name, {"reduction": "none"})
    seen = ["positives", "negatives", "farthest_positive", "nearest_negative"]
    one, aux = getattr(pairops, name).with_aux(*problem.args, **problem.keywords)
    for sizes in ([9, 11, 4], [0, 20, 4]):
        given = problem.shared(sizes, seen=seen, gathered=gathered)
        found = ranks.run(3, "support.rank_functions:step", given)
        assert_equal("losses", torch.cat([got["value"] for got in found]), one, 1e-12)
        for what in seen:
            got = torch.cat([got["aux"][what] for got in found])
            assert torch.allclose(got.double(), getattr(aux, what).double(), rtol=0, atol=1e-12)


def references(name: str) -> list[tuple[str, dict[str, Any]]]:
    x, labels = rows(24)
    y, others = rows(31)
    y = torch.cat([x[3:20], y])[:31]
    ids = torch.arange(24) + 100
    # Reference 4 is anchor 107, and again reference 20: only the first is left out.
    ref_ids = torch.cat([torch.arange(103, 120), torch.arange(14)])
    ref_ids[20] = 107
    plain = {"ref_emb": y, "ref_labels": torch.cat([labels[3:20], others])[:31]}
    return [
        (name, {**plain, "ignore_index": 3}),
        (name, {**plain, "ids": ids, "ref_ids": ref_ids}),
        (name, {**plain, "ids": ids, "ref_ids": ref_ids, "exclude_self": False}),
    ]


@BOTH
@pytest.mark.parametrize(
    ("name", "keywords"),
    exhaustive_but(
        [case for name in ("ms_loss", "triplet_loss", "supcon_loss") for case in references(name)],
        lambda name, _: name == "triplet_loss",
    ),
)
def test_references_and_ids(
    ranks: gloo_ranks.Ranks, name: str, keywords: dict[str, Any], gathered: int
) -> None:
    problem = Problem(name, {})
    problem.args = rows(24)
    problem.keywords = dict(keywords)
    problem.leaves = [0, "ref_emb"]
    problem.apart = {at: [3, 0, 17, 11] for at in ("ref_emb", "ref_labels", "ref_ids")}
    check(ranks, problem, 1e-12, gathered=gathered)


def test_each_pair_s_own_relevance(ranks: gloo_ranks.Ranks) -> None:
    problem = Problem("sms_loss", {})
    problem.keywords = {"own": torch.linspace(-0.02, 1, 24, dtype=torch.float64)}
    problem.leaves = [0, 1]
    check(ranks, problem, 1e-12)


def test_excluded_by_place(ranks: gloo_ranks.Ranks) -> None:
    x, labels = rows(24)
    for keywords in ({"exclude_self": True}, {"exclude_self": False}):
        problem = Problem("ms_loss", {})
        problem.args = x, labels
        problem.keywords = {"ref_emb": x.flip(1), "ref_labels": labels, **keywords}
        problem.leaves = [0, "ref_emb"]
        check(ranks, problem, 1e-12)
    # The very tensor x, of which each row is a reference.
    one = pairops.supcon_loss(x, labels, exclude_self=False)
    what = (
        "pairops.supcon_loss(x, labels, ref_emb=x, ref_labels=labels, group=group, exclude_self=k)"
    )
    for k, value in ((False, one), ("auto", pairops.supcon_loss(x, labels))):
        given = [
            {"what": what, "x": z, "labels": t, "k": k}
            for z, t in zip(x.split([5, 19]), labels.split([5, 19]), strict=True)
        ]
        for got in ranks.run(2, "support.rank_functions:call", given):
            assert_equal("value", got, value, 1e-12)


@pytest.mark.parametrize(
    ("name", "n"),
    exhaustive_but(
        itertools.product(losses.__all__, [0, 1]), lambda name, n: n == 1 or name in THOROUGH
    ),
)
def test_hardly_any_rows(ranks: gloo_ranks.Ranks, name: str, n: int) -> None:
    problem = Problem(name, loss_parameters.parameters(name)[0])
    problem.args = tuple([z if at in problem.whole else z[:n] for at, z in enumerate(problem.args)])
    for at, value in problem.keywords.items():
        if isinstance(value, Tensor) and at not in problem.whole:
            problem.keywords[at] = value[:n]
    problem.apart = {}
    one = problem.one()
    for sizes in ([n, 0, 0], [0, n - n // 2, n // 2]):
        found = ranks.run(3, "support.rank_functions:step", problem.shared(sizes))
        assert not isinstance(found[0], tuple), found[0]
        assert all(abs(float(got["value"] - one["value"])) <= 1e-12 for got in found)
        for at, gradient in problem.averaged(found).items():
            assert torch.allclose(gradient, one[at], rtol=0, atol=1e-12), at


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["ms_loss", "info_nce_loss", "triplet_loss"])
def test_16_bits_travel_as_they_are(ranks: gloo_ranks.Ranks, name: str, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    problem = Problem(name, {}, dtype)
    one = problem.one()
    for gathered in (RING, GATHERED):
        found = ranks.run(
            3, "support.rank_functions:step", problem.shared([10, 2, 12], gathered=gathered)
        )
        assert all(got["value"].dtype == torch.float32 for got in found)
        assert_equal("value", found[0]["value"], one["value"], 1e-6)
        # 3 times the gradient is rounded at other places than the gradient itself.
        for at, gradient in problem.averaged(found).items():
            assert_equal(f"by {at}", gradient.float(), one[at].float(), eps)


@pytest.mark.parametrize("name", ["ms_loss", "supcon_loss", "triplet_loss"])
def test_a_penalty_on_the_gradient(ranks: gloo_ranks.Ranks, name: str) -> None:
    x, labels = rows(18)
    direction = torch.randn(18, D, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    value = getattr(pairops, name)(leaf, labels)
    (first,) = torch.autograd.grad(value, leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), leaf)
    sizes = [7, 0, 11]
    parts = [z.split(sizes) for z in (x, labels, direction)]
    given = [
        {"loss": name, "x": parts[0][k], "labels": parts[1][k], "direction": parts[2][k]}
        for k in range(3)
    ]
    found = ranks.run(3, "support.rank_functions:penalty", given)
    assert not isinstance(found[0], tuple), found[0]
    for what, one in (("first", first.detach()), ("second", second)):
        assert_equal(what, torch.cat([got[what] for got in found]) / 3, one, 1e-12)


def test_a_nan_shows_on_every_rank(ranks: gloo_ranks.Ranks) -> None:
    problem = Problem("ms_loss", {})
    problem.args[0][13, 2] = torch.nan
    found = ranks.run(3, "support.rank_functions:step", problem.shared([8, 8, 8]))
    assert all(got["value"].isnan() for got in found)
    assert found[1][0][5].isnan().all()
    assert torch.cat([got[0] for got in found]).isnan().any(1).all()  # every row has met it


@pytest.mark.parametrize("way", ["plain", "cached"])
@pytest.mark.parametrize("sizes", [[12, 12], [19, 5], [24, 0]])
def test_a_step_of_a_network_under_ddp(ranks: gloo_ranks.Ranks, sizes: list[int], way: str) -> None:
    inputs, labels = rows(24)
    torch.manual_seed(4)
    network = torch.nn.Sequential(
        torch.nn.Linear(D, 16), torch.nn.Tanh(), torch.nn.Linear(16, D)
    ).double()
    value = pairops.ms_loss(network(inputs), labels)
    one = torch.autograd.grad(value, list(network.parameters()))
    given = [
        {"network": network, "inputs": z, "labels": t, "way": way}
        for z, t in zip(inputs.split(sizes), labels.split(sizes), strict=True)
    ]
    for got in ranks.run(2, "support.rank_functions:trained", given):
        assert not isinstance(got, tuple), got
        assert_equal("value", got["value"], value.detach(), 1e-12)
        for (name, _), gradient in zip(network.named_parameters(), one, strict=True):
            assert_equal(name, got[name], gradient, 1e-12)


@BOTH
def test_what_else_training_does_with_a_loss(ranks: gloo_ranks.Ranks, gathered: int) -> None:
    x, labels = rows(24)
    leaf = x.clone().requires_grad_()
    mined = pairops.ms_loss(leaf, labels)
    (2 * (mined + pairops.supcon_loss(leaf, labels))).backward()
    s = torch.nn.functional.normalize(x)
    s = (s @ s.T) ** 2 * (labels[:, None] != labels)
    sizes = [5, 19]
    given = [
        {"x": z, "labels": t, "gathered": gathered}
        for z, t in zip(x.split(sizes), labels.split(sizes), strict=True)
    ]
    found = ranks.run(2, "support.rank_functions:several", given)
    assert not isinstance(found[0], tuple), found[0]
    assert_equal("gradient", torch.cat([got["x"] for got in found]) / 2, leaf.grad, 1e-12)
    for got in found:
        for way in ("seen", "cast", "compiled", "module"):
            assert_equal(way, got[way], mined.detach(), 1e-12)
        assert_equal("own", got["own"], s.sum(1).sqrt().mean(), 1e-12)


def test_a_group_of_some_ranks(ranks: gloo_ranks.Ranks) -> None:
    """Its ranks have other numbers than among all processes."""
    x, labels = rows(24)
    loss = "pairops.ms_loss(x, labels, group=g) if dist.get_rank() in (1, 3) else None"
    what = f"[{loss} for g in [dist.new_group([1, 3])]][0]"
    given = [
        {"what": what, "x": x[part], "labels": labels[part]}
        for part in (slice(0), slice(0, 9), slice(0), slice(9, 24))
    ]
    found = ranks.run(4, "support.rank_functions:call", given)
    for rank in (1, 3):
        assert_equal(f"rank {rank}", found[rank], pairops.ms_loss(x, labels), 1e-12)


def test_what_looks_different_and_is_alike(ranks: gloo_ranks.Ranks) -> None:
    """Addresses are not compared."""
    combine = "__import__('functools').partial(torch.mul, torch.tensor(2.0))"
    terms = "pairops.total('neg', 1.0, 0.0)"
    what = f"pairops.pair_loss(x, labels, {terms}, combine={combine}, group=group)"
    x, labels = rows(12)
    given = [
        {"what": what, "x": z, "labels": t}
        for z, t in zip(x.split(6), labels.split(6), strict=True)
    ]
    values = ranks.run(2, "support.rank_functions:call", given)
    assert torch.equal(values[0], values[1]), values


def test_a_value_keeps_nothing_after_its_backward_pass(ranks: gloo_ranks.Ranks) -> None:
    for gathered in (RING, GATHERED):
        given = [{"gathered": gathered, "loss": name} for name in ["ms_loss"] * 2]
        assert ranks.run(2, "support.rank_functions:kept", given) == [False, False]
