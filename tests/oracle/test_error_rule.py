"""The error rule itself: it refuses results that are rounded wrongly, and no order of summation."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from oracle.orders import ORDERS, Order, summed_in
from support.error_rule import Dense, assert_within_rule
from support.exhaustive import exhaustive_but
from support.loss_comparison import Result, call_and_formula, case_for, fits, values_and_gradients
from support.named_cases import CASES, smooth

Rounding = Callable[[Tensor], Tensor]
Products = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Wrong:
    """Stands where an `Order` does, and says how x @ y.T of float32 rows is computed."""

    product: Products
    inverse_norms = False

    def turned(self, z: Tensor) -> Tensor:
        return z

    turned_back = turned


def rounded(bits: int) -> Rounding:
    """To this many significant bits: 8 as bfloat16 has, 11 as float16 and TensorFloat-32 have."""

    def to_bits(z: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(z)
        return torch.ldexp((mantissa * 2**bits).round(), exponent - bits)

    return to_bits


def held(z: Tensor, rounding: Rounding) -> Tensor:
    """z rounded, and its gradient not."""
    return z + (rounding(z) - z).detach()


def similarities(rounding: Rounding) -> Wrong:
    return Wrong(lambda x, y: held(x @ y.T, rounding))


def unit_rows(rounding: Rounding) -> Wrong:
    return Wrong(lambda x, y: held(x, rounding) @ held(y, rounding).T)


def weights(rounding: Rounding) -> Wrong:
    def product(x: Tensor, y: Tensor) -> Tensor:
        s = x @ y.T
        s.register_hook(rounding)
        return s

    return Wrong(product)


class _Products(torch.autograd.Function):
    """x @ y.T, of which every product, those of the gradients too, is made by `multiply`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, multiply: Products) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.multiply = multiply
        return multiply(x, y.T)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y = ctx.saved_tensors
        return ctx.multiply(g, y), ctx.multiply(g.T, x), None


def products(rounding: Rounding) -> Wrong:
    return Wrong(lambda x, y: _Products.apply(x, y, lambda a, b: rounding(a) @ rounding(b)))


def sums(rounding: Rounding, step: int = 8) -> Wrong:
    """Sums of so many products are exact, and what they are added to is rounded each time."""

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        total = a.new_zeros(len(a), b.shape[1])
        for some, others in zip(a.split(step, 1), b.split(step), strict=True):
            total = rounding(total + some @ others)
        return total

    return Wrong(lambda x, y: _Products.apply(x, y, multiply))


BFLOAT16, FLOAT16 = rounded(8), rounded(11)
WRONG = {
    "similarities in bfloat16": similarities(BFLOAT16),
    "similarities in float16": similarities(FLOAT16),
    "sums in bfloat16": sums(BFLOAT16),
    "sums in float16": sums(FLOAT16),
    "unit rows in bfloat16": unit_rows(BFLOAT16),
    "unit rows in float16": unit_rows(FLOAT16),
    "weights in bfloat16": weights(BFLOAT16),
    "weights in float16": weights(FLOAT16),
    "products of bfloat16": products(BFLOAT16),
    "products of TensorFloat-32": products(FLOAT16),
}
# What is right for embeddings of 16 bits, whose gradients are rounded in the end, is left out.
WRONG_FOR = {
    torch.float32: list(WRONG),
    torch.bfloat16: list(WRONG)[:6],
    torch.float16: [*list(WRONG)[:7], "products of bfloat16"],
}
# No pair of these has a gradient; and the ragged one is large, and is like "another_ignore_index".
SILENT = ("one_row", "no_rows", "no_references", "ragged")
SMALL = ("one_row_against_many", "some_alone")  # where one lucky rounding is a low bound


