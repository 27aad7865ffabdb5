"""A loss of unit rows does not depend on how long they are: no gradient leads along a row."""

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from support.loss_parameters import call

EPS = torch.finfo(torch.float32).eps
# Of sums over all pairs, and of extremes, whose pairs are differentiated apart.
LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("supcon_loss", {"temperature": 0.5}),
    ("uniformity_loss", {"distance": "cosine"}),
    ("triplet_loss", {"mining": "hard", "margin": 0.1}),
]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01])
@pytest.mark.parametrize(("name", "params"), LOSSES)
def test_nothing_is_left_along_a_row(name: str, params: dict[str, Any], spread: float) -> None:
    """Where rows nearly coincide, the sum of weighted rows is almost along each of them, and many
    times as large as the gradient. Its rounding must not stay."""
    for seed in range(8):
        torch.manual_seed(seed)
        x = (torch.randn(1, 9) + spread * torch.randn(12, 9)).requires_grad_()
        call(name, x, reduction="sum", **params).backward()
        assert x.grad is not None
        assert x.grad.abs().max() > 0
        along = (x.grad.double() * normalize(x.detach().double(), dim=1)).sum(1)
        assert along.abs().max() <= 4 * EPS * x.grad.abs().max()
