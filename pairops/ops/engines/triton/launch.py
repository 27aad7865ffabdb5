"""Launches of Triton sweeps: the terms of each, its rows, and the tensors of its results."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.bindings.devices import (
    blocks_of_a_processor,
    on_device,
    processors,
    splits,
)
from pairops.ops.engines.bands import bands
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import Term, Wanted

from . import codegen
from .codegen import Facts, Sweep
from .compile_time import static
from .kernels import finalize, lists
from .kernels import sweep as sweep_kernels
from .kernels.accumulators import INTERPRETED
from .operands import (
    Operands,
    TileList,
    TritonTermView,
    along_rows,
    any_of,
    in_band,
    list_tiles,
    log_of_powers,
    transposed_mask,
)
from .tile_configs import Configuration

FINALIZE_ROWS = 128  # rows of a program of `finalize_states`
SCALED = 64 if INTERPRETED else 8  # rows of a program of `normalize_backward`
MARKED = 128  # rows of a program of `mark_occupied`

Found = dict[tuple[int, int], Tensor]  # gradients by (term id, argument)
MasksByTerm = list[Tensor]  # of each term (blocks of owners, tiles of partners) uint8


class Results(NamedTuple):
    values: dict[TritonTermView, Tensor]  # of a bounded term the sum of powers
    arguments: dict[TritonTermView, Tensor]

    def of(self, placed: Sequence[TritonTermView]) -> tuple[list[Tensor], list[Tensor]]:
        """Return statistics and arguments in the order of the terms."""
        statistics = [log_of_powers(p.term, z) if p.bounded else z for p, z in self.values.items()]
        return statistics, [self.arguments[p] for p in placed if p in self.arguments]


class TritonCall:
    """The pairs of a call, sorted for sweeps, and its terms."""

    FOLDS = False  # scales of 16-bit embeddings are left to VISIT

    def __init__(self, pairs: Pairs, config: Configuration) -> None:
        self.pairs, self.config = pairs, config
        self.operands = Operands(pairs, config, self.FOLDS)
        self.same = self.operands.same

    def place(
        self, rows: Sequence[Term], cols: Sequence[Term], *given: Sequence[Tensor]
    ) -> list[TritonTermView]:
        """Place all terms. given: their statistics and cotangents, for `backward`."""
        terms = [(0, term) for term in rows] + [(1, term) for term in cols]
        beside = list(zip(*given, strict=True)) if given else [()] * len(terms)
        return [
            self.operands.vectors.place(term, axis, more)
            for (axis, term), more in zip(terms, beside, strict=True)
        ]

    def blank(self, placed: Sequence[TritonTermView]) -> "Results":
        """Allocate statistics and arguments with the values of owners without pairs."""
        device = self.pairs.x.device
        values, arguments = {}, {}
        for p in placed:
            n = self.pairs.shape[p.owners]
            neutral = 0.0 if p.bounded else p.term.monoid.neutral
            values[p] = torch.full((n,), neutral, device=device)
            if p.term.keeps_argument:
                arguments[p] = torch.full((n,), -1, dtype=torch.int64, device=device)
        return Results(values, arguments)

    def finalize_states(
        self,
        axis: int,
        placed: Sequence[TritonTermView],
        sweep: Sweep,
        states: Tensor,
        results: "Results",
    ) -> None:
        init, _, merge, finalize_state = sweep.functions
        n = self.pairs.shape[axis]
        values = tuple([results.values[p] for p in placed])
        arguments = tuple([results.arguments[p] for p in placed if p in results.arguments])
        finalize.finalize_states[(n + FINALIZE_ROWS - 1) // FINALIZE_ROWS,](
            states, self.operands.sides[axis], values, arguments or (states,), len(states),
            INIT=init, MERGE=merge, FINALIZE=finalize_state, F=static(sweep.facts), R=FINALIZE_ROWS,
            **self.config.options,
        )  # fmt: skip

    def _views(self, axis: int, placed: Sequence[TritonTermView]) -> list[TritonTermView]:
        """Return the owner or partner views of terms in a sweep of `axis`; in one set both."""
        if self.same:
            return [*placed, *[p.changed(transposed=True) for p in placed]]
        return [p.changed(transposed=p.owners != axis) for p in placed]

    def where(self, views: Sequence[TritonTermView], terms: int) -> list[tuple[int, int]]:
        """Return (term id, argument) of each gradient by a vector along the rows."""
        return [(term_id % terms, k) for term_id, k in along_rows(views)]

    def in_order(self, placed: Sequence[TritonTermView], found: Found) -> list[Tensor]:
        """Return the gradients in the order in which `pack` has the vectors."""
        return [
            found[term_id, k]
            for term_id, p in enumerate(placed)
            for k, a in enumerate(p.term.args)
            if not isinstance(a, float)
        ]

    def _facts(self, axis: int) -> dict[str, Any]:
        vectors = self.operands.vectors
        return {
            "row_vectors": vectors.counts(axis),
            "col_vectors": vectors.counts(1 - axis),
            "scaled": self.operands.scaled,
            "normalized": self.pairs.scales.x is not None,
            "rows_are_y": axis == 1,
            "listed": self.operands.listed,
            "folded": self.operands.folded,
        }

    def wanted(self, needs: Wanted) -> tuple[bool, bool]:
        """Return by which of the sets that are swept a gradient is wanted."""
        if self.pairs.y is None:
            return needs.x, needs.x and not self.same
        return needs.x, needs.y

    def by_set(self, by_rows: Tensor, by_cols: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients by x and y, the latter empty if there is one set."""
        if self.pairs.y is None and by_cols.numel():
            return by_rows + by_cols, by_cols.new_empty(0)
        return by_rows, by_cols

    def _normalize_backward(self, axis: int, gradient: Tensor) -> Tensor:
        x, scale, _, valid = self.operands.sets[axis]
        parts, n, d = gradient.shape
        out = gradient[0] if parts == 1 else gradient.new_empty((n, d))
        depth = min(64, max(16, 1 << (d - 1).bit_length()))
        given = x.float() if INTERPRETED and x.dtype == torch.bfloat16 else x
        finalize.normalize_backward[(n + SCALED - 1) // SCALED,](
            gradient, given.contiguous(), valid if scale is None else scale, valid, out, parts,
            n, d,
            SCALED=scale is not None, R=SCALED, DEPTH=depth, **self.config.options,
        )  # fmt: skip
        return out


