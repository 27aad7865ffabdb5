"""The mean of ms_loss by the engine `cuda` in one node, against the mean of its losses."""

import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import pairops
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.engines import cuda_engine
from pairops.ops.row_stats import cuda_mean

if cuda_kernels.BACKEND is None:
    pytest.skip("this build has no CUDA kernels", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PARAMETERS: list[dict[str, Any]] = [
    {},
    {"epsilon": None, "alpha": 3.0},
    {"distance": "dot", "beta": 10.0},
    {"ignore_index": None},
]


@pytest.fixture
def taken() -> Iterator[mock.Mock]:
    """Called once for every loss that goes this way."""
    made = cuda_engine.forward_with_mean
    with (
        mock.patch.object(cuda_engine, "forward_with_mean", wraps=made) as forward,
        pairops.engine("cuda"),
    ):
        yield forward


def batch(
    n: int = 70, dtype: torch.dtype = torch.float32, ignored: bool = True
) -> tuple[Tensor, Tensor]:
    """Embeddings with a gradient, and labels, some of them alone and some ignored."""
    labels = torch.randint(0, max(n // 4, 1), (n,))
    if ignored and n > 2:
        labels[[1, n // 2]] = -100
    return torch.randn(n, 24).to(dtype).requires_grad_(), labels


def one_by_one(x: Tensor, labels: Tensor, **keywords: Any) -> Tensor:
    """The mean over the anchors that are not ignored, in float64."""
    other = {"ref_emb": keywords["ref_emb"].double()} if "ref_emb" in keywords else {}
    with pairops.engine("dense"):
        losses = pairops.ms_loss(x.double(), labels, **{**keywords, **other}, reduction="none")
    ignored = keywords.get("ignore_index", -100)
    count = len(labels) if ignored is None else int((labels != ignored).sum())
    return losses.sum() / max(count, 1)


def assert_same(x: Tensor, labels: Tensor, leaves: list[Tensor], **keywords: Any) -> None:
    """Value and gradients, of a multiple of the mean."""
    ours, truth = pairops.ms_loss(x, labels, **keywords), one_by_one(x, labels, **keywords)
    assert (ours.dtype, ours.shape) == (torch.float32, ())
    bound = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}[x.dtype]
    torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-6)
    found, expected = (torch.autograd.grad(-3 * z, leaves) for z in (ours, truth))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == x.dtype
        size = float(b.detach().float().abs().max())
        torch.testing.assert_close(a.float(), b.float(), rtol=bound, atol=bound * size)


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_mean_of_the_losses(
    taken: mock.Mock, dtype: torch.dtype, parameters: dict[str, Any]
) -> None:
    # Of float16 rows a pair at a window may be inside for one dtype and outside for another.
    n = 1 if "ignore_index" in parameters else 70
    x, labels = batch(n, dtype, "ignore_index" not in parameters)
    mined = dtype != torch.float32 and "epsilon" not in parameters
    assert_same(x, labels, [x], **parameters, **({"epsilon": 2.0} if mined else {}))
    assert taken.call_count == 1


def test_two_sets_and_who_has_a_gradient(taken: mock.Mock) -> None:
    x, labels = batch()
    wide = torch.randn(50, 60).requires_grad_()
    y, ref_labels = wide[:, 5:53:2], torch.randint(0, 17, (50,))
    assert_same(x, labels, [x, wide], ref_emb=y, ref_labels=ref_labels)
    assert_same(x, labels, [x], ref_emb=y.detach(), ref_labels=ref_labels)
    assert_same(x.detach(), labels, [wide], ref_emb=y, ref_labels=ref_labels)
    with torch.no_grad():
        found = pairops.ms_loss(x, labels)
    assert not found.requires_grad
    assert torch.equal(found, pairops.ms_loss(x, labels).detach())
    assert taken.call_count == 5


def test_rows_of_which_none_counts(taken: mock.Mock) -> None:
    x = torch.randn(5, 8).requires_grad_()
    loss = pairops.ms_loss(x, torch.full((5,), -100))
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert not x.grad.any()
    assert taken.call_count == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(taken: mock.Mock, bad: float) -> None:
    x, labels = batch()
    with torch.no_grad():
        x[7] = bad
        x[1] = bad  # which is ignored
    loss = pairops.ms_loss(x, labels)
    (found,) = torch.autograd.grad(loss, x)
    assert bool(loss.isnan())
    assert not found[7].isfinite().any()
    assert not found[1].any()
    # A finite loss whose own gradient is not.
    x, labels = batch()
    (found,) = torch.autograd.grad(pairops.ms_loss(x, labels), x, torch.tensor(bad))
    assert not found[labels >= 0].isfinite().any()
    assert taken.call_count == 2


def test_a_gradient_twice_and_several_at_once(taken: mock.Mock) -> None:
    x, labels = batch(30)
    value = pairops.ms_loss(x, labels)
    first, second = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    several = torch.tensor([1.0, -2.0, 0.0])

    def of(gradient: Tensor) -> Tensor:
        return torch.autograd.grad(value, x, gradient, retain_graph=True)[0]

    batched = torch.autograd.grad(value, x, several, is_grads_batched=True, retain_graph=True)
    for found in (batched[0], torch.vmap(of)(several)):
        torch.testing.assert_close(found, several[:, None, None] * first, rtol=1e-5, atol=1e-7)
    assert taken.call_count == 1


def test_second_derivatives(taken: mock.Mock) -> None:
    x, labels = batch(20)
    seconds = []
    for value in (pairops.ms_loss(x, labels), one_by_one(x, labels)):
        (g,) = torch.autograd.grad(value, x, create_graph=True)
        seconds.append(torch.autograd.grad(g.square().sum(), x)[0])
    size = float(seconds[1].abs().max())
    torch.testing.assert_close(*seconds, rtol=1e-3, atol=1e-3 * size)
    assert taken.call_count == 1


def test_saved_tensors_are_torch_s(taken: mock.Mock) -> None:
    """They may be packed, and come back with any stride; who changes one in place hears of it."""
    x, labels = batch()
    (plain,) = torch.autograd.grad(pairops.ms_loss(x, labels), x)
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda z: z.detach().clone(), lambda z: torch.stack([z] * 2, -1)[..., 0]
    )
    with hooks:
        value = pairops.ms_loss(x, labels)
    assert torch.equal(torch.autograd.grad(value, x)[0], plain)
    value = pairops.ms_loss(x, labels)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    assert taken.call_count == 3


def test_the_next_call_s_memory_is_another_s(taken: mock.Mock) -> None:
    """Plans and layouts are kept between calls; addresses are not."""
    given = [batch(n) for n in (40, 40, 25)]
    alone = [torch.autograd.grad(pairops.ms_loss(*one), one[0])[0] for one in given]
    losses = [pairops.ms_loss(*one) for one in given]
    together = [torch.autograd.grad(z, one[0])[0] for z, one in zip(losses, given, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert taken.call_count == 6


def test_what_goes_another_way(taken: mock.Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = batch(dtype=torch.bfloat16)
    for case in (
        {"alpha": torch.tensor(2.0)},
        {"weight": torch.ones(70)},
        {"reduction": "sum"},
        {"reduction": "none"},
    ):
        pairops.ms_loss(x, labels, **case)
    pairops.ms_loss.with_aux(x, labels, epsilon=None)
    pairops.supcon_loss(x, labels)
    with pairops.engine("blockwise"):
        pairops.ms_loss(x, labels)
    assert not taken.called
    # Who serves a GPU if nobody is named.
    for first in ("cuda", "triton"):
        order = ["cpu", first, "blockwise"]
        monkeypatch.setattr(cuda_mean.engines, "_preferred", lambda _, order=order: order)
        meta = mock.Mock(x=mock.Mock(device=torch.device("cuda")))
        with pairops.engine("auto"):
            assert cuda_mean.engines.asks_cuda_first(meta) == (first == "cuda")
