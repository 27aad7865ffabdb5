"""Log-sum-exps of two, at any distance of one from the other."""

import itertools

import pytest
import torch

from pairops.ops.terms.accumulators import log_add_exp
from support.on_cpu import device as device

APART = (-1e4, -700.0, -90.0, -3.0, 0.0, 3.0, 90.0, 700.0, 1e4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_are_added_and_differentiated_twice(dtype: torch.dtype) -> None:
    """With z = b − a: a + log(1 + e^z), slopes 1 − σ(z) and σ(z), curvature σ(z)(1 − σ(z))."""
    for base, z in itertools.product((-50.0, 0.0, 50.0), APART):
        a, b = torch.tensor([base, base + z], dtype=dtype).requires_grad_().unbind()
        value = log_add_exp(a, b)
        slopes = torch.autograd.grad(value, (a, b), create_graph=True)
        curved = [torch.autograd.grad(g, (a, b), retain_graph=True) for g in slopes]
        wide = torch.tensor(z, dtype=torch.float64)
        share = torch.sigmoid(wide)
        bend = share * (1 - share)
        expected = [
            base + torch.logaddexp(wide, torch.zeros_like(wide)), 1 - share, share,
            bend, -bend, -bend, bend,
        ]  # fmt: skip
        found = [value, *slopes, *curved[0], *curved[1]]
        torch.testing.assert_close(
            torch.stack(found).double(), torch.stack(expected), rtol=4e-6, atol=1e-7
        )


def test_nothing_is_added() -> None:
    nothing = torch.full((3,), -torch.inf)
    some = torch.tensor([-1e4, 0.0, 80.0], requires_grad=True)
    for a, b in ((some, nothing), (nothing, some)):
        value = log_add_exp(a, b)
        assert torch.equal(value, some)
        (slope,) = torch.autograd.grad(value.sum(), some, create_graph=True)
        assert torch.equal(slope, torch.ones(3))
        assert not torch.autograd.grad(slope.sum(), some)[0].any()
    assert torch.equal(log_add_exp(nothing, nothing), nothing)
