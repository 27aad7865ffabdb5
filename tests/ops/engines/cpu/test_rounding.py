"""Products that the compiled engine rounds before it adds to them, on every instruction set."""

from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import POS, Pairs, lse, row_stats, total
from pairops.ops.bindings import extension
from pairops.ops.terms.functions import attended
from pairops.ops.terms.term import Term

isas = pytest.mark.parametrize("isa", pairops._native.isas())


@isas
@pytest.mark.parametrize("role", ["rows", "columns", "one set"])
@pytest.mark.parametrize("distance", ["dot", "l2", "sqeuclidean", "snr"])
def test_a_positive_without_rivals_has_the_whole_weight(
    distance: Any, role: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its contribution is the log-sum-exp, to the last bit, however large both are; so a softmax
    over it is 1, and has the gradient of the closeness itself."""
    monkeypatch.setattr(extension, "isa", lambda: isa)
    n, scale = 150, 1 / 0.1326
    x, y = 5 * torch.randn(n, 5), 5 * torch.randn(n, 5)
    near = lse(POS, scale, 0.0)
    softmax, itself = total(POS, scale, near, function=attended), total(POS, 1.0, 0.0)

    def gradients(*terms: Term) -> tuple[Tensor, ...]:
        leaves = [z.clone().requires_grad_() for z in ((x,) if role == "one set" else (x, y))]
        labels, others = torch.arange(n) // (3 - len(leaves)), dict[str, Any]()
        if leaves[1:]:
            others = {"ref_emb": leaves[1], "ref_labels": labels, "exclude_self": False}
        pairs = Pairs.of(leaves[0], labels, **others, distance=distance, normalize=False)
        rows, cols = ((), terms) if role == "columns" else (terms, ())
        with pairops.engine("cpu"):
            return torch.autograd.grad(row_stats(pairs, *rows, cols=cols)[-1].sum(), leaves)

    for ours, expected in zip(gradients(near, softmax), gradients(itself), strict=True):
        assert bool((expected != 0).any())
        assert torch.equal(ours, expected)
