"""A loss over labels whose anchors are also compared with the embeddings of earlier batches."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pairops.ops.distributed.agreement import shown
from pairops.ops.distributed.allocation import refusing
from pairops.ops.distributed.group import Given, Group, check_group
from pairops.ops.terms.checks import count, function, signature_of
from pairops.ops.terms.tensor_checks import (
    check_bools,
    check_embeddings,
    float_dtype,
    whole_numbers,
)

from .state_of_rank import StateOfRank

_NO_ID, _LAST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
_KEYWORDS = ("ref_emb", "ref_labels", "exclude_self", "ignore_index")


class CrossBatchMemory(StateOfRank):
    """loss(x, labels, ref_emb=[x; memory], ref_labels=[labels; labels of the memory]).

    The anchors are the rows of the batch. Their references are the same rows, with gradient, and
    after them the last `memory_size` rows of earlier batches, without; a row's own pair is left out
    by index. Then the batch is remembered.

    The state is in `state_dict`: embeddings (K, D), labels (K,) and ids (K,), a ring; seen and
    calls, how many rows and calls there were. A run that resumes from them goes on with the same
    bits. They are no buffers, so that every rank remembers what it was given itself. Shapes do not
    depend on how full the memory is, and no value is read, so nothing waits for the device. In
    `eval` mode the memory is used and left as it is. The Module has no place under activation
    checkpointing, which would call it twice. What overflows `dtype` becomes Inf.

    Args:
        loss: a loss over labels, called with x, labels and the keywords ref_emb, ref_labels,
            exclude_self and ignore_index: `pairops.supcon_loss`, a `functools.partial` of one, a
            Module of `pairops.nn`, or a function of one's own. What it returns is returned.
        embedding_size: an int, D.
        memory_size: an int, K rows, the oldest of which make room.
        warmup: an int; during so many first calls nothing is remembered.
        dtype: the dtype in which embeddings are remembered; they are compared in the dtype of x.
        ignore_index: as in `Pairs.of`; places that are still empty have this label.
        group: as every loss has it; the references are then the batches and memories of all ranks,
            each of which holds its own.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.

    Source:
        Wang et al., Cross-Batch Memory for Embedding Learning, CVPR 2020.

    Differs from:
        The paper and pytorch-metric-learning enqueue a batch before the loss, so that it is
        compared with itself as a constant; here it has its gradient as a reference too. The
        authors' code adds a loss over the batch alone, which counts it twice, and leaves self pairs
        out by value. pytorch-metric-learning does not save where its queue stands, nor admit a
        batch larger than it.
    """

    _state_names = ("embeddings", "labels", "ids", "seen", "calls")
    embeddings: Tensor
    labels: Tensor
    ids: Tensor
    seen: Tensor
    calls: Tensor

    @refusing
    def __init__(
        self,
        loss: Callable[..., Any],
        embedding_size: int,
        memory_size: int = 1024,
        *,
        warmup: int = 0,
        dtype: torch.dtype = torch.float32,
        ignore_index: int = -100,
        group: Given = None,
    ) -> None:
        super().__init__()
        _check_loss(loss, _KEYWORDS if group is None else (*_KEYWORDS, "group"))
        embedding_size = count("embedding_size", embedding_size, 1, _LAST)
        memory_size = count("memory_size", memory_size, 1, _LAST // embedding_size)
        warmup = count("warmup", warmup, 0, _LAST)
        ignore_index = count("ignore_index", ignore_index, _NO_ID, _LAST)
        float_dtype("dtype", dtype)
        check_group(group)
        self.loss = loss
        self.embedding_size = embedding_size
        self.memory_size = memory_size
        self.warmup = warmup
        self.ignore_index = ignore_index
        self.group = group
        shape = (memory_size,)
        self.embeddings = torch.zeros(memory_size, embedding_size, dtype=dtype)
        self.labels = torch.full(shape, ignore_index, dtype=torch.int64)
        self.ids = torch.full(shape, _NO_ID, dtype=torch.int64)
        self.seen = torch.zeros((), dtype=torch.int64)
        self.calls = torch.zeros((), dtype=torch.int64)

    @refusing
    def forward(
        self,
        x: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
        *,
        ids: Tensor | None = None,  # (N,)
        enqueue: Tensor | None = None,  # (N,)
        weight: Tensor | None = None,  # (N,)
    ) -> Any:
        """Return the loss of the batch, and remember the batch.

        Args:
            x: (N, D) floating point, on the device of the memory.
            labels: (N,) integers.
            ids: (N,) integers that name samples; what the memory still holds of a sample of the
                batch is no reference in this call. None: nothing is known of samples.
            enqueue: (N,) bool, which rows are remembered; all of them are anchors (in
                pytorch-metric-learning those of its `enqueue_mask` are not). None: all rows.
            weight: (N,) floating point; it goes to the loss. None: the loss gets none.

        Returns:
            What the loss returned.
        """
        group = Group.of(self.group, {"loss": f"CrossBatchMemory of {shown(self.loss)}"})
        with contextlib.nullcontext() if group is None else group.reporting():
            labels, ids, others = self._checked(x, labels, ids, enqueue, group)
            further: dict[str, Any] = {} if weight is None else {"weight": weight}
            result = self.loss(
                x,
                labels,
                ref_emb=torch.cat([x, self.embeddings.to(x.dtype)]),
                ref_labels=torch.cat([labels, others]),
                exclude_self=True,
                ignore_index=self.ignore_index,
                **(further if self.group is None else further | {"group": self.group}),
            )
        if self.training:
            self._remember(x.detach(), labels, ids, enqueue)
        return result

    def _checked(
        self,
        x: Tensor,
        labels: Tensor,
        ids: Tensor | None,
        enqueue: Tensor | None,
        group: Group | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Check labels and ids of the batch; return them, and the labels to be remembered."""
        check_embeddings("x", x)
        if x.shape[1] != self.embedding_size:
            raise ValueError(
                f"x has D {x.shape[1]}; it must be the embedding_size {self.embedding_size}"
            )
        if x.device != self.embeddings.device:
            raise ValueError(
                f"x is on {x.device} and the memory on {self.embeddings.device}; "
                "the memory must be moved there, with .to()"
            )
        labels = _signed("labels", labels, x)
        ids = None if ids is None else _signed("ids", ids, x)
        if enqueue is not None:
            check_bools("enqueue", enqueue, x.shape[0])
        # A saved memory may have been empty under another ignore_index.
        empty = torch.arange(self.memory_size, device=x.device) >= self.seen
        others = torch.where(empty, self.ignore_index, self.labels)
        every = ids
        if group is not None:
            (sizes,) = group.agree({"ids": "some" if ids is not None else "none"}, len(x))
            every = None if ids is None else group.rows(ids, sizes)
        if every is not None:
            stale = _among(self.ids, every) & (self.ids != _NO_ID)
            others = torch.where(stale, self.ignore_index, others)
        return labels, ids, others

    @torch.no_grad()
    def _remember(
        self, x: Tensor, labels: Tensor, ids: Tensor | None, enqueue: Tensor | None
    ) -> None:
        ids = torch.full_like(labels, _NO_ID) if ids is None else ids
        n = x.shape[0]
        count = torch.full_like(self.seen, n)
        if enqueue is not None:
            count = enqueue.sum()
            order = torch.argsort(enqueue.long(), stable=True)  # rows to be remembered come last
            x, labels, ids = x[order], labels[order], ids[order]
        count = torch.where(self.calls < self.warmup, 0, count)
        # As many rows are written as fit, whatever `count` is: those before the rows to be
        # remembered, with an age below 0, go to other slots and rewrite the contents of these.
        fit = min(n, self.memory_size)
        age = torch.arange(n - fit, n, device=x.device) - (n - count)
        slots = torch.remainder(self.seen + age, self.memory_size)
        new = age >= 0
        for memory, rows in ((self.embeddings, x), (self.labels, labels), (self.ids, ids)):
            mask = new.view(-1, *[1] * (rows.dim() - 1))
            rows = torch.where(mask, rows[n - fit :].to(memory.dtype), memory[slots])
            memory.index_copy_(0, slots, rows)
        self.seen += count
        self.calls += 1

    def extra_repr(self) -> str:
        """Return the loss and the sizes, for `repr`."""
        loss = "" if isinstance(self.loss, nn.Module) else f"{_name(self.loss)}, "
        return (
            f"{loss}embedding_size={self.embedding_size}, memory_size={self.memory_size}, "
            f"warmup={self.warmup}"
        )


