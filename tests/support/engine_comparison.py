"""Statistics and gradients of one engine against dense torch, by the error rule."""

from collections.abc import Callable

import torch
from torch import Tensor

import pairops
from support.error_rule import Dense, assert_within_rule
from support.term_problems import results

Run = Callable[..., tuple[Tensor, ...]]


def assert_as_dense(
    name: str, run: Run, *leaves: Tensor, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """run(*leaves) on the engine `name`, within the rule; infinities where dense has them.

    leaves: embeddings, which are stored in `dtype`, and vectors and numbers, which are not rounded
    to 16 bits. The same call twice must give the same bits. Returns the statistics, and the
    gradients of a fixed combination of them.
    """
    ours, dense, truth = beside_dense(name, run, *leaves, dtype=dtype)
    assert all(torch.equal(a.isinf(), b.isinf()) for a, b in zip(ours, truth, strict=True))
    for k, (a, b) in enumerate(zip(finite(ours), finite(truth), strict=True)):
        assert_within_rule(f"{name}: result {k}", a, dense.result(k), b)
    return ours


def beside_dense(
    name: str, run: Run, *leaves: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Dense, list[Tensor]]:
    """The results on the engine `name`, dense torch's, of which none is infinite, and the truth."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    stored = [z.to(dtype if z.dim() == 2 else wide) for z in leaves]

    def of(engine: str, double: bool = False) -> list[Tensor]:
        mine = [(z.double() if double else z.clone()).requires_grad_() for z in stored]
        with pairops.engine(engine):
            return [z.detach() for z in results(lambda: run(*mine), mine)]

    ours, again, truth = of(name), of(name), of("dense", double=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)), "bits differ"
    return ours, Dense(lambda: finite(of("dense")), wide), truth


def finite(found: list[Tensor]) -> list[Tensor]:
    """0 for what is infinite."""
    return [torch.where(z.isinf(), 0, z) for z in found]
