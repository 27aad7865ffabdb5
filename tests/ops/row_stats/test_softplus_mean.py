"""The kernels of the mean of log(1 + exp R), and the loss that uses them, against float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pairops
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.row_stats.softplus_mean import _SoftMean

if cuda_kernels.BACKEND is None:
    pytest.skip("this build has no CUDA kernels", allow_module_level=True)

DIVISORS = [2.0, 50.0]


def mean(divisors: list[float], keep: Tensor | None, *statistics: Tensor) -> Tensor:
    loss: Tensor = _SoftMean.of(divisors, keep, *statistics)[0]
    return loss


def formula(divisors: list[float], keep: Tensor | None, *statistics: Tensor) -> Tensor:
    """In float64; a row that is not kept is not even looked at."""
    kept = [s.double() if keep is None else s.double()[keep] for s in statistics]
    losses = sum(
        torch.logaddexp(s, torch.zeros(())) / d for s, d in zip(kept, divisors, strict=True)
    )
    assert isinstance(losses, Tensor)
    return losses.sum() / max(losses.shape[0], 1)


def statistics_of(n: int, count: int = 2) -> list[Tensor]:
    """Of every size: from e^R vanishing to R itself."""
    return [(torch.randn(n) * 30 - 10 * k).requires_grad_() for k in range(count)]


def keep_of(n: int, some: bool) -> Tensor | None:
    return torch.arange(n) % 3 != 1 if some else None


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("n", [1, 2, 511, 513, 5000])
def test_value_and_gradient(n: int, some: bool) -> None:
    statistics, keep = statistics_of(n), keep_of(n, some)
    ours, truth = (f(DIVISORS, keep, *statistics) for f in (mean, formula))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), truth, rtol=3e-7, atol=0)
    found = torch.autograd.grad(ours, statistics, torch.tensor(3.0))
    expected = torch.autograd.grad(truth, statistics, torch.tensor(3.0, dtype=torch.float64))
    for one, other in zip(found, expected, strict=True):
        # A float32 exp vanishes below 1e-38.
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-38)
    assert torch.equal(ours, mean(DIVISORS, keep, *statistics)), "one order of summation"


@pytest.mark.parametrize("count", [1, 3, 4])
def test_as_many_statistics_as_are_given(count: int) -> None:
    statistics, divisors = statistics_of(200, count), [1.0, 3.0, 0.5, 7.0][:count]
    ours, truth = (f(divisors, None, *statistics) for f in (mean, formula))
    torch.testing.assert_close(ours.double(), truth, rtol=3e-7, atol=0)


def test_more_than_a_kernel_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="too many statistics"):
        mean([1.0] * 5, None, *statistics_of(3, 5))


def special(values: list[float], keep: Tensor | None = None) -> tuple[float, list[float]]:
    statistic = torch.tensor(values).requires_grad_()
    loss = mean([2.0], keep, statistic)
    loss.backward()
    assert statistic.grad is not None
    return loss.item(), statistic.grad.tolist()


def test_what_is_not_finite() -> None:
    assert special([-math.inf, -math.inf]) == (0, [0, 0])
    assert special([-math.inf, 0.0]) == (pytest.approx(math.log(2) / 4), [0, 0.125])
    assert special([math.inf, 1e30]) == (math.inf, [0.25, 0.25])
    loss, by = special([0.0, math.nan])
    assert math.isnan(loss)
    assert by[0] == 0.125
    assert math.isnan(by[1])
    for bad in (math.nan, math.inf):
        loss, by = special([0.0, bad], torch.tensor([True, False]))
        assert loss == pytest.approx(math.log(2) / 2)
        assert by == [0.25, 0]
    assert special([math.nan], torch.tensor([False])) == (0, [0]), "the mean of nothing is 0"
    assert special([]) == (0, [])


@pytest.mark.parametrize("some", [False, True])
def test_second_and_third_derivatives(some: bool) -> None:
    statistics, keep = [s.detach()[:40] / 20 for s in statistics_of(40)], keep_of(40, some)
    weight = torch.linspace(-1, 1, 40)

    def derivatives(function: Any) -> list[Tensor]:
        leaves = [s.clone().requires_grad_() for s in statistics]
        first = torch.autograd.grad(
            function(DIVISORS, keep, *leaves) ** 2, leaves, create_graph=True
        )
        second = torch.autograd.grad(
            sum((g * weight).sum() for g in first), leaves, create_graph=True
        )
        return [*first, *second, *torch.autograd.grad(sum((g**2).sum() for g in second), leaves)]

    for ours, truth in zip(derivatives(mean), derivatives(formula), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-9)


def test_a_row_that_is_not_kept_has_no_second_derivative() -> None:
    statistic = torch.tensor([0.5, math.nan, -math.inf]).requires_grad_()
    loss = mean([1.0], torch.tensor([True, False, True]), statistic)
    (first,) = torch.autograd.grad(loss, statistic, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), statistic)
    assert second.tolist() == [pytest.approx(0.5 * 0.2350037), 0, 0]


@pytest.mark.parametrize("ignored", [False, True])
def test_opcheck(ignored: bool) -> None:
    statistics, keep = [s.detach() for s in statistics_of(70)], keep_of(70, ignored)
    loss, count = torch.ops.pairops.soft_mean(statistics, DIVISORS, keep)
    ops = torch.ops.pairops
    for op, args in (
        (ops.soft_mean.default, (statistics, DIVISORS, keep)),
        (ops.soft_mean_slopes.default, (loss, count, statistics, DIVISORS, keep)),
    ):
        assert set(torch.library.opcheck(op, args).values()) == {"SUCCESS"}


def embeddings() -> tuple[Tensor, Tensor]:
    labels = torch.randint(6, (40,))
    labels[::7] = -100
    return torch.randn(40, 8, requires_grad=True), labels


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loss_takes_the_kernels(compiled: bool) -> None:
    x, labels = embeddings()
    torch.compiler.reset()
    loss = pairops.ms_loss
    if compiled:
        loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with pairops.engine("cuda"):
        ours = loss(x, labels)
        (by_ours,) = torch.autograd.grad(ours, x)
    with pairops.engine("dense"):
        truth = pairops.ms_loss(x.double(), labels)
        (by_truth,) = torch.autograd.grad(truth, x)
    torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(by_ours, by_truth, rtol=1e-4, atol=1e-6)


def test_it_is_the_engine_that_chooses() -> None:
    names: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            names.append(op.__name__)
            return op(*args, **(kwargs or {}))

    x, labels = embeddings()
    for engine in ("cuda", "blockwise"):
        names.clear()
        with pairops.engine(engine), Recorder():
            pairops.ms_loss(x, labels).backward()
        assert names.count("soft_mean.default") == (engine == "cuda")
        assert names.count("soft_mean_slopes.default") == (engine == "cuda")


def test_what_the_kernels_do_not_serve_is_torch() -> None:
    x, labels = embeddings()
    cases: list[dict[str, Any]] = [
        {"alpha": torch.tensor(2.0)},
        {"weight": torch.ones(40)},
        {"reduction": "sum"},
        {"reduction": "none"},
    ]
    for case in cases:
        with pairops.engine("cuda"):
            ours = pairops.ms_loss(x, labels, **case)
        with pairops.engine("dense"):
            truth = pairops.ms_loss(x.double(), labels, **case)
        torch.testing.assert_close(ours.double(), truth.double(), rtol=1e-5, atol=1e-6)
