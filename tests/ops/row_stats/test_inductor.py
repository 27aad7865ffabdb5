"""The ops under torch's own compiler, whose code is written and built while a test runs."""

import pytest
import torch
from torch import Tensor

import pairops
from support.exhaustive import exhaustive

pytestmark = [
    pytest.mark.slow,
    exhaustive,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of inductor's own imports
]


def test_an_ignore_index_that_changes_between_calls_of_inductor() -> None:
    """Inductor's integer arithmetic on symbols is not aot_eager's."""
    torch._dynamo.reset()

    def loss(x: Tensor, labels: Tensor, ignored: int) -> Tensor:
        return pairops.ms_loss(x, labels, ignore_index=ignored)

    compiled = torch.compile(loss, fullgraph=True)
    x, labels = torch.randn(24, 8), torch.randint(0, 6, (24,))
    for ignored in (1, 2, 3, 2**62):
        torch.testing.assert_close(compiled(x, labels, ignored), loss(x, labels, ignored))


def test_compile_with_inductor() -> None:
    torch._dynamo.reset()
    x, labels = torch.randn(24, 8, requires_grad=True), torch.randint(0, 6, (24,))
    t = torch.tensor(1.3, requires_grad=True)

    def loss(x: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        return pairops.ms_loss(x, labels, beta=t)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for a, b in zip(
        torch.autograd.grad(compiled(x, labels, t), (x, t)),
        torch.autograd.grad(loss(x, labels, t), (x, t)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
