"""auc_loss: its definition, negatives of no anchor, and more positives than a sweep takes."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

import pairops
from support.named_cases import smooth
from support.on_cpu import device as device

DOUBLE = torch.float64


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 3), (5, 9), (40, 40)])
def test_its_definition(n: int, m: int) -> None:
    x, y = smooth(n, 9, DOUBLE).requires_grad_(), smooth(m, 9, DOUBLE).requires_grad_()
    temperature = torch.tensor(0.1, dtype=DOUBLE, requires_grad=True)
    s = normalize(x) @ normalize(y).T
    negatives = s[~torch.eye(n, m, dtype=torch.bool)]
    apart = (negatives - s.diagonal()[:, None]) / temperature
    expected = softplus(apart, threshold=1e9).sum() / n
    leaves = [x, y, temperature]
    ours = pairops.auc_loss(x, y, temperature=temperature)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    for found, wanted in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


def test_a_weight_is_that_of_a_positive() -> None:
    x, y, weight = smooth(7, 4, DOUBLE), smooth(7, 4, DOUBLE), torch.rand(7, dtype=DOUBLE)
    each = pairops.auc_loss(x, y, reduction="none")
    found = pairops.auc_loss(x, y, weight=weight, reduction="sum")
    torch.testing.assert_close(found, (each * weight).sum())


def test_derivatives_of_two_orders() -> None:
    x, y = (smooth(4, 3, DOUBLE).requires_grad_() for _ in range(2))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return pairops.auc_loss(x, y, temperature=0.5)

    assert torch.autograd.gradcheck(loss, (x, y))
    assert torch.autograd.gradgradcheck(loss, (x, y))
