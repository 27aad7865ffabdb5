"""Group: the ranks that share a batch, their exchanges, and sums over all of them.

`torch.distributed` carries everything.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from . import header
from .allocation import refused

# What users give for a group; a loss within a loss is given a `Group`.
if TYPE_CHECKING or dist.is_available():
    Given: TypeAlias = dist.ProcessGroup | Literal["auto"] | None
else:  # there is no such type
    Given = Literal["auto"] | None

_P = ParamSpec("_P")
_R = TypeVar("_R")


def check_group(given: Given) -> None:
    """Refuse a value that is no group; `Group.of` checks whether this process is in it."""
    if given is None or isinstance(given, Group):
        return
    if isinstance(given, str) and given == "auto":
        return
    kinds = (dist.ProcessGroup,) if dist.is_available() else ()
    if not isinstance(given, kinds) and given is not _ABSENT:
        raise TypeError(
            f'group is {type(given).__name__}; it must be None, "auto" or a '
            "torch.distributed.ProcessGroup"
        )


_ABSENT: Any = dist.GroupMember.NON_GROUP_MEMBER if dist.is_available() else None


def skip_compile(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate `function` so that torch.compile leaves its graph there. (`torch.compiler.disable`
    alone would load the compiler when pairops is imported.)"""

    @functools.wraps(function)
    def called(*args: _P.args, **keywords: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            result: _R = torch.compiler.disable(function)(*args, **keywords)
            return result
        return function(*args, **keywords)

    return called


class Group:
    """A process group of several ranks, as seen by one of them."""

    def __init__(self, process_group: Any, fingerprint: Mapping[str, str]) -> None:
        self.process_group = process_group
        self.rank: int = dist.get_rank(process_group)
        self.size: int = dist.get_world_size(process_group)
        self.fingerprint = dict(fingerprint)  # name → value that all ranks must share
        self.call: int | None = None  # its number among all that the ranks agreed on
        self.pieces = 0  # of the call, counted, so that its backward pass can name them

    @staticmethod
    def of(given: Given, fingerprint: Mapping[str, str] | None = None) -> "Group | None":
        """Return the group; None for no group, or a group of one rank, where all rows are local."""
        if given is None or isinstance(given, Group):
            return given
        check_group(given)
        here = dist.is_available() and dist.is_initialized()
        if isinstance(given, str) and given == "auto":
            if not here:
                return None
            given = dist.group.WORLD
        if not here:
            raise ValueError(
                f"group is {given!r}, but torch.distributed is not initialised; it must be None, "
                "or torch.distributed.init_process_group must be called first"
            )
        if given is _ABSENT:
            raise ValueError(
                f"group does not contain rank {dist.get_rank()}; it must be a group of which this "
                "process is a member"
            )
        group = Group(given, fingerprint or {})
        return None if group.size == 1 else group

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Name this step in errors that torch.distributed raises within this context."""
        try:
            yield
        except RuntimeError as error:
            if header.is_known(error):
                raise
            what = f"{self.fingerprint['loss']}, " if "loss" in self.fingerprint else ""
            message = f"rank {self.rank} of {self.size} was in {what}{name}: {error}"
            raise header.known(type(error)(message)) from error

    @skip_compile
    def agree(self, fingerprint: Mapping[str, str], *counts: int) -> tuple[tuple[int, ...], ...]:
        """Return each count of every rank; raise on all ranks if fingerprints differ."""
        ambient = {name: found() for name, found in header.AMBIENT.items()}
        number = header.calls(self.process_group) + 1 if self.call is None else self.call
        place = "at the beginning of" if self.call is None else "in the forward pass of"
        given = {"place": f"{place} call {number}", **self.fingerprint, **fingerprint, **ambient}
        with self.step("the exchange of what the ranks were given"):
            every = header.exchange(
                self.process_group, given, torch.tensor(counts, dtype=torch.int64), failed=False
            )
        if self.call is None:
            self.call = header.another_call(self.process_group)
        return tuple(map(tuple, every[:, : len(counts)].T.tolist()))

    def another(self) -> int:
        """Return the number of a new piece of this call, the same on all ranks."""
        self.pieces += 1
        return self.pieces

    @skip_compile
    def meet(self, what: str, backward: bool = False, numbers: Tensor | None = None) -> Tensor:
        """Check, before an exchange, that all ranks are in the same one of the same call.

        Return (ranks, ROOM) the numbers of every rank; raise on all ranks if they are elsewhere."""
        fingerprint = {
            "place": self._place(backward),
            "loss": self.fingerprint.get("loss", ""),
            "exchange": what,
        }
        with self.step(f"the header of {what} {fingerprint['place']}"):
            return header.exchange(self.process_group, fingerprint, numbers, failed=False)

    def _place(self, backward: bool) -> str:
        if self.call is None:
            return f"in no call, after call {header.calls(self.process_group)}"
        return f"in the {'backward' if backward else 'forward'} pass of call {self.call}"

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Report to the other ranks what this rank raises within this context."""
        try:
            yield
        except Exception as error:
            found = refused(error)
            self.report(found)
            if found is error:
                raise
            raise found from error

    @skip_compile
    def report(self, error: Exception) -> None:
        """Report an error, unless they know it, to the other ranks in their next header."""
        if header.is_known(error):
            return
        header.known(error)
        fingerprint = {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(ValueError, RuntimeError):
            header.exchange(self.process_group, fingerprint, None, failed=True)

    def peer(self, rank: int) -> int:
        """Return the global rank of a rank of this group, counted round."""
        return dist.get_global_rank(self.process_group, rank % self.size)

    def part(self, whole: Tensor) -> Tensor:
        """Return this rank's share of rows that every rank has."""
        part: Tensor = whole.tensor_split(self.size)[self.rank]
        return part

    @skip_compile
    def total(self, values: Tensor, gradient_of: int | None = None) -> Tensor:
        """Return Σ over the ranks, with the same bits on all. Differentiable: a rank's gradient is
        that of the sum of all ranks' results. gradient_of: the piece whose backward pass it is."""
        result: Tensor = _Total.apply(self, values, gradient_of)  # type: ignore[no-untyped-call]
        return result

    @skip_compile
    def rows(
        self,
        values: Tensor,
        sizes: Sequence[int],
        *,
        meet: Callable[[], object] | None = None,
        synchronized: bool = False,
    ) -> Tensor:
        """Gather the rows of all ranks, one after the other, differentiably. sizes: of each rank.

        meet: called in place of the usual header.  synchronized: no header, since the ranks have
        just met.
        """
        meet = (lambda: None) if synchronized else meet
        result: Tensor = _Rows.apply(self, values, tuple(sizes), meet)  # type: ignore[no-untyped-call]
        return result


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, values: Tensor, gradient_of: int | None) -> Tensor:
        ctx.group, ctx.piece = group, group.another()
        backward = gradient_of is not None
        piece_name = f"the gradient of piece {gradient_of}" if backward else f"piece {ctx.piece}"
        what = f"a sum of {values.dtype} {tuple(values.shape)}, {piece_name}"
        if values.numel() <= header.ROOM and values.device == header.device(group.process_group):
            widened = values.double() if values.is_floating_point() else values.long()
            every = group.meet(what, backward, widened.reshape(-1).view(torch.int64))
            sums = every[:, : values.numel()].view(widened.dtype).sum(0)
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
        ctx.group, ctx.local = group, slice(first, first + len(values))
        ctx.piece = group.another()
        # Allocated before the ranks meet: if memory is refused, the others can still be told.
        padded = values.new_zeros((max(sizes), *values.shape[1:]))
        padded[: len(values)] = values
        if meet is None:
            group.meet(f"a gathering of rows of {row_of(values)}, piece {ctx.piece}")
        else:
            meet()
        if not any(sizes):
            return torch.empty_like(values)
        with group.step("gathering the rows of all ranks"):
            # Sent as bytes, since not every backend gathers every dtype.
            every = header.gathered(group.process_group, padded.view(torch.uint8))
        found = [rows.view(values.dtype)[:size] for rows, size in zip(every, sizes, strict=True)]
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, None, None]:
        return None, ctx.group.total(g, ctx.piece)[ctx.local], None, None


def row_of(values: Tensor) -> str:
    """Return dtype and shape of a row of `values`, which are the same on all ranks."""
    return f"{values.dtype} {tuple(values.shape[1:])}"
