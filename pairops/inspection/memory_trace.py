"""How many bytes a step holds at its peak, without running it: tensors without memory are followed
from their making to their end."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pairops.ops.engines import ENGINES, terms_for_engine
from pairops.ops.engines.memory import WORKING, SizedCall, Working
from pairops.ops.pairs.distances import Measure
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.relation import Relation, Scales
from pairops.ops.row_stats.backward import of_terms
from pairops.ops.row_stats.ring_blocks import GATHERED
from pairops.ops.terms.recipe import unpack
from pairops.ops.terms.term import Term, Wanted

_RELATED = 80  # bytes for each row of a block and each of one's own, while they are related


class TensorTrace(TorchDispatchMode):
    """The bytes of what torch makes within this context and still holds, and the most there were.

    given: tensors that are not counted.  engine: who is to serve; None: who does.  ranks: of how
    many this is one.
    """

    def __init__(self, given: Sequence[Tensor], engine: str | None = None, ranks: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        # In a backward pass torch adds to a gradient in place, if nobody else holds it; but not
        # within a mode such as this.
        self.adds_in_place = False
        self._engine, self._ranks = engine, ranks
        self._known = {id(z.untyped_storage()): weakref.ref(z.untyped_storage()) for z in given}
        self._prepared: set[tuple[int, ...]] = set()

    def __torch_dispatch__(
        self, op: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._note()
        beside = 0
        if op is torch.ops.pairops.row_stats.default:
            self._forward(_named(op, args))
        elif op is torch.ops.pairops.row_stats_backward.default:
            beside = self._backward(_named(op, args))
        elif op is torch.ops.aten.logsumexp.default:
            self._note(args[0].nbytes)  # its kernel makes a copy
        result = op(*args, **(kwargs or {}))
        for z in tree_leaves(result):
            if isinstance(z, Tensor):
                self._follow(z.untyped_storage())
        if not (self.adds_in_place and op is torch.ops.aten.add.Tensor):
            self._note(beside)
        return result

    def _note(self, beside: int = 0) -> None:
        self.peak = max(self.peak, self.bytes + beside)

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def ended(_: object) -> None:
            del self._known[key]
            self.bytes -= size

        self._known[key] = weakref.ref(storage, ended)
        self.bytes += size

    def _forward(self, given: Mapping[str, Any]) -> None:
        pairs, call, working = self._read(given)
        order = pairs.relation.permutation_x
        sets = tuple([id(z.untyped_storage()) for z in (pairs.x, pairs.other, order)])
        if self._ranks == 1 and sets not in self._prepared:
            self._prepared.add(sets)
            self.bytes += working.prepared(call)
        for block_call, beside in meetings(call, self._ranks, backward=False):
            self._note(
                beside + self._prepared_anew(block_call, working) + working.forward(block_call)
            )
        if working.tile_masks is not None:
            engine = ENGINES[self._engine or given["engine"]]
            rows, cols = terms_for_engine(engine, pairs, call.rows, call.cols)
            self.bytes += working.tile_masks(call) * sum(
                term.has_tile_mask for term in (*rows, *cols)
            )

    def _backward(self, given: Mapping[str, Any]) -> int:
        """What there still is of the gradients besides those that are returned."""
        pairs, call, working = self._read(given)
        call = replace(call, wanted=(given["need_x"], given["need_y"]))
        statistics, cotangents = given["statistics"], given["cotangents"]
        saved_arguments = iter(given["arguments"])
        beside_term: dict[int, list[Tensor]] = {}
        for (term, _), statistic, cotangent in zip(
            call.terms_and_owners, statistics, cotangents, strict=True
        ):
            found = [next(saved_arguments)] if term.keeps_argument else []
            beside_term[id(term)] = [statistic, cotangent, *found]
        for block_call, beside in meetings(call, self._ranks, backward=True):
            held = beside + self._prepared_anew(block_call, working)
            if self._ranks == 1 and working.takes_extremes(block_call):
                self._note(held + working.backward(block_call))
                continue
            swept = replace(block_call, rows=_sums(block_call.rows), cols=_sums(block_call.cols))
            if swept.terms_and_owners:
                self._note(held + working.backward(swept))
                held += swept.gradients()
            self.bytes += held
            self._extremes_backward(pairs, block_call, beside_term)
            self.bytes -= held
        return call.gradients() if call.dtype.itemsize < call.float_bytes else 0

    def _extremes_backward(
        self, pairs: Pairs, call: SizedCall, beside_term: dict[int, list[Tensor]]
    ) -> None:
        """Their gradients are made in torch, and are followed."""
        rows, cols = (
            [term for term in terms if term.keeps_argument] for terms in (call.rows, call.cols)
        )
        if not (rows or cols):
            return
        if pairs.y is None and not call.same:  # a block of the others' rows is like one's own
            pairs = replace(pairs, y=pairs.x, scales=Scales(pairs.scales.x, pairs.scales.x))
        statistics, cotangents, arguments = zip(
            *[beside_term[id(term)] for term in (*rows, *cols)], strict=True
        )
        adds_in_place, self.adds_in_place = self.adds_in_place, False
        with self, torch.no_grad():
            of_terms(
                pairs, rows, cols, "blockwise", statistics, arguments, None, cotangents,
                Wanted(*call.wanted),
            )  # fmt: skip
        self.adds_in_place = adds_in_place

    def _prepared_anew(self, block_call: SizedCall, working: Working) -> int:
        """What an engine makes of the embeddings; alone it is made once, and held throughout."""
        return working.prepared(block_call) if self._ranks > 1 else 0

    def _read(self, given: Mapping[str, Any]) -> tuple[Pairs, SizedCall, Working]:
        """The arguments that both ops share."""
        x, y, scales = given["x"], given["y"], Scales(given["scale_x"], given["scale_y"])
        measure = Measure.of(given["measure"])
        pairs = Pairs(x, y, Relation(*given["relation"]), scales, measure=measure)
        rows, cols = unpack(given["recipe"], given["numbers"], given["vectors"])
        call = SizedCall(*pairs.shape, x.shape[1], y is None, x.dtype, rows, cols, measure)
        return pairs, call, WORKING[self._engine or given["engine"]]


def _named(op: Any, args: Sequence[Any]) -> dict[str, Any]:
    """The arguments of an op by the names of its schema; those left out have their default."""
    return {known.name: value for known, value in zip(op._schema.arguments, args, strict=False)}


def _sums(terms: Sequence[Term]) -> list[Term]:
    return [term for term in terms if not term.extreme]


def meetings(call: SizedCall, ranks: int, backward: bool) -> Iterator[tuple[SizedCall, int]]:
    """Each call that an engine serves in a ring, and what is held besides.

    call: of the rows that one rank holds, as if there were no others.
    """
    if ranks == 1:
        yield call, 0
        return
    by_axis = [(*call.rows, *call.cols), ()] if call.same else [call.rows, call.cols]
    before = 0
    for axis in (0,) if call.same else (0, 1):
        mine, theirs = by_axis[axis], by_axis[0] if call.same else by_axis[1 - axis]
        if backward and call.wanted[axis]:
            travelling = sum(_known(term, call.float_bytes) for term in theirs)
            block_call, ring_bytes = _ring_call(call, axis, ranks, travelling)
            rows, cols = (mine, theirs) if axis == 0 else (theirs, mine)
            wanted = axis == 0, axis == 1
            # Of the blocks so far; of this block it is a part of what the engine holds.
            gradient = call.copies((call.n, call.m)[axis])
            block_call = replace(block_call, rows=rows, cols=cols, wanted=wanted)
            yield block_call, before + gradient + ring_bytes
            before += gradient
        elif mine and not backward:
            block_call, ring_bytes = _ring_call(
                call, axis, ranks, sum(_partner_bytes(term) for term in mine)
            )
            rows, cols = (mine, ()) if axis == 0 else ((), mine)
            yield replace(block_call, rows=rows, cols=cols), ring_bytes


def _ring_call(call: SizedCall, axis: int, ranks: int, travelling: int) -> tuple[SizedCall, int]:
    """The extents that the own rows (axis 0) or columns (1) have with a block of the others, and
    what is held of blocks: two of them, or of few rows those of all ranks, in pieces and joined.

    travelling: bytes that go with a row, besides its embedding, key and place.
    """
    owners, others = (call.n, call.m) if axis == 0 else (call.m, call.n)
    row = call.d * call.dtype.itemsize
    if max(call.n, call.m) * row < GATHERED:
        others, held = ranks * others, 2
    else:
        held = min(2, ranks - 1)
    n, m = (owners, others) if axis == 0 else (others, owners)
    size = others * (held * row + (held + 1) * (16 + travelling)) + _RELATED * (owners + others)
    return replace(call, n=n, m=m, same=False), size


def _partner_bytes(term: Term) -> int:
    return sum(map(_row_bytes, term.tensors("partner")))


def _known(term: Term, float_bytes: int) -> int:
    """Bytes per owner: arguments, windows, statistic, cotangent, who attained an extreme."""
    owner_bytes = sum(map(_row_bytes, term.tensors("owner", "window")))
    return owner_bytes + 2 * float_bytes + 8 * term.keeps_argument


def _row_bytes(values: Tensor) -> int:
    """Bytes of a value per row, or of a row of further embeddings."""
    return values.element_size() * values.shape[1:].numel()
