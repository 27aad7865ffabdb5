"""float32 at "highest" over many columns and many numbers, where tensor cores truncate their sums.

The machine that executes the kernels truncates as they do, so that one sum over all columns is tens
to hundreds of times as wrong as dense torch's; signs that do not cancel are the worst.
"""

import pytest
import torch
from torch import Tensor

import pairops
from pairops import NEG, Pairs, lse, row_stats
from pairops.ops.bindings import devices
from support.engine_names import DEVICE
from support.error_rule import Dense
from support.exhaustive import exhaustive_but

COLUMNS = [1024, 16384]
SIGNS = ["random", "columns of one sign", "all of one sign"]


def problem(signs: str, n: int, m: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    x, y = torch.randn(n, d), torch.randn(m, d)
    if signs != "random":
        y = y.abs()
    if signs == "all of one sign":
        x = x.abs()
    return x, y, 0.5 + torch.rand(n)


def statistics_and_gradient(x: Tensor, y: Tensor, weight: Tensor) -> list[Tensor]:
    """Log-sum-exps over all of y, and what they make of x."""
    leaf = x.clone().requires_grad_()
    labels, others = torch.zeros(len(x), dtype=torch.long), torch.ones(len(y), dtype=torch.long)
    pairs = Pairs.of(leaf, labels, ref_emb=y, ref_labels=others)
    (found,) = row_stats(pairs, lse(NEG, 10.0, 0.0))
    (gradient,) = torch.autograd.grad((found * weight.to(found.dtype)).sum(), leaf)
    return [found.detach(), gradient]


def errors(signs: str, n: int, m: int, d: int) -> list[tuple[float, float]]:
    """The 2-norm of the error, relative to the truth: ours, and dense torch's worst."""
    x, y, weight = problem(signs, n, m, d)
    with pairops.engine("dense"):
        truth = statistics_and_gradient(x.double(), y.double(), weight)
        dense = Dense(lambda: statistics_and_gradient(x, y, weight))
        of_dense = [list(dense.result(k)) for k in range(2)]
    with pairops.engine("cuda"):
        ours = statistics_and_gradient(x, y, weight)

    def error(found: Tensor, right: Tensor) -> float:
        return float((found - right).norm() / right.norm())

    return [
        (error(ours[k], truth[k]), max(error(z, truth[k]) for z in of_dense[k])) for k in range(2)
    ]


@pytest.fixture(autouse=True)
def one_block_takes_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with many rows; a GPU may have more blocks for few."""
    if DEVICE == "cpu":
        monkeypatch.setattr(devices, "processors", lambda _: 1)


@pytest.mark.parametrize(
    ("m", "signs"),
    exhaustive_but([(m, signs) for m in COLUMNS for signs in SIGNS], lambda m, _: m == COLUMNS[0]),
)
def test_many_columns(m: int, signs: str) -> None:
    _, (ours, dense) = errors(signs, 16, m, 64)
    assert ours <= 2 * dense, f"{ours:.2g} of the gradient, dense torch has {dense:.2g}"


@pytest.mark.parametrize("signs", SIGNS)
def test_many_numbers(signs: str) -> None:
    """Similarities are sums, too."""
    (ours, dense), _ = errors(signs, 16, 70, 700)
    assert ours <= 2 * dense + torch.finfo().eps / 2, f"{ours:.2g}, dense torch has {dense:.2g}"
