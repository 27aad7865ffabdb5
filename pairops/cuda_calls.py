"""One call's CUDA sweeps: sorted copies, operands in their slots, and what each kernel is told."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import devices
from .bands import bands
from .cuda_kernels import Kernels, on_device, stream_of
from .extension import DTYPES
from .pairs import Pairs
from .terms import POS, Partner, Term, Wanted

_FIRST_OPERAND = 2  # the slots before it hold the scale


_Told = tuple[Any, ...]  # as csrc/bindings_cuda.cpp reads it


class _Role(NamedTuple):
    """A term as the rows of a sweep meet it: as owners, or across, as partners."""

    which: int
    term: Term
    owners: int  # the set that its owners are of: 0, x, or 1, y
    across: bool


class _Slots:
    """The operands along one axis of a sweep; equal ones share a slot."""

    def __init__(self) -> None:
        self.operands: list[tuple[int | None, int, float]] = []

    def add(self, operand: tuple[int | None, int, float]) -> int:
        if operand not in self.operands:
            self.operands.append(operand)
        return _FIRST_OPERAND + self.operands.index(operand)


class Call:
    def __init__(self, pairs: Pairs, kernels: Kernels, prepared: Sequence[Tensor]) -> None:
        self.pairs, self.kernels, self._prepared = pairs, kernels, prepared
        self.same = pairs.y is None
        self._alive: list[Tensor] = []  # what addresses were taken of
        x = pairs.x
        self._device, self._stream = on_device(x), stream_of(x)
        self._relation = tuple([self._address(z) for z in (pairs.lo, pairs.hi, pairs.own)])

    def gather(
        self, rows: Sequence[Term], cols: Sequence[Term], bits: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        placed = self._placed(rows, cols)
        new = self.pairs.x.new_empty
        values = [new(self.pairs.shape[axis], dtype=torch.float32) for axis, _ in placed]
        arguments = [
            new(self.pairs.shape[axis], dtype=torch.int64) if term.keeps_argument else None
            for axis, term in placed
        ]
        planes = self._planes(placed, bits)
        roles = [_Role(k, term, owners, False) for k, (owners, term) in enumerate(placed)]
        with self._device:
            sets = self._sets()
            for axis in (0,) if self.same else (0, 1):
                if self.pairs.shape[axis]:
                    for owned in self._groups([r for r in roles if r.owners == axis], 1):
                        self._gather(axis, sets, owned, values, arguments, planes)
        return values, [a for a in arguments if a is not None]

    def weigh(
        self,
        rows: Sequence[Term],
        cols: Sequence[Term],
        statistics: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        bits: Tensor | None,
        needs: Wanted,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        placed = self._placed(rows, cols)
        planes = {} if bits is None else self._planes(placed, bits)
        given = list(zip(statistics, cotangents, strict=True))
        gradients: list[list[Tensor]] = [[], []]
        found: dict[tuple[int, int], Tensor] = {}
        roles = [_Role(k, term, owners, False) for k, (owners, term) in enumerate(placed)]
        groups = self._groups(roles, 2 if self.same else 1)
        if len(groups) > 1:  # to be added up first
            needs = needs._replace(rounded=False)
        with self._device:
            sets = self._sets()
            for axis in (0,) if self.same else (0, 1):
                for group in groups:
                    gradient, sums = self._weigh(
                        axis, sets, group, given, planes, needs[axis], needs.rounded
                    )
                    gradients[axis].append(gradient)
                    found |= sums
        empty = self.pairs.x.new_empty(0)
        dx, dy = (functools.reduce(torch.add, some) if some else empty for some in gradients)
        return dx, dy, self._in_order(placed, found)

    def _groups(self, roles: Sequence[_Role], times: int) -> list[list[_Role]]:
        """The terms of one sweep each, as many as a kernel's parameters hold, in `times` roles."""
        groups: list[list[_Role]] = []
        room = operands = 0
        for role in roles:
            needed = times * (len(role.term.args) + len(role.term.windows()) + 2)
            if room < times or operands < needed:
                groups.append([])
                room, operands = self.kernels.module.MOST_TERMS, self.kernels.module.MOST_OPERANDS
            groups[-1].append(role)
            room, operands = room - times, operands - needed
        return groups

    def _placed(self, rows: Sequence[Term], cols: Sequence[Term]) -> list[tuple[int, Term]]:
        """Every term, and the set that its owners are of. In one set a column is a row."""
        return [(0, term) for term in rows] + [(0 if self.same else 1, term) for term in cols]

    def _planes(self, placed: Sequence[tuple[int, Term]], bits: Tensor) -> dict[int, int]:
        """Where the tile bits of each term that keeps some begin."""
        planes, at = {}, bits.data_ptr()
        self._alive.append(bits)
        for k, (axis, term) in enumerate(placed):
            if term.keeps_bits:
                planes[k] = at
                blocks, tiles = self.kernels.grid(*self._lengths(axis))
                at += blocks * tiles
        return planes

    def _lengths(self, axis: int) -> tuple[int, int]:
        return self.pairs.shape[axis], self.pairs.shape[1 - axis]

    def _gather(
        self,
        axis: int,
        sets: tuple[_Told, _Told],
        owned: list[_Role],
        values: list[Tensor],
        arguments: list[Tensor | None],
        planes: dict[int, int],
    ) -> None:
        n, _ = self._lengths(axis)
        words = 2 * len(owned)
        splits = self._splits(axis, owned, 1, 4 * words * n)
        states = None
        if splits > 1:
            states = self._new((splits, words, n)).data_ptr()
        outputs = []
        for role in owned:
            argument = arguments[role.which]
            outputs.append((
                values[role.which].data_ptr(),
                None if argument is None else argument.data_ptr(),
                planes.get(role.which),
            ))  # fmt: skip
        sweep = self._sweep(axis, sets, owned, {}, {}, {})
        kernels = self.kernels
        kernels.module.gather(
            sweep, states, outputs, kernels.precision, kernels.d, kernels.hopper, splits,
            self._stream,
        )  # fmt: skip

    def _weigh(
        self,
        axis: int,
        sets: tuple[_Told, _Told],
        group: Sequence[_Role],
        given: Sequence[tuple[Tensor, Tensor]],
        planes: dict[int, int],
        embeddings: bool,
        rounded: bool,
    ) -> tuple[Tensor, dict[tuple[int, int], Tensor]]:
        """The gradient by the rows of `axis`, and those by arguments that stand along them."""
        n, _ = self._lengths(axis)
        d, kernels = self.kernels.d, self.kernels
        roles = [role._replace(across=role.owners != axis) for role in group]
        if self.same:
            roles += [role._replace(across=True) for role in roles]
        if not all(role.which in planes for role in group):
            planes = {}  # tiles are visited whatever the others' bits say
        along: dict[tuple[int, bool, int], int] = {}  # by role and argument
        for role in roles:
            for k, a in enumerate(role.term.args):
                if not isinstance(a, float) and isinstance(a, Partner) == role.across:
                    along[role.which, role.across, k] = len(along)
        nothing = self.pairs.x.new_empty(0, dtype=torch.float32)
        if not (embeddings or along):
            return nothing, {}
        if not n:
            by_vector = {(which, k): self._new((0,)) for which, _, k in along}
            return self._new((0, d)) if embeddings else nothing, by_vector
        slices = -(-d // kernels.slice) if embeddings else 1
        splits = self._splits(axis, roles, slices, 4 * n * (d if embeddings else len(along)))
        gradient = self._new((splits, n, d)) if embeddings else nothing
        sums = self._new((splits, len(along), n))
        sweep = self._sweep(axis, sets, roles, dict(enumerate(given)), along, planes)
        kernels.module.weigh(
            sweep, gradient.data_ptr() if embeddings else None, sums.data_ptr(), len(along),
            bool(planes), kernels.precision, d, kernels.hopper, splits, self._stream,
        )  # fmt: skip
        if embeddings:
            gradient = self._through_scale(axis, gradient, rounded)
        by_vector = {
            (which, k): sums[0, at] if splits == 1 else sums[:, at].sum(0)
            for (which, _, k), at in along.items()
        }
        return gradient, by_vector

    def _in_order(
        self, placed: Sequence[tuple[int, Term]], found: dict[tuple[int, int], Tensor]
    ) -> list[Tensor]:
        return [
            found[which, k]
            for which, (_, term) in enumerate(placed)
            for k, a in enumerate(term.args)
            if not isinstance(a, float)
        ]

    def _sweep(
        self,
        axis: int,
        sets: tuple[_Told, _Told],
        roles: Sequence[_Role],
        given: dict[int, tuple[Tensor, Tensor]],
        along: dict[tuple[int, bool, int], int],
        planes: dict[int, int],
    ) -> tuple[Any, ...]:
        """What the kernels are told of a sweep over the rows of `axis`; see bindings_cuda.cpp."""
        slots = _Slots(), _Slots()  # by rows, by columns
        kinds = self.kernels.module.kinds()
        terms = []
        for role in roles:
            term = role.term
            owner = slots[1 if role.across else 0]
            partner = slots[0 if role.across else 1]
            args = [
                (partner if isinstance(a, Partner) else owner).add(self._operand(a))
                for a in term.args
            ]
            args += [-1] * (2 - len(args))
            rest = [
                -1 if z is None else owner.add(self._operand(z))
                for z in (term.above, term.below, *given.get(role.which, (None, None)))
            ]
            by_arg = [along.get((role.which, role.across, k), -1) for k in range(2)]
            terms.append((
                kinds.index(term.kind), term.side, role.across, [*args, *rest], by_arg,
                planes.get(role.which),
            ))  # fmt: skip
        pairs = self.pairs
        # The intervals of one set, where each row stands among its own positives, are its band.
        band = None if self.same else self._address(bands(pairs, axis, self.kernels.rows))
        return (
            sets[axis], sets[1 - axis], self._relation, band, axis == 1,
            pairs.scale_x is not None, _band_only(roles),
            self.kernels.panels, slots[0].operands, slots[1].operands, terms,
        )  # fmt: skip

    def _operand(self, a: float | Tensor | Partner) -> tuple[int | None, int, float]:
        if isinstance(a, float):
            return None, 0, a
        values = a.values if isinstance(a, Partner) else a
        if values.stride(0) == 0:
            self._alive.append(values)
            return values.data_ptr(), 0, 0.0
        return self._address(values), 1, 0.0

    def _sets(self) -> tuple[_Told, _Told]:
        """What the kernels are told of both sets."""
        pairs = self.pairs
        found = []
        for z, order, at in ((pairs.x, pairs.order_x, 0), (pairs.y, pairs.order_y, 3)):
            if z is not None:
                rows, (high, rest), kept = self._prepared[at : at + 3]
                given = [self._address(t) for t in (rows, high, rest, order, kept)]
                found.append((*given, z.shape[0]))
        return found[0], found[-1]

    def _through_scale(self, axis: int, gradient: Tensor, rounded: bool) -> Tensor:
        pairs = self.pairs
        x, scale, keep = (
            (pairs.x, pairs.scale_x, pairs.keep_x),
            (pairs.other, pairs.scale_y, pairs.keep_y),
        )[axis]
        splits, n, d = gradient.shape
        if rounded:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
        else:
            out = gradient[0] if splits == 1 else self._new((n, d))
        self.kernels.module.scale(
            gradient.data_ptr(), self._address(x), DTYPES[x.dtype],
            None if scale is None else self._address(scale), self._address(keep), n, d, splits,
            out.data_ptr(), rounded, self._stream,
        )  # fmt: skip
        return out

    def _splits(self, axis: int, roles: Sequence[_Role], slices: int, bytes_each: int) -> int:
        if _band_only(roles):  # how wide a band is nobody knows here; most are a few tiles
            return 1
        blocks, tiles = self.kernels.grid(*self._lengths(axis))
        processors = devices.processors(self.pairs.x.device)
        return devices.splits(blocks * slices, tiles, processors, bytes_each)

    def _new(self, shape: tuple[int, ...]) -> Tensor:
        self._alive.append(self.pairs.x.new_empty(shape, dtype=torch.float32))
        return self._alive[-1]

    def _address(self, tensor: Tensor) -> int:
        self._alive.append(tensor.contiguous())
        return self._alive[-1].data_ptr()


def _band_only(roles: Sequence[_Role]) -> bool:
    return all(role.term.side == POS for role in roles)
