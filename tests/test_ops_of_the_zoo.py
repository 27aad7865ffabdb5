"""Every loss in one graph of torch.compile, and differentiated twice."""

from typing import Any

import pytest
import torch
from cases import smooth
from torch import Tensor
from zoo import call

import pairops
from pairops import losses

DISTANCES = [
    pytest.param(name, {"distance": distance, "normalize": normalize})
    for name, distance, normalize in (
        ("contrastive_loss", "l2", True),
        ("triplet_loss", "sqeuclidean", False),
        ("ms_loss", "snr", True),
        ("info_nce_loss", "l2", False),
    )
]
# What lists positive pairs is as long as the labels say: no shape that a graph could know.
EVERY = [pytest.param(name, {}) for name in losses.__all__]


@pytest.mark.parametrize(("name", "params"), [*EVERY, *DISTANCES])
def test_compiled_in_one_graph(name: str, params: dict[str, Any]) -> None:
    x, other = smooth(24, 5), smooth(24, 5)

    def loss(x: Tensor) -> Any:
        labels = torch.arange(len(x)) % 5
        function = getattr(pairops, name)
        if name == "siglip_loss":
            return function(x, other, scale=10.0, bias=-10.0)
        if name == "multi_positive_loss":
            return function(x, other.unsqueeze(1))
        if name in ("proxy_anchor_loss", "proxy_nca_loss"):
            return function(x, labels, other[:5], **params)
        if name == "tal_loss":
            return function(x, other, labels)
        if name == "quality_weighted_info_nce_loss":
            return function(x, other, other[:, 0])
        if name in (
            "anchor_info_nce_loss",
            "decoupled_contrastive_loss",
            "info_nce_loss",
            "sms_loss",
        ):
            return function(x, other, **params)
        return function(x, labels, **params)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for run in (loss, compiled):
        mine = x.clone().requires_grad_()
        value = run(mine)
        (gradient,) = torch.autograd.grad(value, mine)
        results.append((value.detach(), gradient))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("engine", ["blockwise", "dense"])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        *EVERY,
        *DISTANCES,
        ("triplet_loss", {"mining": "all", "soft": True}),
        ("triplet_loss", {"mining": "semihard"}),
        ("lifted_structure_loss", {"form": "original"}),
        ("decoupled_contrastive_loss", {"sigma": 0.5}),
        ("proxy_nca_loss", {"smoothing": 0.1}),
    ],
)
def test_differentiated_twice(name: str, params: dict[str, Any], engine: str) -> None:
    """The gradient by autograd of the gradient is that of finite differences."""
    x = smooth(7, 4, torch.float64).requires_grad_()
    with pairops.use(engine):

        def gradient(x: Tensor) -> Tensor:
            value = call(name, x, **params)
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            return g

        direction = smooth(7, 4, torch.float64)
        found = gradient(x)
        assert found.requires_grad or not found.any()
        if not found.requires_grad:
            return
        (second,) = torch.autograd.grad((found * direction).sum(), x)
        assert bool(torch.isfinite(second).all())
        if name in ("circle_loss", "tal_loss"):  # their weights are held constant
            return
        step = 1e-6
        with torch.enable_grad():
            up, down = (
                gradient((x + s * direction).detach().requires_grad_()).detach()
                for s in (step, -step)
            )
        torch.testing.assert_close((up - down) / (2 * step), second, rtol=1e-4, atol=1e-5)
