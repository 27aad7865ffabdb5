"""bfloat16 rows that nearly coincide though their classes differ, and weights in one part or two.

TRITON_INTERPRET=1 PYTHONPATH=tests python -m support.near_duplicates

prints the table of docs/numerics.md.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

import oracle
import pairops
from pairops.ops.engines import weight_parts

SEEDS = 5
SPREADS = (0.001, 0.01, 0.1)
BEYOND = 1200  # rows, above weight_parts.FEW


class Problem(NamedTuple):
    """Leaves, and a loss of each anchor: ours and the oracle's."""

    tensors: list[Tensor]
    ours: Callable[..., Tensor]
    formula: Callable[..., Tensor]


def proxies(spread: float, rows: int = 20, classes: int = 2, d: int = 64) -> Problem:
    """Proxies of which all but `spread` of the norm is common, and rows that are far from them."""
    x, labels = torch.randn(rows, d), torch.arange(rows) % classes
    given = {"scale": 18.0, "distance": "cosine"}
    p = torch.randn(1, d) + spread * torch.randn(classes, d)
    return Problem(
        [x.bfloat16(), p.bfloat16()],
        lambda x, p: pairops.proxy_nca_loss(x, labels, p, **given, reduction="none"),
        lambda x, p, dtype: oracle.proxy_nca_loss(x, labels, p, **given, dtype=dtype),
    )


def collapsed(spread: float, rows: int = 64, d: int = 32) -> Problem:
    """Rows of two classes that have all but `spread` of their norm in common."""
    x, labels = torch.randn(1, d) + spread * torch.randn(rows, d), torch.randint(0, 2, (rows,))
    given = {"distance": "dot", "scale": 8.0}
    return Problem(
        [(2 * x / d**0.5).bfloat16()],
        lambda x: pairops.nca_loss(x, labels, **given, reduction="none"),
        lambda x, dtype: oracle.nca_loss(x, labels, **given, dtype=dtype),
    )


def texts(spread: float, rows: int = 33, d: int = 16) -> Problem:
    """Pairs by index, of which the second rows have all but `spread` of their norm in common."""
    x, y = torch.randn(rows, d), torch.randn(1, d) + spread * torch.randn(rows, d)
    given = {"temperature": 0.07, "symmetric": False, "distance": "dot"}
    return Problem(
        [(z / d**0.5).bfloat16() for z in (x, y)],
        lambda x, y: pairops.info_nce_loss(x, y, **given, reduction="none"),
        lambda x, y, dtype: oracle.info_nce_loss(x, y, **given, dtype=dtype),
    )


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "proxy_nca_loss, two proxies": proxies,
    "nca_loss, all rows": collapsed,
    "info_nce_loss one way, all of y": texts,
}


def in_one_part() -> "mock._patch[int]":
    """Few rows are none: what is true of many rows can be seen on few."""
    return mock.patch.object(weight_parts, "FEW", 0)


def gradients(problem: Problem) -> list[Tensor]:
    """Of the sum over anchors: it is equal weights that cancel."""
    return _gradients(problem.ours, problem.tensors)


def gradients_of_oracle(problem: Problem, wide: torch.dtype) -> list[Tensor]:
    """By the formula in `wide`; unless that is float64, rounded to the dtype of the tensors."""
    wider = [z.double() if wide == torch.float64 else z for z in problem.tensors]
    return _gradients(functools.partial(problem.formula, dtype=wide), wider)


def _gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    leaves = [z.detach().requires_grad_() for z in tensors]
    return list(torch.autograd.grad(function(*leaves).sum(), leaves))


def errors(problem: Problem) -> dict[str, float]:
    """The largest error of a gradient's entry, of the largest entry of the truth."""
    truth = gradients_of_oracle(problem, torch.float64)
    found = {"dense torch": gradients_of_oracle(problem, torch.float32)}
    with pairops.engine("triton"):
        if len(problem.tensors[0]) <= weight_parts.FEW:
            found["two parts"] = gradients(problem)
        with in_one_part():
            found["one part"] = gradients(problem)
    return {
        how: max(
            float((g.double() - right).abs().max() / right.abs().max())
            for g, right in zip(some, truth, strict=True)
        )
        for how, some in found.items()
    }


def main() -> None:
    from support import triton_interpreter

    triton_interpreter.prepare()
    beyond = functools.partial(collapsed, rows=BEYOND)
    made = {**PROBLEMS, f"nca_loss, all of {BEYOND:,} rows": beyond}
    print("| what nearly coincides | spread | dense torch | two parts | one part |")
    print("|---|--:|--:|--:|--:|")
    for name, maker in made.items():
        for spread in SPREADS:
            worst: dict[str, float] = {}
            for seed in range(1 if maker is beyond else SEEDS):
                torch.manual_seed(seed)
                for how, error in errors(maker(spread)).items():
                    worst[how] = max(worst.get(how, 0.0), error)
            columns = ("dense torch", "two parts", "one part")
            shown = [f"{worst[how]:.4f}" if how in worst else "" for how in columns]
            print(f"| {name} | {spread} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
