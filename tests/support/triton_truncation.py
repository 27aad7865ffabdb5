"""Triton's kernels in an interpreter that truncates sums as tensor cores do, beside dense torch.

TRITON_INTERPRET=1 PYTHONPATH=tests python -m support.triton_truncation

prints the table of docs/numerics.md.
"""

from collections.abc import Callable
from unittest import mock

import torch
import triton
import triton.language as tl
from torch import Tensor

import pairops
from pairops import NEG, Pairs, lse, row_stats
from pairops.ops.engines.triton.kernels import sweep
from pairops.ops.engines.triton.kernels.sweep import halves
from support.error_rule import Dense, distance
from support.term_problems import results

COLUMNS = [2048, 8192, 16384, 65536]


def one_signed(m: int, d: int) -> Tensor:
    """Whose sums only grow, so that a truncation is always toward 0."""
    return torch.randn(m, d).abs()


SIGNS: dict[str, Callable[[int, int], Tensor]] = {"one": one_signed, "random": torch.randn}


def few_against_many(
    make: Callable[[int, int], Tensor], m: int, compared: str = "dot"
) -> Callable[..., list[Tensor]]:
    """Log-sum-exps of eight rows over the negatives among m others, and the gradient by these rows,
    as a function of the engine and the dtype."""
    x, y = torch.randn(8, 16) / 4, make(m, 16)
    labels, ref_labels = torch.arange(8) % 2, torch.arange(m) % 7

    def run(x: Tensor) -> tuple[Tensor, ...]:
        other = {"ref_emb": y.to(x.dtype), "ref_labels": ref_labels, "distance": compared}
        return row_stats(Pairs.of(x, labels, **other), lse(NEG, 5.0, 0.0))

    def of(engine: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        mine = x.to(dtype).requires_grad_()
        with pairops.engine(engine):
            return [z.detach() for z in results(lambda: run(mine), [mine])]

    return of


@triton.jit
def _in_one_sum(total, weights, y, C: tl.constexpr):
    """`sweep._add_rows` of float32 at "high" without sums of tiles."""
    tl.static_assert(C.fit and C.split)
    high, low = halves(weights)
    y_high, y_low = halves(y)
    total = tl.dot(low, y_high, total, input_precision="ieee")
    total = tl.dot(high, y_low, total, input_precision="ieee")
    return tl.dot(high, y_high, total, input_precision="ieee")


def errors(m: int, signs: str) -> dict[str, float]:
    """The largest error of an entry of dX, of the largest entry of the truth."""
    torch.manual_seed(0)
    of = few_against_many(SIGNS[signs], m)
    truth = of("dense", torch.float64)[1]
    dense = Dense(lambda: of("dense"))
    found = {"dense torch": max(distance(z, truth) for z in dense.result(1))}
    torch.set_float32_matmul_precision("high")
    try:
        with mock.patch.object(sweep, "_add_rows", _in_one_sum):
            found["in one sum"] = distance(of("triton")[1], truth)
        found["tile by tile"] = distance(of("triton")[1], truth)
    finally:
        torch.set_float32_matmul_precision("highest")
    return {how: error / float(truth.abs().max()) for how, error in found.items()}


def main() -> None:
    from support import triton_interpreter

    triton_interpreter.prepare()
    torch.set_num_threads(1)
    print("| columns | signs | dense torch, float32 | in one sum | tile by tile |")
    print("|--:|---|--:|--:|--:|")
    for m in COLUMNS:
        for signs in SIGNS:
            numbers = " | ".join([f"{z:.1e}" for z in errors(m, signs).values()])
            print(f"| {m:,} | {signs} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
