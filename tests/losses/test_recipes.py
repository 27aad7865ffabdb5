"""What is only another call of a loss: the recipes of docs/losses.md against their papers."""

import pytest
import torch

import oracle
import pairops
from support.named_cases import smooth

DOUBLE = torch.float64


@pytest.mark.parametrize("n", [1, 24])
def test_one_space_is_drawn_to_another_that_stands_still(n: int) -> None:
    x, anchor = (smooth(n, 5, DOUBLE).requires_grad_() for _ in range(2))
    value = pairops.info_nce_loss(x, anchor.detach(), symmetric=False)
    expected = oracle.anchor_info_nce_loss(x, anchor).mean()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*torch.autograd.grad(value, x), *torch.autograd.grad(expected, x))


@pytest.mark.parametrize("gamma", [1.0, 3.0])
def test_pairs_weighted_by_their_quality(gamma: float) -> None:
    x, y = smooth(24, 5, DOUBLE).requires_grad_(), smooth(24, 5, DOUBLE)
    quality = torch.linspace(-1, 1, 24, dtype=DOUBLE)
    weight = len(x) * torch.softmax(gamma * quality, 0)
    value = pairops.info_nce_loss(x, y, symmetric=False, weight=weight)
    expected = oracle.quality_weighted_info_nce_loss(x, y, quality, gamma=gamma).mean()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*torch.autograd.grad(value, x), *torch.autograd.grad(expected, x))
