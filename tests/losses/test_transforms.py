"""Losses under torch.func, forward mode and batched gradients, against autograd, one at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import pairops
from pairops import losses
from support.exhaustive import exhaustive_but
from support.loss_parameters import AGAINST_PROXIES, LABELLED, parameters, with_rest
from support.named_cases import smooth

Loss = Callable[[Tensor], Tensor]

FURTHER: list[tuple[str, dict[str, Any]]] = [
    ("supcon_loss", {"distance": "l2"}),
    ("ms_loss", {"epsilon": None, "weight": torch.linspace(0.5, 2, 6, dtype=torch.float64)}),
    ("contrastive_loss", {"distance": "snr", "reduction": "mean_pairs"}),
    ("triplet_loss", {"mining": "all", "soft": True}),
    ("triplet_loss", {"mining": "semihard", "distance": "sqeuclidean"}),
    ("lifted_structure_loss", {"form": "original", "reduction": "mean_pairs"}),
    ("margin_loss", {"triplets": True, "reduction": "mean_pairs"}),
    ("decoupled_contrastive_loss", {"sigma": 0.5}),
    ("proxy_nca_loss", {"smoothing": 0.1}),
    ("info_nce_loss", {"distance": "l2", "normalize": False}),
]
EVERY = [*[(name, {}) for name in losses.__all__], *FURTHER]
SOME = ["supcon_loss", "ms_loss", "info_nce_loss", "triplet_loss"]
# Under every transform, together with SOME: weights, rows that are pairs, a detached weight.
THOROUGH = [FURTHER[1], FURTHER[5], ("circle_loss", {})]


def loss_of(name: str, params: dict[str, Any], *, aux: bool = False) -> Loss:
    """The loss as a function of x (6, 2) alone: all else stands still."""
    other = smooth(6, 2, torch.float64).roll(2, 0).flip(1) * 0.8
    labels = torch.arange(6) % 3
    function = getattr(pairops, name)
    function = function.with_aux if aux else function
    params = {**parameters(name)[0], **params}
    if name in LABELLED:
        return lambda x: function(x, labels, **params)
    if name in AGAINST_PROXIES:
        return lambda x: function(x, labels, other[:4], **params)
    args, told = with_rest(name, other, other)
    return lambda x: function(x, *args, **told, **params)


def gradient(loss: Loss, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


def second(loss: Loss, x: Tensor) -> Tensor:
    """(6, 2, 6, 2), row by row, each by autograd twice."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    if not first.requires_grad:
        return torch.zeros(x.shape + x.shape, dtype=x.dtype)
    rows = [
        torch.autograd.grad(g, x, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
        for g in first.flatten()
    ]
    return torch.stack(rows).view(x.shape + x.shape)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
@pytest.mark.parametrize(
    ("case", "engine"),
    exhaustive_but(
        # "dense" is torch's own operations.
        [*((case, "auto") for case in EVERY), *(((name, {}), "dense") for name in SOME)],
        lambda case, _: case[0] in SOME and not case[1],
    ),
)
def test_torch_func(case: tuple[str, dict[str, Any]], engine: str) -> None:
    x, along = smooth(6, 2, torch.float64), smooth(6, 2, torch.float64).roll(1, 0)
    batch = torch.stack([x, x + 0.3 * along])
    vectorized = torch.autograd.functional.hessian
    with pairops.engine(engine):
        loss = loss_of(*case)
        value, first, twice = loss(x), gradient(loss, x), second(loss, x)
        losses = torch.stack([loss(z) for z in batch])
        gradients = torch.stack([gradient(loss, z) for z in batch])
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, along)))
        found = {
            "forward mode": (dual.tangent, (first * along).sum()),
            "vmap": (vmap(loss)(batch), losses),
            "vmap(grad)": (vmap(grad(loss))(batch), gradients),
            "hessian": (hessian(loss)(x), twice),
        }
        if (case[0] in SOME and not case[1]) or case in THOROUGH:  # the same rules, otherwise met
            found |= {
                "grad": (grad(loss)(x), first),
                "vjp": (vjp(loss, x)[1](torch.ones_like(value))[0], first),
                "jvp": (jvp(loss, (x,), (along,))[1], (first * along).sum()),
                "jacrev": (jacrev(loss)(x), first),
                "jacfwd": (jacfwd(loss)(x), first),
                "jacrev twice": (jacrev(jacrev(loss))(x), twice),
                "jacfwd twice": (jacfwd(jacfwd(loss))(x), twice),
                "vectorize": (vectorized(loss, x, vectorize=True), twice),
                "vectorize, forward mode": (
                    vectorized(loss, x, vectorize=True, outer_jacobian_strategy="forward-mode"),
                    twice,
                ),
            }
    for name, (ours, expected) in found.items():
        torch.testing.assert_close(
            ours, expected, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    "name", ["supcon_loss", "ms_loss", "info_nce_loss", "lifted_structure_loss"]
)
def test_what_a_loss_saw_comes_out_of_transforms(name: str) -> None:
    batch = torch.stack([smooth(6, 2, torch.float64), smooth(6, 2, torch.float64).roll(1, 0)])
    loss = loss_of(name, {}, aux=True)
    each = [loss(x)[1] for x in batch]
    _, one = grad(loss, has_aux=True)(batch[0])
    _, all_of_them = vmap(loss)(batch)
    _, by_gradient = vmap(grad(loss, has_aux=True))(batch)
    for field in dataclasses.fields(pairops.Aux):
        first, second = (getattr(aux, field.name) for aux in each)
        found = [getattr(aux, field.name) for aux in (one, all_of_them, by_gradient)]
        if first is None:
            assert found == [None] * 3
            continue
        together = (
            {key: torch.stack([first[key], second[key]]) for key in first}
            if isinstance(first, dict)
            else torch.stack([first, second])
        )
        torch.testing.assert_close(found, [first, together, together])
