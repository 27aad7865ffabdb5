"""Which references are the anchors themselves: decided by their memory, in a compiled graph too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pairops
from support.named_cases import smooth

LABELS = torch.arange(16) // 2
SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda x: x,
    "detached": lambda x: x.detach(),
    "a view of all": lambda x: x[:],
    "a view that turns twice": lambda x: x.T.T,
}
OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "a copy": lambda x: x.clone(),
    "a copy of one": lambda x: torch.cat([x]),
    "a copy in the same dtype": lambda x: x.to(x.dtype, copy=True),
    "its rows turned": lambda x: x.flip(0).flip(0),
    "a part of a larger one": lambda x: torch.cat([x, x])[: len(x)],
}


def loss(x: Tensor, y: Tensor) -> Tensor:
    return pairops.supcon_loss(x, LABELS, ref_emb=y, ref_labels=LABELS)


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        *((name, "") for name in [*SAME, *OTHER]),
        *((name, "aot_eager") for name in ("itself", "a view of all", "a copy", "its rows turned")),
    ],
)
def test_a_row_leaves_itself_out_where_its_memory_is_the_same(name: str, compiled: str) -> None:
    x = smooth(16, 5).requires_grad_()
    make = SAME.get(name) or OTHER[name]
    torch._dynamo.reset()
    whole: Callable[[Tensor], Tensor] = lambda x: loss(x, make(x))  # noqa: E731
    run = torch.compile(whole, fullgraph=True, backend=compiled) if compiled else whole
    expected = pairops.supcon_loss(
        x, LABELS, ref_emb=x.clone(), ref_labels=LABELS, exclude_self=name in SAME
    )
    torch.testing.assert_close(run(x), expected)
    torch.testing.assert_close(torch.autograd.grad(run(x), x)[0] != 0, x != 0)


def test_parts_of_one_tensor_are_not_each_other() -> None:
    x = smooth(32, 5)
    value = loss(x[:16], x[16:])
    expected = pairops.supcon_loss(
        x[:16], LABELS, ref_emb=x[16:].clone(), ref_labels=LABELS, exclude_self=False
    )
    torch.testing.assert_close(value, expected)


def test_equal_rows_computed_twice_are_not_each_other() -> None:
    """A compiler computes them once."""
    torch._dynamo.reset()
    net = torch.nn.Linear(5, 5)
    x = smooth(16, 5)
    compiled = torch.compile(lambda x: loss(net(x), net(x)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(net(x), net(x)))


@pytest.mark.parametrize("name", [*SAME, *OTHER])
def test_rows_of_every_batch(name: str) -> None:
    make = SAME.get(name) or OTHER[name]
    batches = torch.stack([smooth(16, 5), smooth(16, 5).flip(0)])
    found = torch.func.vmap(lambda x: loss(x, make(x)))(batches)
    torch.testing.assert_close(found, torch.stack([loss(x, make(x)) for x in batches]))
