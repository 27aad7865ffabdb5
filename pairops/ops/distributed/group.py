"""The ranks that share a batch: who they are, what they must agree on, and sums over all of them.

`torch.distributed` carries everything; nothing is sent that it would not send.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from . import header
from .allocation import refused

Given = Any  # None, True, a torch.distributed.ProcessGroup, or a Group

_P = ParamSpec("_P")
_R = TypeVar("_R")


def check_group(given: Given) -> None:
    """Refuse what is no group; whether this process is in it, and in any, `Group.of` sees."""
    if given is None or given is True or isinstance(given, Group):
        return
    if isinstance(given, str) and given == "auto":
        return
    kinds = (dist.ProcessGroup,) if dist.is_available() else ()
    if not isinstance(given, kinds) and given is not _ABSENT:
        raise TypeError(
            f"group is {type(given).__name__}; it must be None, True or a "
            "torch.distributed.ProcessGroup"
        )


_ABSENT = dist.GroupMember.NON_GROUP_MEMBER if dist.is_available() else None


def untraced(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function`, at which torch.compile leaves its graph. (`torch.compiler.disable` alone would
    load the compiler when pairops is imported.)"""

    @functools.wraps(function)
    def called(*args: _P.args, **keywords: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            result: _R = torch.compiler.disable(function)(*args, **keywords)
            return result
        return function(*args, **keywords)

    return called


class Group:
    """A process group of several ranks, as seen by one of them."""

    def __init__(self, process_group: Any, told: Mapping[str, str]) -> None:
        self.process_group = process_group
        self.rank: int = dist.get_rank(process_group)
        self.size: int = dist.get_world_size(process_group)
        self.told = dict(told)  # name → what every rank must have given
        self.call: int | None = None  # which one this is of all that the ranks agreed on
        self.pieces = 0  # of the call, numbered, so that its backward pass can name them

    @staticmethod
    def of(given: Given, told: Mapping[str, str] | None = None) -> "Group | None":
        """None for no group, and for a group of one rank, to which all rows are local."""
        if given is None or isinstance(given, Group):
            return given
        check_group(given)
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                f"group is {given!r}, but torch.distributed is not initialised; it must be None, "
                "or torch.distributed.init_process_group must be called first"
            )
        if given is True:
            given = dist.group.WORLD
        if given is dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(
                f"group does not contain rank {dist.get_rank()}; it must be a group of which this "
                "process is a member"
            )
        group = Group(given, told or {})
        return None if group.size == 1 else group

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """What torch.distributed raises within this context says what was going on."""
        try:
            yield
        except RuntimeError as error:
            if header.is_known(error):
                raise
            what = f"{self.told['loss']}, " if "loss" in self.told else ""
            message = f"rank {self.rank} of {self.size} was in {what}{name}: {error}"
            raise header.known(type(error)(message)) from error

    @untraced
    def agree(self, told: Mapping[str, str], *counts: int) -> tuple[tuple[int, ...], ...]:
        """Each count, of every rank; an error on all of them if not all were told the same."""
        ambient = {name: found() for name, found in header.AMBIENT.items()}
        number = header.calls(self.process_group) + 1 if self.call is None else self.call
        place = "at the beginning of" if self.call is None else "in the forward pass of"
        given = {"place": f"{place} call {number}", **self.told, **told, **ambient}
        with self.step("the exchange of what the ranks were given"):
            every = header.exchange(
                self.process_group, given, torch.tensor(counts, dtype=torch.int64), failed=False
            )
        if self.call is None:
            self.call = header.another_call(self.process_group)
        return tuple(map(tuple, every[:, : len(counts)].T.tolist()))

    def another(self) -> int:
        """The number of one more piece of this call, the same on all ranks."""
        self.pieces += 1
        return self.pieces

    @untraced
    def meet(self, what: str, backward: bool = False, numbers: Tensor | None = None) -> Tensor:
        """Before anything is exchanged: are all ranks here, in the same exchange of the same call?
        (ranks, ROOM) the numbers of every rank; an error on all of them if they are not."""
        told = {"place": self._place(backward), "loss": self.told.get("loss", ""), "exchange": what}
        with self.step(f"the header of {what} {told['place']}"):
            return header.exchange(self.process_group, told, numbers, failed=False)

    def _place(self, backward: bool) -> str:
        if self.call is None:
            return f"in no call, after call {header.calls(self.process_group)}"
        return f"in the {'backward' if backward else 'forward'} pass of call {self.call}"

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """What this rank raises within this context the others are told of."""
        try:
            yield
        except Exception as error:
            found = refused(error)
            self.report(found)
            if found is error:
                raise
            raise found from error

    @untraced
    def report(self, error: Exception) -> None:
        """Tell the other ranks, in the next header that they come to, of what they do not know."""
        if header.is_known(error):
            return
        header.known(error)
        told = {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(ValueError, RuntimeError):
            header.exchange(self.process_group, told, None, failed=True)

    def peer(self, rank: int) -> int:
        """The rank among all processes of a rank of this group, counted round."""
        return dist.get_global_rank(self.process_group, rank % self.size)

    def part(self, whole: Tensor) -> Tensor:
        """This rank's share of rows that every rank has."""
        part: Tensor = whole.tensor_split(self.size)[self.rank]
        return part

    @untraced
    def total(self, values: Tensor, gradient_of: int | None = None) -> Tensor:
        """Σ over the ranks, the same bits on all. Differentiable: each rank's gradient is that of
        the sum of what all ranks differentiate. gradient_of: a piece whose backward pass it is."""
        result: Tensor = _Total.apply(self, values, gradient_of)  # type: ignore[no-untyped-call]
        return result

    @untraced
    def rows(
        self,
        values: Tensor,
        sizes: Sequence[int],
        *,
        meet: Callable[[], object] | None = None,
        met: bool = False,
    ) -> Tensor:
        """The rows of all ranks, one after the other. sizes: how many each has. Differentiable.

        meet: meets in place of what this would say.  met: the ranks have just met, for this too.
        """
        meet = (lambda: None) if met else meet
        result: Tensor = _Rows.apply(self, values, tuple(sizes), meet)  # type: ignore[no-untyped-call]
        return result


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, values: Tensor, gradient_of: int | None) -> Tensor:
        ctx.group, ctx.piece = group, group.another()
        backward = gradient_of is not None
        which = f"the gradient of piece {gradient_of}" if backward else f"piece {ctx.piece}"
        what = f"a sum of {values.dtype} {tuple(values.shape)}, {which}"
        if values.numel() <= header.ROOM and values.device == header.device(group.process_group):
            wide = values.double() if values.is_floating_point() else values.long()
            every = group.meet(what, backward, wide.reshape(-1).view(torch.int64))
            sums = every[:, : values.numel()].view(wide.dtype).sum(0)
            return sums.to(values.dtype).reshape(values.shape)
        result = values.clone(memory_format=torch.contiguous_format)
        group.meet(what, backward)
        with group.step("a sum over the ranks"):
            dist.all_reduce(result, group=group.process_group)
        return result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.group.total(g, ctx.piece), None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        group: Group,
        values: Tensor,
        sizes: tuple[int, ...],
        meet: Callable[[], object] | None,
    ) -> Tensor:
        first = sum(sizes[: group.rank])
        ctx.group, ctx.own = group, slice(first, first + len(values))
        ctx.piece = group.another()
        # Before the ranks meet: where there is no room for it, the others can be told still.
        padded = values.new_zeros((max(sizes), *values.shape[1:]))
        padded[: len(values)] = values
        if meet is None:
            group.meet(f"a gathering of rows of {row_of(values)}, piece {ctx.piece}")
        else:
            meet()
        if not any(sizes):
            return torch.empty_like(values)
        with group.step("gathering the rows of all ranks"):
            # As bytes: not every backend gathers every dtype.
            every = header.gathered(group.process_group, padded.view(torch.uint8))
        found = [rows.view(values.dtype)[:size] for rows, size in zip(every, sizes, strict=True)]
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, None, None]:
        return None, ctx.group.total(g, ctx.piece)[ctx.own], None, None


def row_of(values: Tensor) -> str:
    """What a row of `values` is: the same on all ranks, where one has as many of them."""
    return f"{values.dtype} {tuple(values.shape[1:])}"
