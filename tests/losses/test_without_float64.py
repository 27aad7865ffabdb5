"""Every loss, metric and look inside on a device without float64: close to what it is elsewhere."""

from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import losses
from pairops.ops.bindings import devices
from support.loss_parameters import call
from support.named_cases import smooth
from support.on_cpu import device as device
from support.without_float64 import WithoutFloat64

# The distances of a loss, of unit vectors and of embeddings as they are.
EVERY = [
    {"distance": "cosine"},
    {"distance": "dot"},
    *[
        {"distance": distance, "normalize": normalize}
        for distance in ("l2", "sqeuclidean", "snr")
        for normalize in (True, False)
    ],
]


def _of_loss(name: str, params: dict[str, Any], x: Tensor) -> list[Tensor]:
    mine = x.clone().requires_grad_()
    value = call(name, mine, **params)
    (gradient,) = torch.autograd.grad(value, mine)
    return [value.detach(), gradient]


@pytest.mark.parametrize("name", losses.__all__)
def test_losses(name: str) -> None:
    x = smooth(30, 9)
    for params in EVERY:
        try:
            elsewhere = _of_loss(name, params, x)
        except ValueError as error:
            if "compares" not in str(error):
                raise
            continue
        with WithoutFloat64():
            here = _of_loss(name, params, x)
        for a, b in zip(here, elsewhere, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4 * float(b.abs().max()))


@pytest.mark.parametrize("engine", ["auto", "blockwise", "dense"])
def test_what_differentiates_a_scale_or_lists_rows(engine: str) -> None:
    """Second derivatives, references, ignored rows, mining, pair weights, retrieval."""
    x, y, labels = smooth(30, 9), smooth(20, 9), torch.arange(30) // 3
    labels[4] = -100

    def every() -> list[Any]:
        mine = x.clone().requires_grad_()
        value = pairops.supcon_loss(mine, labels, ref_emb=y, ref_labels=labels[:20])
        (gradient,) = torch.autograd.grad(value, mine, create_graph=True)
        (twice,) = torch.autograd.grad((gradient * x).sum(), mine)
        weights = pairops.pair_weights(pairops.ms_loss, x, labels)
        mined = pairops.mine(x, labels, mining="hard")
        found = pairops.retrieval.evaluate(x, labels)
        precisions = [*pairops.retrieval.average_precisions(x, labels)]
        return [twice, weights, *mined, found.mrr, found.map_at_r, *precisions]

    elsewhere = every()
    with pairops.engine(engine), WithoutFloat64():
        here = every()
    for a, b in zip(here, elsewhere, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_strips_of_retrieval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairops.retrieval.metrics, "_COUNTED", 0)
    x, labels = smooth(30, 9), torch.arange(30) // 3
    elsewhere = pairops.retrieval.evaluate(x, labels)
    with WithoutFloat64():
        here = pairops.retrieval.evaluate(x, labels)
    assert here.map_at_r == pytest.approx(elsewhere.map_at_r, rel=1e-6)


def test_float64_is_asked_of_the_device() -> None:
    """In a graph of torch.compile too, where tensors are of no device."""
    x, labels = smooth(12, 5), torch.arange(12) // 3

    def loss(x: Tensor) -> Any:
        return pairops.supcon_loss(x, labels)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = loss(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "has_float64", lambda _device: False)
        graph = []
        torch.compile(loss, fullgraph=True, backend=lambda g, _: graph.append(g) or g.forward)(x)
    made = [n.args[-1] for n in graph[0].graph.nodes if n.target == torch.ops.pairops.sort_by_label]
    assert made == [torch.float32]
    torch.testing.assert_close(compiled(x), expected)
