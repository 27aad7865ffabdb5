"""Every loss in one graph of torch.compile, and differentiated twice."""

from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import losses
from support.loss_parameters import call
from support.named_cases import smooth

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


# Losses of pieces, of levels of earlier terms, over two sets, of bags, against proxies, with pair
# functions of their own.
ONE_OF_A_KIND = [
    "contrastive_loss", "info_nce_loss", "ms_loss", "proxy_anchor_loss", "multi_positive_loss",
    "sms_loss", "tal_loss", "nt_xent_loss",
]  # fmt: skip


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_compiled_in_one_graph(name: str) -> None:
    """Of one size. test_compile_products.py has every loss, and tests/ops/row_stats/test_op.py what
    the ops become further on."""
    x, other = smooth(24, 5), smooth(24, 5)

    def loss(x: Tensor) -> Any:
        labels = torch.arange(len(x)) % 5
        function = getattr(pairops, name)
        if name == "multi_positive_loss":
            return function(x, other.unsqueeze(1))
        if name == "proxy_anchor_loss":
            return function(x, labels, other[:5])
        if name == "tal_loss":
            return function(x, other, labels)
        if name in ("info_nce_loss", "sms_loss"):
            return function(x, other)
        return function(x, labels)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
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
    with pairops.engine(engine):

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


def naive_circle(x: Tensor, labels: Tensor, margin: Tensor, gamma: Tensor) -> Tensor:
    unit = x / x.norm(dim=1, keepdim=True)
    s, same = unit @ unit.T, labels[:, None] == labels
    apart = ~torch.eye(len(x), dtype=torch.bool)
    pull = -gamma * (1 + margin - s).clamp(min=0).detach() * (s - 1 + margin)
    push = gamma * (s + margin).clamp(min=0).detach() * (s - margin)
    pos = pull.masked_fill(~(same & apart), -torch.inf).logsumexp(1)
    neg = push.masked_fill(same, -torch.inf).logsumexp(1)
    return torch.nn.functional.softplus(pos + neg, threshold=1e9).mean()


def naive_tal(x: Tensor, labels: Tensor, margin: Tensor, temperature: Tensor) -> Tensor:
    y = x.detach().roll(1, 1)
    s = (x / x.norm(dim=1, keepdim=True)) @ (y / y.norm(dim=1, keepdim=True)).T
    same, losses = labels[:, None] == labels, x.new_zeros(len(x))
    for way in (s, s.T):
        weight = (way / temperature).masked_fill(~same, -torch.inf).softmax(1).detach()
        push = temperature * (way / temperature).masked_fill(same, -torch.inf).logsumexp(1)
        losses = losses + (margin - (weight * way).sum(1) + push).clamp(min=0)
    return losses.mean()


@pytest.mark.parametrize("engine", ["auto", "blockwise", "dense"])
@pytest.mark.parametrize("name", ["circle_loss", "tal_loss"])
def test_weights_held_constant_are_constant_to_second_derivatives_alone(
    name: str, engine: str
) -> None:
    """By the embeddings and by what is learned; against torch with a detach in the same place."""
    values = smooth(12, 5, torch.float64), *torch.tensor([0.3, 0.5], dtype=torch.float64).unbind()
    labels = torch.arange(12) % 4

    def ours(x: Tensor, margin: Tensor, other: Tensor) -> Any:
        if name == "circle_loss":
            return pairops.circle_loss(x, labels, margin=margin, gamma=other)
        y = x.detach().roll(1, 1)
        return pairops.tal_loss(x, y, labels, margin=margin, temperature=other)

    results = []
    for loss in (ours, lambda *z: (naive_circle if name == "circle_loss" else naive_tal)(
        z[0], labels, *z[1:]
    )):  # fmt: skip
        leaves = [z.clone().requires_grad_() for z in values]
        with pairops.engine(engine):
            first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
            square = sum((g * g).sum() for g in first)
            second = torch.autograd.grad(square, leaves, allow_unused=True, materialize_grads=True)
        results.append([*first, *second])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
