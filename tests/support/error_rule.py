"""The error rule: a result may lie twice as far from float64 as what dense torch gets, plus 4ε."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from oracle.orders import ORDERS, Order, summed_in
from pairops.ops.bindings import devices
from pairops.ops.engines import dense as dense_engine

# In float64 dense torch as stored is the truth itself.
WIDE_ORDERS = {name: order for name, order in ORDERS.items() if name != "as stored"}


class Dense:
    """Dense torch's results of one call, in one order of summation after another.

    One order alone says little of a small problem, where a lucky rounding leaves no error to be
    twice of: what counts is the worst of all orders. They can only raise a bound, so a result that
    is within that of the first ones needs no others. The oracle is the slow part of these tests,
    and so each order is computed when it is asked for, and once for all engines.
    """

    def __init__(
        self, run: Callable[[], Sequence[Tensor]], dtype: torch.dtype = torch.float32
    ) -> None:
        """run: the oracle, or the engine "dense", summing in `dtype`."""
        self._run = run
        self._orders = WIDE_ORDERS if dtype == torch.float64 else ORDERS
        self._found: dict[str, Sequence[Tensor]] = {}

    def result(self, k: int) -> Iterator[Tensor]:
        """Yield the k-th result in every order."""
        for name in self._orders:
            if name not in self._found:
                with _all_summed_in(self._orders[name]):
                    self._found[name] = self._run()
            yield self._found[name][k]


@contextmanager
def _all_summed_in(order: Order) -> Iterator[None]:
    # Below it, what float32 multiplies as is the processor's choice, and so is its error.
    assert devices.float32_level() == "highest", "dense torch is measured at the highest precision"
    multiply = dense_engine.product

    def product(x: Tensor, y: Tensor) -> Tensor:
        return order.turned_back(order.product(order.turned(x), order.turned(y), multiply))

    with summed_in(order), mock.patch.object(dense_engine, "product", product):
        yield


def assert_within_rule(name: str, ours: Tensor, dense: Iterable[Tensor], truth: Tensor) -> None:
    """Error against float64 ≤ 2 × that of dense torch + 4ε·max|truth|, in the max norm.

    dense: of the same dtype and on the same stored inputs as ours; of several the worst counts. ε
    is float32's, or float64's for float64.
    """
    assert ours.shape == truth.shape, name
    if not truth.numel():
        return
    assert bool(torch.isfinite(truth).all()), f"{name}: the truth itself is not finite"
    eps = torch.finfo(torch.float64 if ours.dtype == torch.float64 else torch.float32).eps
    error, rounding = distance(ours, truth), 4 * eps * float(truth.abs().max())
    allowed = 0.0
    for result in dense:
        assert result.dtype == ours.dtype, name
        found = distance(result, truth)
        assert math.isfinite(found), f"{name}: dense torch is not finite"
        allowed = max(allowed, found)
        if error <= 2 * allowed + rounding:
            return
    bound = 2 * allowed + rounding
    raise AssertionError(f"{name}: error {error:.3g} > {bound:.3g}, dense torch has {allowed:.3g}")


def times_allowed(ours: Tensor, dense: Iterable[Tensor], truth: Tensor) -> float:
    """The error as a multiple of what the rule allows, which may be nothing."""
    eps = torch.finfo(torch.float64 if ours.dtype == torch.float64 else torch.float32).eps
    error = distance(ours, truth)
    allowed = 2 * max(distance(z, truth) for z in dense) + 4 * eps * float(truth.abs().max())
    return error / allowed if allowed else math.inf if error else 0.0


def distance(result: Tensor, truth: Tensor) -> float:
    """The largest error of an entry."""
    return float((result.double() - truth).abs().max())


Gradients = list[Tensor]


def gradients(function: Callable[[], Tensor], leaves: list[Tensor], weight: Tensor) -> Gradients:
    """Gradients of Σ weight·function() by the leaves; zeros where there is no path."""
    total = (function() * weight).sum()
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(z) if g is None else g for g, z in zip(found, leaves, strict=True)]
