"""Hopper's own sweeps, which are off by default, executed on the CPU: they serve every loss, give
the same bits whichever thread goes first, and leave no bits of a tile behind."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from pairops import Pairs, row_stats
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings.cuda import Kernels
from pairops.ops.engines import weight_parts
from pairops.ops.engines.cuda import engine
from pairops.ops.terms.term import Wanted
from support.cuda_backend import change_backend
from support.engine_names import DEVICE
from support.exhaustive import exhaustive
from support.loss_comparison import check, compare
from support.loss_parameters import LABELLED, THOROUGH, TWO_SETS, mined, parameters
from support.named_cases import Case, embeddings, smooth
from support.term_problems import of_gpus, results, served_terms, windowed

if DEVICE != "cpu" and not (cuda_kernels.BACKEND and torch.cuda.get_device_capability() == (9, 0)):
    pytest.skip("the GPU is no Hopper", allow_module_level=True)

NARROW = [torch.bfloat16, torch.float16]
DIMENSIONS = [48, 104, 204, 308, 512]
SCHEDULES = [("reversed", 0), ("last_warp", 0), ("random_thread", 1), ("random_warp", 2)]


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    change_backend(monkeypatch, hopper=True)
    # So that weights have one part for bfloat16 rows, as for many, and two for float16 ones.
    monkeypatch.setattr(weight_parts, "FEW", 0)
    yield
    if DEVICE == "cpu":
        cuda_kernels.installed().module.set_schedule("lockstep")


def test_arrangements_are_the_same() -> None:
    for d in (0, 1, 64, 65, 128, 129, 256, 257, 512, 513):
        for dtype in (*NARROW, torch.float32):
            one, two = (
                Kernels(cuda_kernels.installed(), dtype, d, hopper) for hopper in (True, False)
            )
            assert (one.panels, one.parts, one.slice) == (two.panels, two.parts, two.slice)
            served = dtype != torch.float32 and d <= 512
            assert ((one.rows, one.columns) != (two.rows, two.columns)) == (served and d > 128)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("d", DIMENSIONS)
def test_dimensions(d: int, dtype: torch.dtype) -> None:
    """ms_loss everywhere and every loss somewhere, with the same set in one dtype and two in the
    other, by the error rule."""
    shape = Kernels(
        cuda_kernels.installed(), dtype, d, cuda_kernels.on_hopper(torch.device(DEVICE))
    )
    assert (shape.rows, shape.columns) == (128, 64 if d <= 256 else 32)
    n = 140 if d <= 204 else 70  # ragged, of two blocks and of one
    for k, loss in enumerate([name for name in LABELLED if name in THOROUGH]):
        if loss != "ms_loss" and k % len(DIMENSIONS) != DIMENSIONS.index(d):
            continue
        params = parameters(loss)[0]
        make = functools.partial(embeddings if mined(loss, params) else smooth, dtype=dtype)
        labels = torch.randint(0, 9, (n,))
        labels[[3, n // 2, n - 1]] = -100
        keywords: dict[str, Any] = {}
        if k % 2 == NARROW.index(dtype):
            keywords = {"ref_emb": make(77, d), "ref_labels": torch.randint(0, 9, (77,))}
        compare(loss, params, Case(make(n, d), labels, keywords), ["cuda"])
    for loss in [name for name in TWO_SETS if name in THOROUGH][NARROW.index(dtype) :: 2]:
        given = parameters(loss)[0]
        ours = functools.partial(getattr(pairops, loss), **given, reduction="none")
        formula = functools.partial(getattr(oracle, loss), **given)
        check([smooth(n, d, dtype), smooth(n, d, dtype)], ours, formula, ["cuda"])


def two_sets(d: int, m: int) -> tuple[list[Tensor], Tensor, dict[str, Any]]:
    """Close classes of 4, and a last block of rows that are ignored alone."""
    torch.manual_seed(3)
    centre, classes = torch.randn(80, d), torch.arange(290) // 4
    x = (centre[classes] + 0.5 * torch.randn(290, d)).bfloat16()
    labels = torch.where(torch.arange(290) < 150, classes, -100)
    if not m:
        return [x], labels, {}
    ref_labels = torch.randint(0, 80, (m,))
    y = (centre[ref_labels] + 0.5 * torch.randn(m, d)).bfloat16()
    return [x, y], labels, {"ref_labels": ref_labels}


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU has its own schedule")
@pytest.mark.parametrize(("d", "m"), [(60, 0), (100, 70), pytest.param(300, 70, marks=exhaustive)])
def test_schedules_change_no_bit(d: int, m: int) -> None:
    """Terms of every kind, and their gradients."""
    sets, labels, other = two_sets(d, m)
    u, v = torch.rand(290), torch.rand(m or 290)

    def run() -> list[Tensor]:
        leaves = [z.clone().requires_grad_() for z in sets]
        given = {**other, "ref_emb": leaves[1]} if m else {}
        terms = of_gpus(served_terms(u, v, torch.tensor(1.3)))
        with pairops.engine("cuda"):
            return results(lambda: row_stats(Pairs.of(leaves[0], labels, **given), *terms), leaves)

    kernels = cuda_kernels.installed().module
    kernels.forget_launches()
    first = run()
    sweeps = [name for name in kernels.launched() if name.startswith(("forward", "backward"))]
    assert sweeps
    assert all(" on Hopper" in name for name in sweeps)
    for schedule, seed in SCHEDULES:
        kernels.set_schedule(schedule, seed)
        for a, b in zip(first, run(), strict=True):
            assert torch.equal(a, b), schedule


@pytest.mark.parametrize(("d", "m"), [(100, 0), (100, 170), (300, 170)])
def test_tile_bits(d: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They change no bit of a result, and are the other sweep's where tiles are the same."""
    sets, labels, other = two_sets(d, m)
    pairs = Pairs.of(sets[0], labels, **({**other, "ref_emb": sets[1]} if m else {}))
    terms = windowed(pairs)
    found, _, bits = engine.forward(pairs, *terms)
    assert 0 < float((bits[:, None] >> torch.arange(8) & 1).float().mean()) < 0.6
    cotangents = [torch.randn(len(z)) for z in found]
    with torch.no_grad():
        skipped, whole = (
            engine.backward(pairs, *terms, found, cotangents, b, Wanted(True, True, rounded=False))
            for b in (bits, torch.full_like(bits, 255))
        )
    for a, b in zip((*skipped[:2], *skipped[2]), (*whole[:2], *whole[2]), strict=True):
        assert torch.equal(a, b)
    assert bool((skipped[0] != 0).any())
    if d <= 128:
        change_backend(monkeypatch, hopper=False)
        assert torch.equal(engine.forward(pairs, *terms)[2], bits)
