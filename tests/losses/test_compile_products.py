"""Each loss in one graph for any size: distances, reductions and mining, and each Module."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import pairops
from pairops import losses, nn
from pairops.ops.row_stats import op
from support.exhaustive import exhaustive, exhaustive_but
from support.loss_parameters import AGAINST_PROXIES, LABELLED, parameters, with_rest
from support.named_cases import smooth

LAST_DISTANCES = {
    "circle_loss": "dot",  # of similarities alone
    "arcface_loss": "dot",
    "fast_ap_loss": "dot",
    "proxy_anchor_loss": "dot",
    "hydra_loss": "cosine",
    "hashing_loss": "dot",
    "cwcl_loss": "dot",
    "gram_matching_loss": "dot",
    "ms_loss": "snr",
    "contrastive_loss": "sqeuclidean",
    "triplet_loss": "snr",
    "margin_loss": "cosine",
    "supcon_loss": "dot",
}
REDUCTIONS = ["mean", "mean_nonzero", "sum", "none"]
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
    """Every loss once, some in several forms: on l2, which goes furthest from a product, and the
    last form of some on another. Reductions do the same to all losses, so they take turns."""
    reductions = itertools.cycle(REDUCTIONS)
    found = []
    for name in losses.__all__:
        for form in FORMS.get(name, parameters(name)[:1]):
            found.append((name, {"reduction": next(reductions), "distance": "l2", **form}))
        found[-1][1]["distance"] = LAST_DISTANCES.get(name, "l2")
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


@exhaustive
@pytest.mark.parametrize("case", cases(), ids=in_words)
def test_every_distance_for_any_size(case: tuple[str, dict[str, Any]]) -> None:
    torch._dynamo.reset()

    def eager(x: Tensor) -> Any:
        return loss(*case, x)

    agree(torch.compile(eager, fullgraph=True, dynamic=True, backend="eager"), eager, (24,))


# Of each kind of Module one: with labels, of any loss, with what is learned, against proxies, over
# two sets. The losses that they call are compiled above.
KINDS = [
    "InfoNCELoss", "LossModule", "MarginPairLoss", "ProxyAnchorLoss", "SigLIPLoss", "SupConLoss",
]  # fmt: skip


def others(name: str, x: torch.Tensor) -> list[torch.Tensor]:
    """What the Module is called with besides x."""
    return [
        0.5 * x.roll(1, 1) if name in ("InfoNCELoss", "SigLIPLoss") else torch.arange(len(x)) % 5
    ]


def module(name: str) -> torch.nn.Module:
    if name == "LossModule":
        return nn.LossModule(pairops.supcon_loss, distance="l2")
    if name == "MarginPairLoss":
        return nn.MarginPairLoss(beta=torch.full((5,), 1.2), learn=["beta"])
    if name == "InfoNCELoss":
        return nn.InfoNCELoss(learn=["temperature"])
    kind = getattr(nn, name)
    built: torch.nn.Module = kind(5, 6) if name == "ProxyAnchorLoss" else kind()
    return built


@pytest.mark.parametrize("name", exhaustive_but(KINDS, lambda name: name == "MarginPairLoss"))
def test_modules_with_sizes_that_change(name: str) -> None:
    """As torch.compile decides by itself: the first size is a constant, the next is not."""
    torch._dynamo.reset()
    layer = module(name)

    def call(run: Any) -> Any:
        return lambda x: run(x, *others(name, x.detach()))

    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    agree(call(compiled), call(layer), (24, 20))


@pytest.mark.parametrize(
    "engine", exhaustive_but(["blockwise", "dense"], lambda engine: engine == "blockwise")
)
def test_positive_pairs_as_rows_on_engines_in_torch(engine: str) -> None:
    """Their number is known when the graph runs."""
    torch._dynamo.reset()

    def eager(x: Tensor) -> Any:
        return loss("triplet_loss", {"mining": "semihard", "distance": "l2"}, x)

    with pairops.engine(engine):
        agree(torch.compile(eager, fullgraph=True, dynamic=True, backend="eager"), eager, (24, 15))


ANNEALED: dict[str, Any] = {
    "supcon_loss": lambda x, labels, t: pairops.supcon_loss(x, labels, temperature=t),
    "ms_loss": lambda x, labels, t: pairops.ms_loss(
        x, labels, alpha=1 + t, beta=30 - t, base=0.5 * t, epsilon=0.1 + t
    ),
    "contrastive_loss": lambda x, labels, t: pairops.contrastive_loss(
        x, labels, pos_margin=t, neg_margin=2 - t, distance="l2", reduction="mean_pairs"
    ),
    "triplet_loss": lambda x, labels, t: pairops.triplet_loss(x, labels, margin=t),
}


@pytest.mark.parametrize(
    ("name", "engine"),
    exhaustive_but(
        [*((name, "auto") for name in ANNEALED), ("ms_loss", "blockwise")],
        lambda name, _: name == "supcon_loss",
    ),
)
def test_a_number_that_changes_at_every_step_is_an_input(name: str, engine: str) -> None:
    """The first value may be a constant of the graph, the next is not; results are eager's."""
    anneal(name, engine)


@pytest.mark.parametrize(
    ("name", "engine"),
    exhaustive_but(
        [("supcon_loss", "blockwise"), ("ms_loss", "chunked"), ("contrastive_loss", "triton")],
        lambda name, engine: (name, engine) == ("supcon_loss", "blockwise"),
    ),
)
def test_such_a_number_stays_on_the_device(
    name: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its value would have to be waited for, as on a GPU."""
    monkeypatch.setattr(op, "_reads_at_once", lambda _device: False)
    monkeypatch.setattr(op, "_traced", None)
    anneal(name, engine)


def anneal(name: str, engine: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(ANNEALED[name], fullgraph=True, backend=counter)
    labels = torch.arange(24) % 5
    with pairops.engine(engine):
        for step in range(4):
            t = 0.3 - 0.06 * step
            agree(
                lambda x, t=t: compiled(x, labels, t),
                lambda x, t=t: ANNEALED[name](x, labels, t),
                (24,),
            )
    assert counter.frame_count <= 2
