"""cosent_loss: ties, orders that are right or wrong throughout, great exponents, and its errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from support.loss_comparison import check
from support.named_cases import smooth
from support.on_cpu import device as device

DOUBLE = torch.float64
N = 40

SCORES: dict[str, Tensor] = {
    "all different": torch.randperm(N).double(),
    "ascending": torch.arange(N),
    "descending, with ties": torch.arange(N).flip(0) // 3,
    "two": torch.arange(N) % 2 == 0,
    "whole numbers": torch.arange(N) * 7 % 5 - 2,
    "near each other": 1 + 1e-12 * (torch.arange(N) % 9).double(),
    "half precision": (torch.arange(N) % 7).bfloat16(),
}


@pytest.mark.parametrize("distance", ["cosine", "sqeuclidean"])
@pytest.mark.parametrize("case", SCORES)
def test_any_scores(case: str, distance: Any) -> None:
    scores, given = SCORES[case], {"distance": distance, "normalize": distance == "cosine"}

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return pairops.cosent_loss(x, y, scores, **given, reduction="none")

    def formula(x: Tensor, y: Tensor, **more: Any) -> Tensor:
        return oracle.cosent_loss(x, y, scores.double(), **given, **more)

    ran = check([smooth(N, 9), smooth(N, 9)], ours, formula, ["dense", "blockwise", "cpu"])
    assert set(ran) >= {"dense", "blockwise"}


def of_similarities(similarities: list[float], scores: list[float], **given: Any) -> float:
    """The loss of pairs with these similarities, by products of one feature."""
    x = torch.tensor(similarities, dtype=DOUBLE)[:, None]
    told = torch.tensor(scores)
    return float(pairops.cosent_loss(x, torch.ones_like(x), told, distance="dot", **given))


def test_by_hand() -> None:
    """Pairs 0 and 1 are told apart, and pair 2 from both; 1 and 3 are not, and have no term."""
    found = of_similarities([0.5, 0.25, 0.75, 0.0], [3, 2, 1, 2], temperature=0.5)
    wrong = [0.25 - 0.5, 0.75 - 0.5, 0.0 - 0.5, 0.75 - 0.25, 0.75 - 0.0]
    expected = torch.tensor([0.0, *[2 * z for z in wrong]], dtype=DOUBLE).logsumexp(0)
    assert found == pytest.approx(float(expected), rel=1e-14)


def test_orders_that_are_right_or_wrong_throughout() -> None:
    similarities = [1e4 * k for k in range(5)]
    assert of_similarities(similarities, [0, 1, 2, 3, 4]) == 0
    assert of_similarities(similarities, [4, 3, 2, 1, 0]) == pytest.approx(20 * 4e4, rel=1e-14)
    # One exponent below all that the greatest leaves of the others.
    assert of_similarities([0, 5e4, -1e5], [9, 8, 1]) == pytest.approx(20 * 5e4, rel=1e-14)
    # A loss far below the rounding of 1.
    assert of_similarities([0, 3], [0, 1]) == pytest.approx(8.7565107627e-27, rel=1e-9)


@pytest.mark.parametrize("scores", [[2.0] * 6, [1.0], []])
def test_without_two_different_scores_it_is_0(scores: list[float]) -> None:
    x, y = (smooth(len(scores), 5).requires_grad_() for _ in range(2))
    value = pairops.cosent_loss(x, y, torch.tensor(scores))
    assert value == 0
    for gradient in torch.autograd.grad(value, [x, y]):
        assert not gradient.any()


def test_derivatives_of_two_orders() -> None:
    x, y = (smooth(7, 3, DOUBLE).requires_grad_() for _ in range(2))
    temperature = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)
    scores = torch.tensor([2, 0, 1, 1, 2, 5, 1])

    def loss(x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
        return pairops.cosent_loss(x, y, scores, temperature=temperature)

    assert torch.autograd.gradcheck(loss, (x, y, temperature))
    assert torch.autograd.gradgradcheck(loss, (x, y, temperature))


def test_one_number_for_every_pair() -> None:
    x, y = smooth(N, 9, DOUBLE), smooth(N, 9, DOUBLE)
    scores, weight = SCORES["whole numbers"], torch.rand(N, dtype=DOUBLE)
    value = pairops.cosent_loss(x, y, scores)
    for reduction, expected in (("none", value * weight), ("sum", value * weight.sum())):
        found = pairops.cosent_loss(x, y, scores, weight=weight, reduction=reduction)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_shows(bad: float) -> None:
    x = smooth(4, 3)
    assert pairops.cosent_loss(x, x, torch.tensor([1.0, bad, 0.0, 2.0])).isnan()


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (torch.zeros(5), r"scores has shape \(5,\); it must be \(6,\), one for each row of x"),
        (torch.zeros(6, 1), r"scores has shape \(6, 1\); it must be \(6,\)"),
        ([1.0] * 6, "scores is list; it must be a real tensor"),
    ],
)
def test_bad_scores(scores: Any, says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        pairops.cosent_loss(torch.ones(6, 3), torch.ones(6, 3), scores)