def _signed(name: str, values: Tensor, x: Tensor) -> Tensor:
    """Check `values`; return them as the memory's int64. The host waits for uint64 on a GPU."""
    result = whole_numbers(name, values, "x", x)
    if values.dtype == torch.uint64 and bool((result < 0).any()):
        raise ValueError(
            f"{name} is uint64 and holds a number of 2**63 or more; the memory keeps int64, so it "
            f"must be {name}.view(torch.int64), which tells the same samples apart"
        )
    return result


def _among(values: Tensor, names: Tensor) -> Tensor:
    """Return which `values` are in `names`. (`torch.isin` waits for the device to count them.)"""
    if not names.shape[0]:
        return torch.zeros_like(values, dtype=torch.bool)
    names = names.sort().values
    place = torch.searchsorted(names, values).clamp(max=names.shape[0] - 1)
    return names[place] == values


def _check_loss(loss: Any, keywords: tuple[str, ...]) -> None:
    function("loss", loss, "a loss over labels")
    given = loss.keywords if isinstance(loss, functools.partial) else getattr(loss, "names", ())
    for name in keywords:
        if name in given:
            raise ValueError(f"loss is given {name}; it must be left to CrossBatchMemory")
    signature = signature_of("loss", loss.forward if isinstance(loss, nn.Module) else loss)
    try:
        signature.bind(None, None, **dict.fromkeys(keywords))
    except TypeError:
        missing = list(keywords)
    else:
        missing = [name for name in keywords if not _takes(signature, name)]
    if missing:
        raise TypeError(
            f"loss is {_name(loss)}{signature}; it must be a loss over labels, called as "
            f"loss(x, labels, {', '.join(name + '=' for name in keywords)})"
        )


def _takes(signature: inspect.Signature, name: str) -> bool:
    kinds = [p.kind for p in signature.parameters.values()]
    return name in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds


def _name(loss: object) -> str:
    if isinstance(loss, functools.partial):
        return f"{_name(loss.func)}({', '.join(f'{k}={v}' for k, v in loss.keywords.items())})"
    return getattr(loss, "__name__", type(loss).__name__)
