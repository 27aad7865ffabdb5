"""Plans of calls of the CUDA engine: which terms a kernel sweeps together, made once and looked up.

A plan holds no number and no address. `launch` hands those in, in one call for each pass.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pairops.ops.bindings import devices
from pairops.ops.bindings.cuda import Backend, Kernels
from pairops.ops.engines.plan import ABSENT, VECTOR, Kind, Plan
from pairops.ops.terms.term import POS


class PlannedSweep(NamedTuple):
    """A sweep over the rows of a set, or its part of a backward pass."""

    axis: int
    terms: list[int]
    sums: list[
        tuple[int, int]
    ]  # (term, argument): gradients by arguments that stand along the rows
    band_only: bool  # there are terms of positives alone


@dataclass(eq=False)
class CudaPlan:
    """A call's sweeps, and the extension's plan of it."""

    plan: Plan
    owners: list[int]  # the set of each term's owners: 0, x, or 1, y
    sweeps: list[PlannedSweep]
    passes: list[PlannedSweep]
    swept: list[int]  # the terms of the backward pass, in order
    one_pass: bool  # for each set: then its gradient may be rounded at once
    by_tensors: list[tuple[int, int]]  # (term, argument): every argument that is a tensor
    most_statistics: int  # that the extension takes the mean of
    compiled: Any


def cuda_plan(plan: Plan, same: bool, backend: Backend) -> CudaPlan | None:
    """Return the plan of this engine, made once; None: a term is not compiled. same: one set is
    compared with itself."""
    key = same, backend.module
    if key not in plan.of_cuda:
        served = backend.kinds.keys() >= {kind.cuda_key for kind in plan.kinds}
        plan.of_cuda[key] = _made(plan, same, backend) if served else None
    found: CudaPlan | None = plan.of_cuda[key]
    return found


def _made(plan: Plan, same: bool, backend: Backend) -> CudaPlan:
    kinds, module = plan.kinds, backend.module
    owners = [int(k >= plan.rows and not same) for k in range(plan.count)]
    by_partner = [_by_partner(kind) for kind in kinds]
    axes = (0,) if same else (0, 1)

    def sweep(axis: int, terms: list[int], backward: bool) -> PlannedSweep:
        sums: list[tuple[int, int]] = []
        views = [(k, owners[k] != axis) for k in terms]
        if same:  # a row is the owner of some pairs and the partner of others
            views += [(k, True) for k in terms]
        for k, transposed in views if backward else ():
            for j, source in enumerate(kinds[k].args):
                if source == VECTOR and by_partner[k][j] == transposed:
                    sums.append((k, j))
        return PlannedSweep(axis, terms, sums, all(kinds[k].side == POS for k in terms))

    sweeps = [
        sweep(axis, group, False)
        for some in plan.sweeps
        for axis in axes
        for group in _groups(kinds, [k for k in some if owners[k] == axis], 1, module)
    ]
    swept = sorted([k for some in plan.passes for k in some])
    passes = [
        sweep(axis, group, True)
        for axis in axes
        for group in _groups(kinds, swept, 2 if same else 1, module)
    ]
    terms = [
        (
            backend.kinds[kind.cuda_key], kind.side, owners[k], kind.args, by_partner[k],
            kind.above, kind.below,
        )
        for k, kind in enumerate(kinds)
    ]  # fmt: skip
    by_tensors = [
        (k, j)
        for k, kind in enumerate(kinds)
        for j, from_ in enumerate(kind.args)
        if from_ == VECTOR
    ]
    given = [[(each.axis, each.terms, each.sums) for each in some] for some in (sweeps, passes)]
    one_pass = len(passes) <= len(axes)
    compiled = module.Plan(same, terms, *given)
    most = module.MOST_STATISTICS
    return CudaPlan(plan, owners, sweeps, passes, swept, one_pass, by_tensors, most, compiled)


def _by_partner(kind: Kind) -> list[bool]:
    """Return of which arguments the name of a kind says that there is one value per partner."""
    _, _, letters = kind.cuda_key.partition("(")
    return [z == "p" for z in letters.rstrip(")")] or [False] * len(kind.args)


def _groups(
    kinds: Sequence[Kind], terms: Sequence[int], times: int, module: Any
) -> list[list[int]]:
    """Group terms into sweeps, as many as a kernel's parameters hold in `times` views each."""
    groups: list[list[int]] = []
    room = operands = 0
    for k in terms:
        windows = (kinds[k].above != ABSENT) + (kinds[k].below != ABSENT)
        needed = times * (len(kinds[k].args) + windows + 2)
        if room < times or operands < needed:
            groups.append([])
            room, operands = module.MOST_TERMS, module.MOST_OPERANDS
        groups[-1].append(k)
        room, operands = room - times, operands - needed
    return groups


class ForwardLayout(NamedTuple):
    """What follows from the sizes of a call in its forward pass."""

    splits: list[int]  # of each sweep
    states: int  # floats of the states of any of them that is split, and of its tiles' bytes
    masks: list[int | None]  # where the tile mask of each term begins, if it has one
    mask_bytes: int


@functools.lru_cache(maxsize=512)
def forward_layout(
    plan: CudaPlan, kernels: Kernels, n: int, m: int, processors: int
) -> ForwardLayout:
    lengths = n, m
    parts, states = [], 0
    for each in plan.sweeps:
        size = 2 * len(each.terms) * lengths[each.axis]
        parts.append(_splits(each, kernels, lengths, 1, 4 * size, processors))
        if parts[-1] > 1:
            # Parts may share a byte of bits, so that each tile has a byte first.
            blocks, tiles = kernels.grid(lengths[each.axis], lengths[1 - each.axis])
            keeping = sum([plan.plan.kinds[k].has_tile_mask for k in each.terms])
            states = max(states, parts[-1] * size + (keeping * blocks * tiles + 3) // 4)
    masks: list[int | None] = []
    at = 0
    for kind, axis in zip(plan.plan.kinds, plan.owners, strict=True):
        masks.append(at if kind.has_tile_mask else None)
        if kind.has_tile_mask:
            at += kernels.mask_bytes(lengths[axis], lengths[1 - axis])
    return ForwardLayout(parts, states, masks, at)


@functools.lru_cache(maxsize=512)
def backward_splits(
    plan: CudaPlan, kernels: Kernels, n: int, m: int, by_x: bool, by_y: bool, processors: int
) -> list[int]:
    """Return the splits of each pass. by_x, by_y: gradients by the embeddings are wanted."""
    found = []
    for each in plan.passes:
        embeddings, owners = (by_x, by_y)[each.axis], (n, m)[each.axis]
        slices = -(-kernels.d // kernels.slice) if embeddings else 1
        size = 4 * owners * (kernels.d if embeddings else len(each.sums))
        found.append(_splits(each, kernels, (n, m), slices, size, processors))
    return found


def _splits(
    sweep: PlannedSweep,
    kernels: Kernels,
    lengths: tuple[int, int],
    slices: int,
    bytes_each: int,
    processors: int,
) -> int:
    if sweep.band_only:  # the width is unknown here; most bands have a few tiles
        return 1
    blocks, tiles = kernels.grid(lengths[sweep.axis], lengths[1 - sweep.axis])
    at_a_time = processors * kernels.blocks_of_a_processor
    return devices.splits(blocks * slices, tiles, at_a_time, bytes_each)
