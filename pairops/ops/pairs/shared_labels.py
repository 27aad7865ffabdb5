"""Several labels per row: rows that share one are positives, which a list holds."""

import warnings

import torch
from torch import Tensor

from pairops.ops.bindings.schemas import library
from pairops.ops.distributed.allocation import refusing
from pairops.ops.terms.tensor_checks import check_real, readable

from .lists import Listed

# Positive pairs for each row, above which a list may be what fills the memory.
MANY = 64
_AT_ONCE = 1 << 22  # pairs whose labels are compared at once


def check_several(name: str, labels: Tensor, owner: str, x: Tensor, classes: int | None) -> None:
    """Refuse anything but a row of 0 and 1 for each row of x; values are looked at where they can
    be read without waiting. classes: the number of columns. None: any."""
    check_real(name, labels)
    wanted = x.shape[0], labels.shape[1] if classes is None else classes
    if labels.shape != wanted:
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}; it must be {wanted}, one row for each of "
            f"{owner}" + (" and one column for each of labels" if classes is not None else "")
        )
    if labels.dtype != torch.bool and labels.shape[1] == 1:
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}; it must be ({x.shape[0]},), or of dtype bool "
            "if one column says who has the one label"
        )
    if labels.dtype != torch.bool and readable(labels):
        wrong = labels[(labels != 0) & (labels != 1)]
        if len(wrong):
            raise ValueError(
                f"{name} has the value {wrong[0].item()}; of several labels for each row all must "
                "be 0 or 1"
            )


def list_shared(labels: Tensor, ref_labels: Tensor | None, self_index: Tensor) -> Listed:
    """List the columns that share a label with each row, but for a row's own.

    labels: (N, C).  ref_labels: (M, C), or None for the same set.  self_index: (N,) int64, the
    column that a row is, or −1.
    """
    return Listed(*torch.ops.pairops.shared_labels(labels, ref_labels, self_index))


def _shared_labels(labels: Tensor, ref_labels: Tensor | None, self_index: Tensor) -> list[Tensor]:
    rows = (labels != 0).float()
    columns = rows if ref_labels is None else (ref_labels != 0).float()
    n, m = rows.shape[0], columns.shape[0]
    column = torch.arange(m, device=self_index.device)
    counts, entries = [self_index.new_zeros(1)], [self_index.new_zeros(0)]
    step = max(1, _AT_ONCE // max(m, 1))
    for mine, itself in zip(rows.split(step), self_index.split(step), strict=True):
        shared = (mine @ columns.T > 0.5) & (column != itself.unsqueeze(1))
        counts.append(shared.sum(1))
        entries.append(shared.nonzero()[:, 1])
    found = torch.cat(entries)
    if len(found) > MANY * (n + m):
        warnings.warn(
            f"labels: {len(found)} pairs share a label, {len(found) / max(n, 1):.0f} for each row; "
            f"their list takes {8 * len(found) / 2**20:.0f} MiB",
            stacklevel=2,
        )
    ends = torch.cat(counts)[: n + 1].cumsum(0)
    return [ends[:-1].clone(), ends[1:].clone(), found]


def _fake(_labels: Tensor, _ref_labels: Tensor | None, self_index: Tensor) -> list[Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return [torch.empty_like(self_index), torch.empty_like(self_index), self_index.new_empty(count)]


def _no_batches(*_: object) -> None:
    raise ValueError(
        "labels (N, C) differ from sample to sample of torch.vmap, and so would the lengths of "
        "their lists; in_dims must be None for labels"
    )


library.impl("shared_labels", refusing(_shared_labels), "CompositeExplicitAutograd")
torch.library.register_fake("pairops::shared_labels", _fake)
torch.library.register_vmap("pairops::shared_labels", _no_batches)
