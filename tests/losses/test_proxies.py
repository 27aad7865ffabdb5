"""Losses against proxies of which nearly all is common, in 16 bits."""

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from support.error_rule import Dense, assert_within_rule
from support.named_cases import smooth

SETTINGS = {
    "arcface_loss": {"scale": 16.0, "margin": 0.1},
    "proxy_anchor_loss": {"alpha": 16.0},
    "proxy_nca_loss": {"scale": 16.0, "distance": "cosine"},
}


@pytest.mark.parametrize("engine", ["blockwise", "cpu", "dense"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SETTINGS)
def test_what_cancels_is_rounded_once(name: str, dtype: torch.dtype, engine: str) -> None:
    """The pull of the own proxy and the push of the others nearly cancel in the gradient by x."""
    torch.manual_seed(0)
    labels = torch.arange(24) % 8
    stored = [smooth(24, 16, dtype), (smooth(1, 16) + 0.03 * smooth(8, 16)).to(dtype)]

    def gradients(loss: str, wide: torch.dtype | None = None) -> list[Tensor]:
        kept = [z.double() if wide == torch.float64 else z for z in stored]
        x, proxies = leaves = [z.detach().requires_grad_() for z in kept]
        if wide is None:
            value = getattr(pairops, loss)(x, labels, proxies, **SETTINGS[loss], reduction="sum")
        else:
            formula = getattr(oracle, loss)
            value = formula(x, labels, proxies, **SETTINGS[loss], dtype=wide).sum()
        return list(torch.autograd.grad(value, leaves))

    with pairops.engine(engine):
        ours = gradients(name)
    dense = Dense(lambda: gradients(name, torch.float32))
    for k, (found, truth) in enumerate(zip(ours, gradients(name, torch.float64), strict=True)):
        assert_within_rule(f"gradient {k}", found, dense.result(k), truth)
