"""Positives by list on the Triton engines, against dense torch and against the matrix itself."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pairops import Pairs, row_stats
from pairops.ops.engines.triton import chunked, engine, tile_configs
from pairops.ops.engines.triton.tile_configs import Row
from pairops.ops.terms.term import Wanted
from support.engine_comparison import assert_as_dense
from support.engine_names import TRITON
from support.exhaustive import exhaustive_but
from support.term_problems import DOUBLE, every_kind_of_term, windowed

pytest.importorskip("triton")

from pairops.ops.engines.triton import codegen, launch

List = tuple[Tensor, Tensor]


def listed(n: int, m: int, count: int) -> List:
    """Directed; the first three rows have none, the next one has every column. None of a row and a
    column beyond 63, so that some tiles there are full and others partial for a row and itself."""
    rows, cols = torch.randint(4, n, (count,)), torch.randint(0, m, (count,))
    rows, cols = torch.cat([rows, torch.full((m,), 3)]), torch.cat([cols, torch.arange(m)])
    chosen = (rows != cols) & ((rows < 64) | (cols < 64))
    return rows[chosen], cols[chosen]


def close(n: int, m: int) -> tuple[Tensor, Tensor, List]:
    """Rows of classes that lie apart, of which the list has some and others are negatives."""
    classes = [torch.arange(k) // 5 for k in (n, m or n)]
    centre = torch.randn(n, 16)
    x, y = (centre[z] + 0.3 * torch.randn(len(z), 16) for z in classes)
    rows, cols = (classes[0][:, None] == classes[1]).nonzero().unbind(1)
    kept = (torch.rand(len(rows)) < 0.5) & (rows != cols)
    return x, y, (rows[kept], cols[kept])


@pytest.mark.parametrize(
    ("name", "m", "processors", "dtype"),
    exhaustive_but(
        [
            (name, m, p, dtype)
            for name in TRITON
            for m in (0, 70)
            for p in (1, 20)
            for dtype in (torch.float32, torch.bfloat16)
            if name == "triton" or (m > 0) == (p > 1)  # "chunked" splits no columns
        ],
        lambda _n, m, p, dtype: (m > 0) == (p > 1) == (dtype == torch.bfloat16),
    ),
)
def test_terms_of_every_kind(
    name: str, m: int, processors: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows and of columns, with windows and extremes; blocks whose rows take two numbers of
    flags, and columns that are split or not."""
    monkeypatch.setattr(launch, "processors", lambda _: processors)
    monkeypatch.setattr(tile_configs, "INTERPRETED", Row(float("inf"), 64, 16, 16, 1, False, 4, 1))
    n, width = 84, m or 84
    list_of_pairs = listed(n, width, 150)
    u, v = torch.rand(n, dtype=DOUBLE), torch.rand(width, dtype=DOUBLE)

    def run(x: Tensor, *y: Tensor) -> tuple[Tensor, ...]:
        pairs = Pairs.listed(x, *list_of_pairs, **({"ref_emb": y[0]} if y else {}))
        return row_stats(pairs, *every_kind_of_term(u, v), cols=every_kind_of_term(v, u))

    sets = [torch.randn(k, 7, dtype=DOUBLE) for k in (n, m) if k]
    assert_as_dense(name, run, *sets, dtype=dtype)


@pytest.mark.parametrize("m", [0, 170])
def test_tile_masks_change_no_result_by_one_bit(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "processors", lambda _: 20)
    monkeypatch.setattr(tile_configs, "INTERPRETED", Row(float("inf"), 32, 16, 16, 2, False, 4, 1))
    x, y, pairs_listed = close(200, m)
    pairs = Pairs.listed(x, *pairs_listed, **({"ref_emb": y} if m else {}))
    rows, columns = windowed(pairs)
    found, _, masks = engine.forward(pairs, rows, columns)
    share = float(masks.float().mean())
    assert 0 < share < 0.5, f"{share:.2f} of the tiles hold a pair: the case does not test skipping"
    cotangents = [torch.randn(len(z)) for z in found]
    with torch.no_grad():
        skipped, whole, without = (
            engine.backward(pairs, rows, columns, found, cotangents, given, Wanted(True, True))
            for given in (masks, torch.ones_like(masks), None)
        )
    for a, b, c in zip(skipped[:2], whole[:2], without[:2], strict=True):
        assert torch.equal(a, b)
        assert torch.equal(b, c)
    assert bool((skipped[0] != 0).any())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("band_only", [True, False])
def test_the_other_tiles_are_full(axis: int, band_only: bool) -> None:
    """Tiles are marked where a pair is listed, or a row meets itself, and nowhere else."""
    n, m = 300, 90
    ids = torch.randint(0, 40, (n,)), torch.arange(m)
    rows, cols = torch.randint(0, n, (9,)), torch.randint(0, m, (9,))
    kept = ids[0][rows] != ids[1][cols]
    pairs = Pairs.listed(
        torch.randn(n, 3), rows[kept], cols[kept], ref_emb=torch.randn(m, 3),
        ids=ids[0], ref_ids=ids[1],
    )  # fmt: skip
    call = launch.Swept(pairs, engine.configuration(pairs))
    facts = codegen.Facts(1, listed=True, rows_are_y=axis == 1, band_only=band_only)
    truth = torch.zeros(n, m)
    truth[rows[kept], cols[kept]] = 1
    if not band_only:
        truth[ids[0][:, None] == ids[1]] = 1
    tile = call.config.rows, call.config.cols
    truth = truth if axis == 0 else truth.T
    padding = [-length % size for length, size in zip(truth.shape, tile, strict=True)]
    truth = torch.nn.functional.pad(truth, (0, padding[1], 0, padding[0]))
    expected = truth.view(-1, tile[0], truth.shape[1] // tile[1], tile[1]).amax((1, 3)) != 0
    assert torch.equal(call._occupied(axis, facts), expected)
    assert 0 < int(expected.sum()) < expected.numel()


class Waits(TorchDispatchMode):
    """Counts what a GPU's host would wait for: values, and shapes that depend on data."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if op.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::repeat_interleave"):
            self.seen.append(op.name())
        return op(*args, **(kwargs or {}))


@pytest.mark.usefixtures("small_triton_tiles")
@pytest.mark.parametrize("served_by", [engine, chunked])
def test_nobody_waits_for_the_length_of_a_list(served_by: Any) -> None:
    x, y, pairs_listed = close(60, 40)
    pairs = Pairs.listed(x, *pairs_listed, ref_emb=y)
    rows, columns = windowed(pairs)
    with Waits() as waits:
        found, _, masks = served_by.forward(pairs, rows, columns)
        cotangents = [torch.randn(len(z)) for z in found]
        served_by.backward(pairs, rows, columns, found, cotangents, masks, Wanted(True, True))
    assert waits.seen == []
