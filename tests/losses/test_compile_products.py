"""Each loss in one graph for any size: distances, reductions and mining, and each Module."""

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import losses, nn
from support.exhaustive import exhaustive_but
from support.loss_parameters import AGAINST_PROXIES, LABELLED, parameters, with_rest
from support.named_cases import smooth

DISTANCES = ["cosine", "dot", "l2", "sqeuclidean", "snr"]
REDUCTIONS = ["mean", "mean_nonzero", "sum", "none"]
SIMILAR_ONLY = ["circle_loss", "proxy_anchor_loss"]
FORMS: dict[str, list[dict[str, Any]]] = {
    "ms_loss": [{}, {"epsilon": None}],
    "contrastive_loss": [{}, {"reduction": "mean_pairs"}],
    "margin_loss": [{"reduction": "mean_pairs"}, {"triplets": True}],
    "triplet_loss": [
        {"mining": "hard"},
        {"mining": "semihard"},
        {"mining": "all", "reduction": "mean_pairs"},
        {"mining": "all", "soft": True},
    ],
    "lifted_structure_loss": [{}, {"form": "original", "reduction": "mean_pairs"}],
    "nt_xent_loss": [{"reduction": "mean_pairs"}],
}


def cases() -> list[tuple[str, dict[str, Any]]]:
    """Every loss, form and distance; reductions, which come after all of these, take turns."""
    reductions = itertools.cycle(REDUCTIONS)
    found = []
    for name in losses.__all__:
        for form in FORMS.get(name, parameters(name)[:1]):
            for distance in DISTANCES[:2] if name in SIMILAR_ONLY else DISTANCES:
                found.append((name, {"reduction": next(reductions), "distance": distance, **form}))
    return found


def in_words(case: Any) -> str:
    name, params = case
    return "-".join([name, *[str(value) for value in params.values()]])


def loss(name: str, params: dict[str, Any], x: Tensor) -> Any:
    labels = torch.arange(len(x)) % 5
    function = getattr(pairops, name)
    if name in LABELLED:
        return function(x, labels, **params)
    other = 0.5 * x.detach().roll(1, 1) + 0.1
    if name in AGAINST_PROXIES:
        return function(x, labels, other[:5], **params)
    args, told = with_rest(name, x, other)
    return function(x, *args, **told, **params)


def agree(ours: Any, eager: Any, sizes: tuple[int, ...]) -> None:
    for n in sizes:
        results = []
        start = smooth(n, 6)
        for run in (ours, eager):
            x = start.clone().requires_grad_()
            value = run(x)
            results.append((value.detach(), *torch.autograd.grad(value.sum(), x)))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "case",
    exhaustive_but(
        [(case,) for case in cases()],
        lambda case: case[0] == "triplet_loss" and case[1]["distance"] in ("cosine", "l2"),
    ),
    ids=in_words,
)
def test_every_distance_for_any_size(case: tuple[str, dict[str, Any]]) -> None:
    torch._dynamo.reset()

    def eager(x: Tensor) -> Any:
        return loss(*case, x)

    agree(torch.compile(eager, fullgraph=True, dynamic=True, backend="eager"), eager, (24, 15))


def module(name: str) -> torch.nn.Module:
    kind = getattr(nn, name)
    if name == "LabelledLoss":
        return nn.LabelledLoss(pairops.supcon_loss, distance="l2")
    given = {"num_classes": 5, "embedding_size": 6}
    needed = [k for k in given if k in inspect.signature(kind).parameters]
    if name == "MarginLoss":
        return nn.MarginLoss(num_classes=5, learn_beta=True)
    built: torch.nn.Module = kind(**{k: given[k] for k in needed})
    return built


@pytest.mark.parametrize(
    "name", exhaustive_but([(name,) for name in nn.__all__], lambda name: name == "MarginLoss")
)
def test_every_module_with_sizes_that_change(name: str) -> None:
    """As torch.compile decides by itself: the first size is a constant, the next is not."""
    torch._dynamo.reset()
    layer = module(name)

    def call(run: Any) -> Any:
        if name in ("InfoNCELoss", "SigLIPLoss"):
            return lambda x: run(x, 0.5 * x.detach().roll(1, 1))
        return lambda x: run(x, torch.arange(len(x)) % 5)

    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    agree(call(compiled), call(layer), (24, 20, 31))


@pytest.mark.parametrize("engine", ["blockwise", "dense"])
def test_positive_pairs_as_rows_on_engines_in_torch(engine: str) -> None:
    """Their number is known when the graph runs."""
    torch._dynamo.reset()

    def eager(x: Tensor) -> Any:
        return loss("triplet_loss", {"mining": "semihard", "distance": "l2"}, x)

    with pairops.use(engine):
        agree(torch.compile(eager, fullgraph=True, dynamic=True, backend="eager"), eager, (24, 15))
