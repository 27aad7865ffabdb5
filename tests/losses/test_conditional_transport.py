"""Conditional transport on every engine, its derivatives, and where it ends as β grows."""

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from support.engine_names import HERE
from support.loss_comparison import check
from support.named_cases import smooth

DOUBLE = torch.float64


@pytest.mark.usefixtures("small_tiles")
def test_on_every_engine() -> None:
    def ours(x: Tensor, y: Tensor) -> Tensor:
        return pairops.conditional_transport_loss(x, y, reduction="none")

    ran = check([smooth(40, 9), smooth(40, 9)], ours, oracle.conditional_transport_loss)
    assert set(ran) == {"blockwise", "dense", "triton", "chunked"} & set(HERE)


@pytest.mark.parametrize("engine", ["blockwise", "dense"])
def test_derivatives(engine: str) -> None:
    x, y, scale = smooth(6, 4, DOUBLE), smooth(6, 4, DOUBLE), torch.tensor(3.0, dtype=DOUBLE)
    leaves = [z.requires_grad_() for z in (x, y, scale)]

    def loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return pairops.conditional_transport_loss(x, y, scale=scale)

    with pairops.engine(engine):
        torch.autograd.gradcheck(loss, leaves, fast_mode=True)
        torch.autograd.gradgradcheck(loss, leaves, fast_mode=True)


def test_a_sharp_one_goes_to_the_nearest() -> None:
    x, y = smooth(30, 9, DOUBLE), smooth(30, 9, DOUBLE)
    s = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T
    sharp = pairops.conditional_transport_loss(x, y, scale=1e5, reduction="none")
    torch.testing.assert_close(sharp, 2 - s.amax(1) - s.amax(0), rtol=1e-9, atol=1e-9)
    d = torch.cdist(x, y)
    sharp = pairops.conditional_transport_loss(
        x, y, scale=1e5, distance="l2", normalize=False, reduction="none"
    )
    torch.testing.assert_close(sharp, d.amin(1) + d.amin(0), rtol=1e-9, atol=1e-9)
