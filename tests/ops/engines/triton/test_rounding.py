"""What the machine rounds: sums over a long row of tiles, on tensor cores that truncate, and fused
products. By the error rule of float32."""

from collections.abc import Callable
from fractions import Fraction
from math import floor, frexp
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from support.engine_names import TRITON
from support.error_rule import Dense, assert_within_rule
from support.exhaustive import exhaustive_but
from support.on_cpu import device as device

pytest.importorskip("triton")

from triton.runtime.interpreter import InterpretedFunction

from support import triton_interpreter
from support.triton_interpreter import AMPERE, HOPPER, TensorCore
from support.triton_truncation import errors, few_against_many, one_signed


@pytest.mark.parametrize(
    ("make", "m", "distance", "core", "level"),
    exhaustive_but(
        [
            (make, m, distance, core, level)
            for make, m, distance in (
                (one_signed, 2048, "dot"),
                (torch.randn, 4096, "dot"),
                (one_signed, 16384, "cosine"),
                (torch.randn, 16384, "dot"),
            )
            for core in (AMPERE, HOPPER)
            for level in ("high", "highest")
            if m < 16384 or core is AMPERE
        ],
        lambda _make, m, _distance, core, level: m < 16384 and core is AMPERE and level == "high",
    ),
)
def test_a_few_rows_against_many(
    make: Callable[[int, int], Tensor],
    m: int,
    distance: str,
    core: TensorCore,
    level: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of products of two halves, which promise less than that at large D."""
    monkeypatch.setattr(triton_interpreter, "TENSOR_CORE", core)
    of = few_against_many(make, m, distance)
    truth, dense = of("dense", torch.float64), Dense(lambda: of("dense"))
    torch.set_float32_matmul_precision(level)
    try:
        ours = of("triton")
    finally:
        torch.set_float32_matmul_precision("highest")
    for k, what in enumerate(["statistics", "dx"]):
        assert_within_rule(what, ours[k], dense.result(k), truth[k])


def test_what_one_sum_over_all_tiles_would_lose() -> None:
    found = errors(2048, "one")
    assert found["in one sum"] > 4 * found["tile by tile"]
    assert found["tile by tile"] < 2 * found["dense torch"] + 4 * torch.finfo().eps


def _toward_zero(value: Fraction, unit: Fraction) -> Fraction:
    return unit * (floor(abs(value) / unit) * (1 if value > 0 else -1))


def _exponent(value: Fraction) -> int:
    return frexp(value)[1] - 1


@pytest.mark.parametrize("core", [AMPERE, HOPPER])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_the_interpreter_truncates_as_a_tensor_core(core: TensorCore, size: float) -> None:
    """Number by number, in fractions; 21 products do not fill their last step."""
    left = (torch.randn(21, 3) * 10 ** torch.randint(-3, 2, (21, 3)).float()).half().float()
    right, total = torch.randn(21, 4).half().float(), size * torch.randn(3, 4)
    given = [z.cpu().numpy() for z in (left, right, total)]
    found = torch.from_numpy(triton_interpreter.truncated_dot(*given, core=core))
    for i in range(3):
        for j in range(4):
            sums = Fraction(float(total[i, j]))
            pieces = [
                Fraction(float(a)) * Fraction(float(b))
                for a, b in zip(left[:, i], right[:, j], strict=True)
            ]
            for k in range(0, 21, core.products):
                step = [sums, *pieces[k : k + core.products]]
                unit = Fraction(2) ** (max(map(_exponent, step)) - 23 - core.extra_bits)
                sums = sum((_toward_zero(z, unit) for z in step), Fraction(0))
                sums = _toward_zero(sums, Fraction(2) ** (_exponent(sums) - 23))
            assert float(found[i, j]) == float(sums)


def test_the_interpreter_multiplies_what_is_not_finite() -> None:
    left, right = torch.ones(20, 2), torch.ones(20, 2)
    left[3, 0], right[18, 1] = torch.inf, torch.nan
    found = triton_interpreter.truncated_dot(*[z.numpy() for z in (left, right)], left[:2].numpy())
    expected = torch.tensor([[torch.inf, torch.nan], [21.0, torch.nan]])
    assert torch.equal(torch.from_numpy(found).nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.parametrize("name", TRITON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_float32_are_not_fused_into_sums(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kernel of a call is told so; what is compiled then, test_tile_configs.py looks at."""
    fused = {}
    run = InterpretedFunction.run

    def told(self: Any, *args: Any, enable_fp_fusion: bool, **options: Any) -> Any:
        fused[self.fn.__name__] = enable_fp_fusion
        return run(self, *args, enable_fp_fusion=enable_fp_fusion, **options)

    monkeypatch.setattr(InterpretedFunction, "run", told)
    x = torch.randn(6, 4).to(dtype).requires_grad_()
    with pairops.engine(name):
        pairops.supcon_loss(x, torch.arange(6) // 2).backward()
    assert len(fused) >= 4
    assert set(fused.values()) == {dtype != torch.float32}
