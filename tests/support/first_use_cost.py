"""Ops and bytes of a comparison at first use: PYTHONPATH=tests python -m support.first_use_cost."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pairops import NEG, Pairs, lse
from pairops.ops.engines import sampled_rows
from pairops.ops.terms.term import Wanted

SIZES, D = (512, 16_384), 128


class _Counted(TorchDispatchMode):
    """Count ops whose result is no view, and the bytes of these results."""

    ops = size = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        given = {z.untyped_storage().data_ptr() for z in tree_leaves(args) if isinstance(z, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
            self.ops += 1
            self.size += result.numel() * result.element_size()
        return result


def counts(n: int, two_sets: bool) -> list[tuple[int, int]]:
    """Ops and bytes, forward and backward."""
    x, y, g = torch.randn(3, n, D).bfloat16().unbind()
    labels = torch.arange(n) // 4
    other = {"ref_emb": y, "ref_labels": labels} if two_sets else {}
    pairs = Pairs.of(x, labels, **other)
    rows = [lse(NEG, 3.0, 0.1).over(n, n, torch.float32)]
    cols = rows if two_sets else []
    statistics = [torch.zeros(n) for _ in rows + cols]
    found = []
    for backward in (False, True):
        with torch.no_grad(), _Counted() as counted:
            if backward:
                wanted = Wanted(True, two_sets)
                given = pairs, rows, cols, statistics, statistics, wanted, (g, g)
                sampled_rows.of_gradients(*given)
            else:
                sampled_rows.of_statistics(pairs, rows, cols, statistics)
        found.append((counted.ops, counted.size))
    return found


def table() -> list[str]:
    lines = ["| | N = 512: ops | MiB | N = 16,384: ops | MiB |", "|---|--:|--:|--:|--:|"]
    names = [
        ["forward, one set", "backward, one set"],
        ["forward, two sets, a term on each side", "backward, two sets, both gradients"],
    ]
    for two_sets in (False, True):
        of_sizes = [counts(n, two_sets) for n in SIZES]
        for k, name in enumerate(names[two_sets]):
            cells = [f"{ops} | {size / 2**20:.0f}" for ops, size in (z[k] for z in of_sizes)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
