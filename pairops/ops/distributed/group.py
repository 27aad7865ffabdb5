"""The ranks that share a batch: who they are, what they must agree on, and sums over all of them.

`torch.distributed` carries everything; nothing is sent that it would not send.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Given = Any  # None, True, a torch.distributed.ProcessGroup, or a Group

# Entries of a header: digest, bytes of text, did this rank fail? And after them the counts.
_FIXED, _COUNTS = 3, 2


_P = ParamSpec("_P")
_R = TypeVar("_R")


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
        self.agreed = False  # has an exchange taken place? Of later errors nobody is told

    @staticmethod
    def of(given: Given, told: Mapping[str, str] | None = None) -> "Group | None":
        """None for no group, and for a group of one rank, to which all rows are local."""
        if given is None or isinstance(given, Group):
            return given
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
        if not isinstance(given, dist.ProcessGroup):
            raise TypeError(
                f"group is {type(given).__name__}; it must be None, True or a "
                "torch.distributed.ProcessGroup"
            )
        group = Group(given, told or {})
        return None if group.size == 1 else group

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """What torch.distributed raises within this context says what was going on."""
        try:
            yield
        except RuntimeError as error:
            what = f"{self.told['loss']}, " if "loss" in self.told else ""
            message = f"rank {self.rank} of {self.size} was in {what}{name}: {error}"
            raise type(error)(message) from error

    @untraced
    def agree(self, told: Mapping[str, str], *counts: int) -> tuple[tuple[int, ...], ...]:
        """Each count, of every rank; ValueError on all of them if not all were told the same."""
        self.agreed = True
        return self._exchange({**self.told, **told}, counts, failed=False)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """What this rank raises within this context before it agrees, the others are told of."""
        try:
            yield
        except Exception as error:
            if not self.agreed:
                with contextlib.suppress(ValueError, RuntimeError):
                    self._exchange({"error": f"{type(error).__name__}: {error}"}, (), failed=True)
            raise

    def _exchange(
        self, told: Mapping[str, str], counts: Sequence[int], *, failed: bool
    ) -> tuple[tuple[int, ...], ...]:
        text = json.dumps(told).encode()
        digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)
        room = (0,) * (_COUNTS - len(counts))
        header = torch.tensor([digest, len(text), failed, *counts, *room], device=self._device())
        with self.step("the exchange of what the ranks were given"):
            table = [row.tolist() for row in self._every(header)]
            if len({row[0] for row in table}) == 1 and not any(row[2] for row in table):
                columns = tuple(zip(*table, strict=True))
                return columns[_FIXED : _FIXED + len(counts)]
            padded = torch.zeros(max(row[1] for row in table), dtype=torch.uint8)
            padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            texts = self._every(padded.to(header.device))
        heard = [
            json.loads(bytes(given[: row[1]].tolist()))
            for given, row in zip(texts, table, strict=True)
        ]
        errors = [f"rank {k} has {heard[k]['error']}" for k, row in enumerate(table) if row[2]]
        if errors:
            raise RuntimeError(f"not every rank could take part: {'; '.join(errors)}")
        raise ValueError(_difference(heard))

    def _device(self) -> torch.device:
        """Where numbers for the host are exchanged: on the CPU if the group can, which waits for no
        kernel."""
        backends = str(dist.get_backend_config(self.process_group))
        if "cpu:" in backends:
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    def _every(self, values: Tensor) -> list[Tensor]:
        """`values` of all ranks, of one shape."""
        found = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(found, values, group=self.process_group)
        return found

    def peer(self, rank: int) -> int:
        """The rank among all processes of a rank of this group, counted round."""
        return dist.get_global_rank(self.process_group, rank % self.size)

    def part(self, whole: Tensor) -> Tensor:
        """This rank's share of rows that every rank has."""
        part: Tensor = whole.tensor_split(self.size)[self.rank]
        return part

    @untraced
    def total(self, values: Tensor) -> Tensor:
        """Σ over the ranks, the same bits on all. Differentiable: each rank's gradient is that of
        the sum of what all ranks differentiate."""
        result: Tensor = _Total.apply(self, values)  # type: ignore[no-untyped-call]
        return result

    @untraced
    def rows(self, values: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all ranks, one after the other. sizes: how many each has. Differentiable."""
        result: Tensor = _Rows.apply(self, values, tuple(sizes))  # type: ignore[no-untyped-call]
        return result


def _difference(heard: Sequence[Mapping[str, str]]) -> str:
    """Who was told what, of the first thing that differs."""
    name = next(
        name for told in heard for name in told if len({other.get(name) for other in heard}) > 1
    )
    who: dict[str, list[int]] = {}
    for rank, told in enumerate(heard):
        who.setdefault(told.get(name, "nothing"), []).append(rank)
    shown = [
        f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))} "
        f"{'has' if len(ranks) == 1 else 'have'} {value}"
        for value, ranks in who.items()
    ]
    return f"the ranks of the group disagree about {name}: {'; '.join(shown)}; all must have one"


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, values: Tensor) -> Tensor:
        ctx.group = group
        result = values.clone(memory_format=torch.contiguous_format)
        with group.step("a sum over the ranks"):
            dist.all_reduce(result, group=group.process_group)
        return result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        return None, ctx.group.total(g)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, values: Tensor, sizes: tuple[int, ...]) -> Tensor:
        first = sum(sizes[: group.rank])
        ctx.group, ctx.own = group, slice(first, first + len(values))
        padded = values.new_zeros((max(sizes), *values.shape[1:]))
        padded[: len(values)] = values
        with group.step("gathering the rows of all ranks"):
            # As bytes: not every backend gathers every dtype.
            found = [rows.view(values.dtype) for rows in group._every(padded.view(torch.uint8))]
        return torch.cat([rows[:size] for rows, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.group.total(g)[ctx.own], None