class Judged:
    """A labelled loss on a case; what is judged is the oracle in float32, made wrong."""

    def __init__(
        self, name: str, params: dict[str, Any], case: str, dtype: torch.dtype = torch.float32
    ) -> None:
        made = case_for(name, params, CASES[case], dtype)
        assert fits(name, params, made)
        self.tensors, _, self.formula = call_and_formula(name, params, made)
        self.weight = 0.5 + torch.rand(max(map(len, self.tensors)), dtype=torch.float64)
        exact = functools.partial(self.formula, dtype=torch.float64)
        self.truth = values_and_gradients(exact, [z.double() for z in self.tensors], self.weight)
        assert all(bool(found.any()) for found in self.truth), "the case says nothing of this loss"
        self.dense = Dense(self.run)

    def run(self) -> Result:
        narrow = functools.partial(self.formula, dtype=torch.float32)
        return values_and_gradients(narrow, self.tensors, self.weight)

    def refuses(self, found: Result) -> bool:
        try:
            for k, (ours, truth) in enumerate(zip(found, self.truth, strict=True)):
                assert_within_rule(f"result {k}", ours, self.dense.result(k), truth)
        except AssertionError as error:
            return "dense torch has" in str(error)
        return False

    def refuses_in(self, order: Order | Wrong) -> bool:
        with summed_in(order):
            found = self.run()
        return self.refuses(found)


@pytest.mark.parametrize(
    ("name", "case"),
    exhaustive_but(
        [
            *[("contrastive_loss", case) for case in CASES if case not in SILENT],
            *itertools.product(["ms_loss", "margin_loss", "triplet_loss"], SMALL),
        ],
        lambda _, case: case in SMALL or case in ("square", "ragged", "zero_vectors"),
    ),
)
def test_a_wrong_rounding_is_refused(name: str, case: str) -> None:
    judged = Judged(name, {}, case)
    assert [wrong for wrong in WRONG if not judged.refuses_in(WRONG[wrong])] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ms_loss", "contrastive_loss", "supcon_loss", "triplet_loss"])
def test_a_wrong_rounding_of_16_bits_is_refused(name: str, dtype: torch.dtype) -> None:
    judged = Judged(name, {}, "square", dtype)
    assert [wrong for wrong in WRONG_FOR[dtype] if not judged.refuses_in(WRONG[wrong])] == []


def test_a_log_sum_exp_without_its_maximum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged("supcon_loss", {"temperature": 1e-3}, "square")
    right = judged.run()
    monkeypatch.setattr(Tensor, "logsumexp", lambda z, dim: z.exp().sum(dim).log())
    wrong = judged.run()
    monkeypatch.undo()
    assert judged.refuses(wrong)
    assert not judged.refuses(right)


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("name", ["ms_loss", "supcon_loss", "margin_loss"])
def test_an_order_of_summation_is_not_refused(name: str, case: str) -> None:
    one_by_one = sums(lambda z: z, step=1)
    judged = Judged(name, {}, case)
    for order in (*ORDERS.values(), Order(pieces=3), Order(reversed=(0, 1)), one_by_one):
        assert not judged.refuses_in(order), order


def test_orders_are_computed_once_and_no_more_than_are_needed() -> None:
    ran = []

    def run() -> list[Tensor]:
        ran.append(len(ran))
        return [torch.tensor([1.0 + len(ran) / 1024])]

    dense, truth = Dense(run), torch.ones(1, dtype=torch.float64)
    for error, needed in ((1, 1), (5, 3), (4, 3), (14, 7)):  # of 2, 4, … 14 that are allowed
        assert_within_rule("it", torch.tensor([1 + error / 1024]), dense.result(0), truth)
        assert len(ran) == needed
    with pytest.raises(AssertionError, match=r"error 0.0146 > 0.0137, dense torch has 0.00684"):
        assert_within_rule("it", torch.tensor([1 + 15 / 1024]), dense.result(0), truth)
    assert len(ran) == 7


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_bounds_nothing(bad: float) -> None:
    ones, broken = torch.ones(1), torch.full((1,), bad)
    with pytest.raises(AssertionError, match="dense torch is not finite"):
        assert_within_rule("a result", ones, [broken], ones.double())
    with pytest.raises(AssertionError, match="the truth itself is not finite"):
        assert_within_rule("a result", ones, [ones], broken.double())
    with pytest.raises(AssertionError, match="error"):
        assert_within_rule("a result", broken, [ones], ones.double())


def test_dense_torch_is_not_measured_below_the_highest_precision() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(AssertionError, match="at the highest precision"):
            next(Dense(lambda: [smooth(2, 2)]).result(0))
    finally:
        torch.set_float32_matmul_precision(before)
