"""One call's CUDA sweeps: which terms together, in how many parts, into which tensors."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pairops.ops.bindings import devices
from pairops.ops.bindings.cuda import Kernels, stream_of
from pairops.ops.bindings.devices import on_device
from pairops.ops.bindings.extension import DTYPES
from pairops.ops.engines.weight_parts import two_parts
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.arguments import Partner
from pairops.ops.terms.term import Term, Wanted

from .descriptors import Role, Told, band_only


class Call:
    def __init__(self, pairs: Pairs, kernels: Kernels, prepared: Sequence[Tensor]) -> None:
        self.pairs, self.kernels = pairs, kernels
        self.same = pairs.y is None
        self._told = Told(pairs, kernels, prepared)
        x = pairs.x
        self._device, self._stream = on_device(x), stream_of(x)

    def forward(
        self, rows: Sequence[Term], cols: Sequence[Term], bits: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        roles = self._owning(rows, cols)
        new = self.pairs.x.new_empty
        values = [new(self.pairs.shape[r.owners], dtype=torch.float32) for r in roles]
        arguments = [
            new(self.pairs.shape[r.owners], dtype=torch.int64) if r.term.keeps_argument else None
            for r in roles
        ]
        planes = self._planes(roles, bits)
        with self._device:
            for axis in (0,) if self.same else (0, 1):
                if self.pairs.shape[axis]:
                    for owned in self._groups([r for r in roles if r.owners == axis], 1):
                        self._forward(axis, owned, values, arguments, planes)
        return values, [a for a in arguments if a is not None]

    def backward(
        self,
        rows: Sequence[Term],
        cols: Sequence[Term],
        statistics: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        bits: Tensor | None,
        needs: Wanted,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        roles = self._owning(rows, cols)
        planes = {} if bits is None else self._planes(roles, bits)
        given = list(zip(statistics, cotangents, strict=True))
        gradients: list[list[Tensor]] = [[], []]
        found: dict[tuple[int, int], Tensor] = {}
        groups = self._groups(roles, 2 if self.same else 1)
        if len(groups) > 1:  # to be added up first
            needs = needs._replace(rounded=False)
        with self._device:
            for axis in (0,) if self.same else (0, 1):
                for group in groups:
                    gradient, sums = self._backward(
                        axis, group, given, planes, (needs.x, needs.y)[axis], needs.rounded
                    )
                    gradients[axis].append(gradient)
                    found |= sums
        empty = self.pairs.x.new_empty(0)
        dx, dy = (functools.reduce(torch.add, some) if some else empty for some in gradients)
        return dx, dy, self._in_order(roles, found)

    def _groups(self, roles: Sequence[Role], times: int) -> list[list[Role]]:
        """The terms of one sweep each, as many as a kernel's parameters hold, in `times` roles."""
        groups: list[list[Role]] = []
        room = operands = 0
        for role in roles:
            needed = times * (len(role.term.args) + len(role.term.windows()) + 2)
            if room < times or operands < needed:
                groups.append([])
                room, operands = self.kernels.module.MOST_TERMS, self.kernels.module.MOST_OPERANDS
            groups[-1].append(role)
            room, operands = room - times, operands - needed
        return groups

    def _owning(self, rows: Sequence[Term], cols: Sequence[Term]) -> list[Role]:
        """Every term as its owners meet it. In one set a column is a row."""
        owners = [0] * len(rows) + [0 if self.same else 1] * len(cols)
        placed = zip((*rows, *cols), owners, strict=True)
        return [Role(k, term, axis, False) for k, (term, axis) in enumerate(placed)]

    def _planes(self, roles: Sequence[Role], bits: Tensor) -> dict[int, int]:
        """Where the tile bits of each term that keeps some begin."""
        planes, at = {}, self._told.address(bits)
        for role in roles:
            if role.term.keeps_bits:
                planes[role.which] = at
                blocks, tiles = self.kernels.grid(*self._lengths(role.owners))
                at += blocks * tiles
        return planes

    def _lengths(self, axis: int) -> tuple[int, int]:
        return self.pairs.shape[axis], self.pairs.shape[1 - axis]

    def _forward(
        self,
        axis: int,
        owned: list[Role],
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
        sweep = self._told.sweep(axis, owned, {}, {}, {})
        kernels = self.kernels
        kernels.module.forward(
            sweep, states, outputs, kernels.precision, kernels.d, kernels.hopper, splits,
            self._stream,
        )  # fmt: skip

    def _backward(
        self,
        axis: int,
        group: Sequence[Role],
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
        sweep = self._told.sweep(axis, roles, dict(enumerate(given)), along, planes)
        kernels.module.backward(
            sweep, gradient.data_ptr() if embeddings else None, sums.data_ptr(), len(along),
            bool(planes), self._weight_precision(), d, kernels.hopper, splits, self._stream,
        )  # fmt: skip
        if embeddings:
            gradient = self._through_scale(axis, gradient, rounded)
        by_vector = {
            (which, k): sums[0, at] if splits == 1 else sums[:, at].sum(0)
            for (which, _, k), at in along.items()
        }
        return gradient, by_vector

    def _weight_precision(self) -> str:
        """Rows are arranged alike, and tiles have one shape, for "plain" and "fine"."""
        return "fine" if two_parts(self.pairs) else self.kernels.precision

    def _in_order(
        self, roles: Sequence[Role], found: dict[tuple[int, int], Tensor]
    ) -> list[Tensor]:
        return [
            found[role.which, k]
            for role in roles
            for k, a in enumerate(role.term.args)
            if not isinstance(a, float)
        ]

    def _through_scale(self, axis: int, gradient: Tensor, rounded: bool) -> Tensor:
        pairs = self.pairs
        x, scale, keep = (
            (pairs.x, pairs.scales.x, pairs.relation.valid_x),
            (pairs.other, pairs.scales.y, pairs.relation.valid_y),
        )[axis]
        splits, n, d = gradient.shape
        if rounded:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
        else:
            out = gradient[0] if splits == 1 else self._new((n, d))
        address = self._told.address
        self.kernels.module.scale(
            gradient.data_ptr(), address(x), DTYPES[x.dtype],
            None if scale is None else address(scale), address(keep), n, d, splits,
            out.data_ptr(), rounded, self._stream,
        )  # fmt: skip
        return out

    def _splits(self, axis: int, roles: Sequence[Role], slices: int, bytes_each: int) -> int:
        if band_only(roles):  # how wide a band is nobody knows here; most are a few tiles
            return 1
        blocks, tiles = self.kernels.grid(*self._lengths(axis))
        processors = devices.processors(self.pairs.x.device)
        return devices.splits(blocks * slices, tiles, processors, bytes_each)

    def _new(self, shape: tuple[int, ...]) -> Tensor:
        self._told.alive.append(self.pairs.x.new_empty(shape, dtype=torch.float32))
        return self._told.alive[-1]
