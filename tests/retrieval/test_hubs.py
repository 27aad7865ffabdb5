"""Dual softmax against the softmax over a bank, written out, and its ranks."""

from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops.retrieval import dual_softmax, evaluate, first_ranks
from support.engine_names import HERE

DOUBLE = torch.float64


def unit(z: Tensor) -> Tensor:
    z = z.double()
    return z / z.norm(dim=1, keepdim=True).clamp(min=1e-12)


def scores(x: Tensor, y: Tensor, bank: Tensor, scale: float, dynamic: bool) -> Tensor:
    """(N, M): e^{β s_ij} / Σ_k e^{β s_kj}, to the power 1/β where a query is not changed."""
    s, often = unit(x) @ unit(y).T, unit(bank) @ unit(y).T
    normalised = (scale * s).exp() / (scale * often).exp().sum(0)
    if not dynamic:
        return normalised
    hubs = {int(row.argmax()) for row in often}
    changed = torch.tensor([int(row.argmax()) in hubs for row in s])
    return torch.where(changed[:, None], normalised, s)


def hubby(n: int, m: int, k: int, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, ...]:
    """Queries and a bank around one direction, to which some references are near."""
    centre = torch.randn(8)
    x, y, bank = torch.randn(n, 8), torch.randn(m, 8), torch.randn(k, 8)
    y[::5] += centre
    return (x + centre).to(dtype), y.to(dtype), (bank + centre).to(dtype)


@pytest.mark.parametrize("engine", [name for name in HERE if name != "cuda"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_order_is_that_of_the_softmax(dynamic: bool, engine: str) -> None:
    x, y, bank = hubby(40, 61, 9, torch.float32 if engine in ("triton", "chunked") else DOUBLE)
    with pairops.engine(engine):
        queries, references = dual_softmax(x, y, bank, scale=7.0, dynamic=dynamic)
    ours = queries @ references.T
    truth = scores(x, y, bank, 7.0, dynamic)
    assert torch.equal(ours.argsort(1), truth.argsort(1))
    plain = (unit(x) @ unit(y).T).argsort(1)
    assert not torch.equal(ours.argsort(1), plain)
    same = (ours.argsort(1) == plain).all(1)
    assert bool(same.any()) == dynamic
    labels = torch.arange(61)
    ranks = first_ranks(queries, labels[:40], ref_emb=references, ref_labels=labels, distance="dot")
    own = truth[:, :40].diagonal()
    assert ranks.tolist() == (truth >= own[:, None]).sum(1).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
def test_what_is_returned(dtype: torch.dtype) -> None:
    """Unit vectors, and s_ij less the logarithm of a mean: as exact as its dtype."""
    x, y, bank = hubby(20, 30, 50, dtype)
    wide = DOUBLE if dtype == DOUBLE else torch.float32
    queries, references = dual_softmax(x, y, bank, scale=20.0)
    assert queries.dtype == references.dtype == wide
    truth = unit(x) @ unit(y).T
    truth = truth - (20 * unit(bank) @ unit(y).T).exp().mean(0).log() / 20
    bound = 8 * torch.finfo(wide).eps
    torch.testing.assert_close(queries.double() @ references.double().T, truth, rtol=0, atol=bound)
    part = dual_softmax(x, y[11:], bank, scale=20.0)[1]  # of a rank
    torch.testing.assert_close(part, references[11:], rtol=0, atol=bound)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = dual_softmax(x, y, bank, scale=20.0)
    assert all(torch.equal(a, b) for a, b in zip(again, (queries, references), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-37, 1e-5, 0.01, 1e9, 1e300])
def test_scales_out_of_the_ordinary(scale: float, dtype: torch.dtype) -> None:
    """Towards 0 the logarithm of the mean is the mean of s, and beyond all bounds its maximum."""
    x, y, bank = hubby(20, 30, 500, dtype)
    queries, references = dual_softmax(x, y, bank, scale=scale)
    assert queries.dtype == references.dtype == torch.float32
    often = unit(bank) @ unit(y).T
    mean = often.amax(0)
    if scale < 1:
        scale = max(scale, 1e-6)
        mean = (scale * often).exp().mean(0).log() / scale
    truth = unit(x) @ unit(y).T - mean
    torch.testing.assert_close(queries.double() @ references.double().T, truth, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dynamic", [False, True])
def test_nothing_and_one(dynamic: bool) -> None:
    x, y, bank = hubby(4, 6, 1)
    for some, others in ((x[:0], y), (x, y[:0]), (x[:1], y[:1])):
        queries, references = dual_softmax(some, others, bank, dynamic=dynamic)
        assert queries.shape == (len(some), 9)
        assert references.shape == (len(others), 9)
    zero = dual_softmax(torch.zeros_like(x), y, bank, dynamic=dynamic)[0]
    assert bool((zero[:, :8] == 0).all())
    grown = [z.clone().requires_grad_() for z in (x, y, bank)]
    assert not any(z.requires_grad for z in dual_softmax(*grown, dynamic=dynamic))


def test_a_query_among_the_references_is_not_its_own_nearest() -> None:
    x, _, bank = hubby(40, 1, 3)
    nearest = (unit(x) @ unit(x).T - 3 * torch.eye(40)).argmax(1)
    hubs = (unit(bank) @ unit(x).T).argmax(1).unique()
    changed = dual_softmax(x, x, bank, dynamic=True)[0][:, -1] == 1
    assert torch.equal(changed, torch.isin(nearest, hubs))
    assert 0 < int(changed.sum()) < 40


def test_hubs_go_back() -> None:
    """Two views of the same things, of which one has a few directions that all are near to."""
    things = torch.randn(300, 24)
    centre = 2 * torch.randn(24)
    x = things + torch.randn(300, 24) + centre
    y = things + torch.randn(300, 24)
    y[:20] += centre
    labels, own = torch.arange(300), {"distance": "dot"}

    def recall(queries: Tensor, references: Tensor, **how: Any) -> float:
        found = evaluate(queries, labels, ref_emb=references, ref_labels=labels, **how)
        return found.recall[1]

    bank = torch.randn(100, 24) * 2**0.5 + centre
    assert recall(*dual_softmax(x, y, bank, scale=20.0), **own) > recall(x, y) + 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank": torch.zeros(0, 8)}, r"bank has shape \(0, 8\); it must have at least one row"),
        ({"bank": torch.zeros(3, 7)}, "bank has"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"dynamic": 1}, "dynamic is int; it must be a bool"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    given = {"x": torch.eye(8), "y": torch.eye(8), "bank": torch.eye(8), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        dual_softmax(**given)
