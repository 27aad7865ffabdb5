"""Weighted negatives: own ones, names, directions and partitions, and what is refused."""

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from pairops import hard_negative_info_nce_loss as loss
from support.engine_names import HERE
from support.exhaustive import exhaustive_but
from support.loss_comparison import check
from support.named_cases import smooth

N, M, D = 15, 22, 6
WAYS: dict[str, dict[str, Any]] = {
    "hardness": {"hardness": 5.0},
    "in batch": {"hardness": 5.0, "hardened": "in_batch"},
    "own": {"hardness": 5.0, "hardened": "own"},
    "concentration": {"concentration": 0.7},
    "debias alone": {"concentration": 0.0, "debias": 0.2},
    "both": {"concentration": 0.7, "debias": 0.2},
}
OF: dict[str, dict[str, Any]] = {
    "one way": {},
    "joint": {"directions": ("xy", "xx")},
    "separate": {"directions": ("xy", "yx", "yy"), "partition": "separate"},
}


def names() -> dict[str, Tensor]:
    ids = torch.arange(N) % 9
    return {"ids": ids, "ref_ids": torch.cat([ids, torch.arange(M - N) % 12])}


@pytest.mark.usefixtures("small_tiles", "small_triton_tiles")
@pytest.mark.parametrize(
    ("way", "of"),
    exhaustive_but(itertools.product(WAYS, OF), lambda _, of: of == "joint"),
)
def test_is_its_formula(way: str, of: str) -> None:
    """By x, y and own negatives, some of which are dropped by name."""
    keywords = {**WAYS[way], **OF[of], **names()}

    def called(x: Tensor, y: Tensor, own: Tensor, function: Any, **more: Any) -> Tensor:
        return function(x, y, own_negatives=own, temperature=0.2, **keywords, **more)

    tensors = [smooth(N, D), smooth(N + M, D)[N:], smooth(3 * N, D).view(N, 3, D)]
    ours = functools.partial(called, function=loss, reduction="none")
    formula = functools.partial(called, function=oracle.hard_negative_info_nce_loss)
    assert set(check(tensors, ours, formula, HERE)) >= {"dense", "blockwise"}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_learned(way: str) -> None:
    """τ, β and τ⁺ have their gradients, α has none."""
    x, y = smooth(N, D, torch.float64), smooth(M, D, torch.float64)
    given = {"temperature": 0.2, **WAYS[way]}
    given["own_negatives"] = smooth(2 * N, D, torch.float64).view(N, 2, D)
    learned = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for name, value in given.items()
        if isinstance(value, float)
    }
    ours = loss(x, y, **{**given, **learned})
    truth = oracle.hard_negative_info_nce_loss(x, y, **{**given, **learned}).mean()
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=0)
    alpha = learned.pop("hardness", None)
    for one, two in zip(
        torch.autograd.grad(ours, list(learned.values()), retain_graph=True),
        torch.autograd.grad(truth, list(learned.values())),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-14)
    if alpha is not None:
        assert torch.autograd.grad(ours, alpha, allow_unused=True) == (None,)


def test_the_second_derivatives_of_concentration() -> None:
    x, y = (
        smooth(5, 3, torch.float64).requires_grad_(),
        smooth(7, 3, torch.float64).requires_grad_(),
    )

    def value(x: Tensor, y: Tensor) -> Tensor:
        return loss(x, y, temperature=0.5, concentration=0.7, debias=0.1)

    assert torch.autograd.gradgradcheck(value, (x, y))


def test_two_views_as_the_authors_have_them() -> None:
    """Robinson et al.: rows of both views, the own pair and oneself left out of the negatives."""
    x, y = (torch.nn.functional.normalize(smooth(9, 5, torch.float64).roll(k, 1)) for k in (0, 1))
    t, beta, share = 0.5, 1.0, 0.1
    both = torch.cat([x, y])
    s = both @ both.T / t
    left = ~torch.eye(9, dtype=torch.bool).repeat(2, 2)
    negatives = s[left].view(18, -1)
    positive = (x * y).sum(1).repeat(2) / t
    weights = torch.exp(beta * negatives)
    hardest = (weights * torch.exp(negatives)).sum(1) / weights.mean(1)
    hardest = (hardest - share * 16 * torch.exp(positive)) / (1 - share)
    hardest = hardest.clamp(min=16 * math.exp(-1 / t))
    truth = -torch.log(torch.exp(positive) / (torch.exp(positive) + hardest)).mean()
    given: dict[str, Any] = {
        "temperature": t, "concentration": beta, "debias": share, "directions": ("xy", "xx"),
    }  # fmt: skip
    ours = (loss(x, y, **given) + loss(y, x, **given)) / 2
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("start", [0, 1])
def test_gradients_where_all_may_be_positives(start: int) -> None:
    """By steps of the last place of τ⁺, through the point where nothing is left of a negative."""
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    y = torch.tensor([[1.0, 0.0], [0.88235, 0.47059]])
    share = torch.tensor(0.8890044689178467)
    for _ in range(40):
        share = torch.nextafter(share, torch.tensor(float(start)))
        value = loss(x, y, temperature=1.0, concentration=0.0, debias=share)
        assert torch.autograd.grad(value, x)[0].isfinite().all()


def test_a_share_of_nothing_has_a_gradient() -> None:
    x, y = smooth(N, D, torch.float64), smooth(M, D, torch.float64)
    share = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    given = {"temperature": 0.5, "concentration": 0.5}
    (slope,) = torch.autograd.grad(loss(x, y, debias=share, **given), share)
    beside = [float(loss(x, y, debias=k, **given)) for k in (0.0, 1e-6)]
    assert float(slope) == pytest.approx((beside[1] - beside[0]) / 1e-6, rel=1e-4)


def test_large_numbers_do_not_overflow() -> None:
    x, y = smooth(N, D), smooth(M, D)
    value = loss(x, y, temperature=1e-3, concentration=2.0, debias=0.1)
    with pairops.engine("dense"):
        wide = loss(x.double(), y.double(), temperature=1e-3, concentration=2.0, debias=0.1)
    torch.testing.assert_close(value.double(), wide, rtol=1e-5, atol=0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hardness": 1.0, "concentration": 1.0}, "hardness and concentration are both given"),
    ({"hardness": 1.0, "debias": 0.1}, "debias is given with hardness"),
    ({"hardness": -1.0}, "hardness is -1.0; it must be 0 or above"),
    ({"concentration": -1.0}, "concentration is -1.0; it must be 0 or above"),
    ({"debias": 1.0}, "debias is 1.0; it must be from 0 to below 1"),
    ({"hardened": "none"}, "hardened is 'none'; it must be one of all, in_batch, own"),
    ({"hardened": "in_batch"}, "hardened is 'in_batch' without hardness; it must come with one"),
    ({"hardened": "own", "hardness": 1.0}, "own_negatives is None; they must be given"),
    (
        {"hardened": "in_batch", "hardness": 1.0, "directions": ("xx",)},
        "hardened is 'in_batch', of the direction 'xy'",
    ),
    ({"partition": "none"}, "partition is 'none'; it must be one of separate, joint"),
    ({"directions": ()}, "directions is"),
]


@pytest.mark.parametrize(("keywords", "message"), REFUSED)
def test_bad_input(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(torch.randn(4, 3), torch.randn(4, 3), **keywords)
