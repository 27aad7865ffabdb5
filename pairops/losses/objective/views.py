"""Several views of each row, (N, V, D), as the rows of a loss over labels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pairops.ops.distributed.group import Group
from pairops.ops.terms.tensor_checks import check_storage

_ROWS = 1 << 40  # more than a rank has


def rows_of_views(
    x: Tensor, labels: Tensor | None, common: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Return (N·V, D) embeddings and their labels; without labels, one for each of N."""
    check_storage("x", x)
    n, views = x.shape[:2]
    if labels is None and common.get("positives") is None:
        for name in ("width", "ref_labels", "ignore_index"):
            if common.get(name) is not None:
                raise ValueError(
                    f"{name} is given and labels is None, so the rows of views have labels of "
                    "their own; it must be left out, or labels be given"
                )
        labels = names_of_rows(x, Group.of(common.get("group")))
    if isinstance(labels, Tensor):
        if labels.shape[:1] != (n,):
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}; it must be ({n},), one for each of the "
                f"{n} rows of {views} views"
            )
        labels = labels.repeat_interleave(views, 0)
    return x.flatten(0, 1), labels


def names_of_rows(x: Tensor, group: Group | None) -> Tensor:
    """Return (N,) int64, a name for each row that no row of another rank has."""
    names = torch.arange(len(x), device=x.device)
    return names if group is None else names + group.rank * _ROWS
