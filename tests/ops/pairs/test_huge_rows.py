"""Rows whose squares overflow: a unit row is the same however long it was, and so is a cosine."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import Pairs
from pairops.ops.pairs.similarity import constant_inverse_norm, inverse_norm
from support.engine_names import WIDE
from support.loss_parameters import call
from support.named_cases import smooth
from support.on_cpu import device as device
from support.without_float64 import WithoutFloat64

DOUBLE = torch.float64
LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("ms_loss", {}),
    ("supcon_loss", {}),
    ("info_nce_loss", {}),
    ("circle_loss", {}),
    ("triplet_loss", {"mining": "all"}),
    ("triplet_loss", {"distance": "l2"}),
    ("supcon_loss", {"distance": "sqeuclidean"}),
    ("contrastive_loss", {"distance": "snr"}),
]


def some_huge(n: int, power: int) -> Tensor:
    """(n, 1) factors of rows: every third is huge."""
    factor = torch.tensor(2.0**power, dtype=DOUBLE)
    return torch.where(torch.arange(n) % 3 == 1, factor, 1.0).unsqueeze(1)


@pytest.mark.parametrize("d", [1, 5, 130])
def test_scales(d: int) -> None:
    """The compiled ones, those in torch, and those with a gradient."""
    x = smooth(1100, d, DOUBLE)
    x[2:5] *= torch.tensor([[1e153], [1e155], [1e200]])
    x[5] = torch.finfo(DOUBLE).max
    x[6], x[7], x[8] = torch.nan, torch.inf, 0
    x[9] = 1e160
    x[9, 0] = 1e-160
    norms = [math.hypot(*row) for row in x.tolist()]
    truth = [0.0 if norm < 1e-12 else 1 / norm for norm in norms]
    truth[5] = 1 / torch.finfo(DOUBLE).max / math.sqrt(d)  # the norm itself is above all numbers
    wanted = torch.tensor(truth, dtype=DOUBLE)
    labels = torch.arange(1100) % 7
    scale = Pairs.of(x, labels).scales.x
    assert scale is not None
    for found in (scale, constant_inverse_norm(x), inverse_norm(x)):
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=5e-324, equal_nan=True)
    ordinary = torch.arange(1100) > 9
    for found, alone in (
        (scale, Pairs.of(x[ordinary], labels[ordinary]).scales.x),
        (inverse_norm(x), inverse_norm(x[ordinary])),
    ):
        assert alone is not None
        assert torch.equal(found[ordinary], alone)


def value_and_gradient(name: str, params: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = call(name, x, reduction="none", **params)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


@pytest.mark.parametrize("engine", ["auto", *[name for name in WIDE if name != "cpu"]])
@pytest.mark.parametrize("power", [499, 520, 1000])
@pytest.mark.parametrize(("name", "params"), LOSSES)
def test_losses(name: str, params: dict[str, Any], power: int, engine: str) -> None:
    x = smooth(30, 9, DOUBLE)
    factors = some_huge(30, power)
    with pairops.engine(engine):
        value, gradient = value_and_gradient(name, params, x)
        again, smaller = value_and_gradient(name, params, x * factors)
    torch.testing.assert_close(again, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(smaller * factors, gradient, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("engine", ["auto", "dense"])
@pytest.mark.parametrize("name", ["ms_loss", "supcon_loss"])
def test_second_derivatives(name: str, engine: str) -> None:
    x, along = smooth(12, 4, DOUBLE), smooth(12, 4, DOUBLE).flip(0)
    factors = some_huge(12, 501)

    def second(x: Tensor, along: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        with pairops.engine(engine):
            value = call(name, x)
        (first,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad((first * along).sum(), x)[0]

    found = second(x * factors, along * factors)
    torch.testing.assert_close(found * factors, second(x, along), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power", [60, 100, 120])
def test_devices_without_float64(power: int, dtype: torch.dtype) -> None:
    x = smooth(30, 9, dtype)
    huge = x * some_huge(30, power).to(dtype)
    for engine in ("auto", "dense"):
        with pairops.engine(engine), WithoutFloat64():
            value, gradient = value_and_gradient("supcon_loss", {}, x)
            again, smaller = value_and_gradient("supcon_loss", {}, huge)
        torch.testing.assert_close(again, value, rtol=1e-5, atol=1e-5)
        back = smaller.double() * some_huge(30, power)
        near = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(back, gradient.double(), rtol=near, atol=near)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("name", ["ms_loss", "supcon_loss"])
def test_float32_to_its_end(name: str) -> None:
    """Where 1/norm is no normal float32."""
    x = smooth(20, 9)
    factor = 0.9 * torch.finfo(torch.float32).max / float(x.abs().max())
    value, gradient = value_and_gradient(name, {}, x)
    again, smaller = value_and_gradient(name, {}, x * factor)
    torch.testing.assert_close(again, value, rtol=1e-4, atol=1e-4)
    back = smaller.double() * factor
    torch.testing.assert_close(back, gradient.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["blockwise", "dense"])
@pytest.mark.parametrize("distance", ["l2", "sqeuclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_distance_that_overflows_is_infinite(
    distance: str, dtype: torch.dtype, engine: str
) -> None:
    """Rows as they are: far from all others, not NaN."""
    x = smooth(12, 5, dtype)
    x[3] *= torch.finfo(dtype).max ** 0.6
    labels = torch.arange(12) // 2
    params: dict[str, Any] = {"distance": distance, "normalize": False, "pos_margin": 0.1}

    def loss(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        with pairops.engine(engine):
            value = pairops.contrastive_loss(x, labels, neg_margin=9.0, reduction="none", **params)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    value, _ = loss(x, labels)
    assert (value == torch.inf).nonzero().flatten().tolist() == [2, 3]
    assert value.isnan().sum() == 0
    # Without a positive it is far enough from everyone, and nothing is to be done.
    labels[3] = 9
    value, gradient = loss(x, labels)
    others = torch.arange(12) != 3
    expected, of_others = loss(x[others], labels[others])
    torch.testing.assert_close(value[others], expected)
    assert value[3] == 0
    if engine == "dense":  # a slope that is written out may be a NaN there
        torch.testing.assert_close(gradient[others], of_others)
        assert not gradient[3].any()