class Swept(TritonCall):
    """A call whose similarities are multiplied tile by tile."""

    FOLDS = True

    def grid(self, axis: int) -> tuple[int, int]:
        """Return the numbers of blocks of rows and of tiles of columns, for the rows of `axis`."""
        return self.config.tiles(self.pairs.shape[axis], self.pairs.shape[1 - axis])

    def forward(
        self, axis: int, placed: Sequence[TritonTermView], tile_masks: Tensor, results: "Results"
    ) -> None:
        """Compute statistics of terms of the rows of `axis`; fill tile_masks, term after term."""
        sweep = codegen.forward(placed, tile_list=self.operands.listed, **self._facts(axis))
        init, visit, _, _ = sweep.functions
        blocks, tiles = self.grid(axis)
        if not (blocks and tiles):
            return
        n = self.pairs.shape[axis]
        parts = self._splits(blocks, tiles, 4 * sweep.facts.states * n)
        states = torch.empty((parts, sweep.facts.states, n), device=self.pairs.x.device)
        with on_device(self.pairs.x):
            sweep_kernels.forward[blocks, parts](
                self.operands.sides[axis], self.operands.sides[1 - axis], self.operands.relation,
                self._visits(axis, sweep.facts, None, parts), self.operands.numbers(), tile_masks,
                states, self.config.padded,
                INIT=init, VISIT=visit, F=static(sweep.facts), C=static(self.config),
                **self.config.sweep_options,
            )  # fmt: skip
            self.finalize_states(axis, placed, sweep, states, results)

    def backward(
        self,
        axis: int,
        placed: Sequence[TritonTermView],
        masks_by_term: MasksByTerm,
        embeddings: bool,
    ) -> tuple[Tensor, Found]:
        """Compute the gradient by the set `axis` (empty if it is not wanted), and by every vector
        along it, by (term id, argument)."""
        views = self._views(axis, placed)
        tile_list = bool(masks_by_term) or self.operands.listed
        facts, (visit,) = codegen.backward(
            views, embeddings=embeddings, tile_list=tile_list, **self._facts(axis)
        )
        where = self.where(views, len(placed))
        n, d = self.pairs.shape[axis], self.pairs.x.shape[1]
        blocks, tiles = self.grid(axis)
        device = self.pairs.x.device
        nothing = self.pairs.x.new_empty(0, dtype=torch.float32)
        if not (embeddings or where):
            return nothing, {}
        if not (blocks and tiles):
            by_vector = {at: torch.zeros(n, device=device) for at in where}
            return torch.zeros((n, d), device=device) if embeddings else nothing, by_vector
        config = self.config
        shares = config.parts if embeddings else 1
        parts = self._splits(blocks * shares, tiles, 4 * n * (d if embeddings else facts.gradients))
        gradient = torch.empty((parts, n, d), device=device) if embeddings else nothing
        sums = torch.zeros((parts, facts.gradients, n), device=device)
        mask = None
        if masks_by_term:
            seen = zip(views, itertools.cycle(masks_by_term))
            mask = any_of([self._seen(p, tile_mask, blocks, tiles) for p, tile_mask in seen])
        with on_device(self.pairs.x):
            sweep_kernels.backward[blocks, parts, shares](
                self.operands.sides[axis], self.operands.sides[1 - axis], self.operands.relation,
                self._visits(axis, facts, mask, parts), self.operands.numbers(),
                gradient, sums, config.padded, d,
                VISIT=visit, F=static(facts), C=static(config), **self.config.sweep_options,
            )  # fmt: skip
            if embeddings:
                gradient = self._normalize_backward(axis, gradient)
        by_vector = {at: sums[:, k].sum(0) for k, at in enumerate(where)}
        return gradient, by_vector

    def _visits(
        self, axis: int, facts: Facts, mask: Tensor | None, parts: int
    ) -> Tensor | TileList:
        """Return the tiles that a sweep visits: the bands of its blocks, or a list of those in mask
        (None: all)."""
        rows, cols = self.config.rows, self.config.cols
        if self.operands.listed:
            occupied = self._occupied(axis, facts)
        else:
            band = bands(self.pairs, axis, rows)
            if not facts.tile_list:
                return band
            occupied = in_band(band, self.grid(axis)[1], cols)
        valid_count = self.operands.sides[1 - axis].valid_count
        return list_tiles(mask, occupied, valid_count, cols, parts, facts.band_only)

    def _occupied(self, axis: int, facts: Facts) -> Tensor:
        """Return (blocks, tiles) bool: the tiles that hold a pair of the list or, unless the sweep
        sees positives alone, of a row with itself."""
        marks = torch.zeros(self.grid(axis), dtype=torch.uint8, device=self.pairs.x.device)
        n = self.pairs.shape[0]
        lists.mark_occupied[(n + MARKED - 1) // MARKED,](
            self.operands.relation, n, marks, marks.shape[1],
            ROWS=self.config.rows, COLS=self.config.cols, F=static(facts), R=MARKED,
            **self.config.options,
        )  # fmt: skip
        return marks.bool()

    def masks_by_term(
        self, placed: Sequence[TritonTermView], tile_masks: Tensor | None
    ) -> MasksByTerm:
        """Split tile masks by term; none, so that all tiles are visited, if a term has no mask."""
        if tile_masks is None or not all(p.term.has_tile_mask for p in placed):
            return []
        masks_by_term = tile_masks.split([self.cells(p.owners) for p in placed])
        return [z.view(self.grid(p.owners)) for p, z in zip(placed, masks_by_term, strict=True)]

    def cells(self, axis: int) -> int:
        blocks, tiles = self.grid(axis)
        return blocks * tiles

    def _seen(self, p: TritonTermView, tile_mask: Tensor, blocks: int, tiles: int) -> Tensor:
        times = self.config.rows // self.config.cols
        return transposed_mask(tile_mask, blocks, tiles, times) if p.transposed else tile_mask

    def _splits(self, programs: int, tiles: int, each: int) -> int:
        at_a_time = processors(self.pairs.x.device) * blocks_of_a_processor(self.config.warps)
        return splits(programs, tiles, at_a_time, each)
