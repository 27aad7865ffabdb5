"""The CUDA engine: its kernels as compiled for the CPU, against dense torch in float64."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import NEG, POS, Function, Pairs, lowest, lse, row_stats, total
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import devices
from pairops.ops.engines.cuda import engine
from pairops.ops.terms import functions
from pairops.ops.terms.term import Wanted
from support.cuda_backend import change_backend
from support.engine_comparison import assert_as_dense
from support.exhaustive import exhaustive, exhaustive_but
from support.loss_comparison import compare
from support.named_cases import Case, embeddings, smooth
from support.term_problems import gpu_problem, problem, results, sparse

SPLITS = [1, 40]  # processors: of one block each, and of more parts than there are tiles


@pytest.mark.parametrize(
    ("m", "processors"),
    exhaustive_but([(0, SPLITS[0]), (150, SPLITS[1])], lambda m, _: m > 0),
)
def test_every_term_with_gradients_by_every_argument(
    m: int, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same call twice gives the same bits."""
    monkeypatch.setattr(devices, "processors", lambda _: processors)
    # With seed 0 one owner has a hinge of 0.04 over two pairs, the difference of a similarity and a
    # base, and shows the last bit of that: docs/numerics.md, "Where the rule is not kept".
    torch.manual_seed(1)
    leaves, run = gpu_problem(m)
    first = assert_as_dense("cuda", run, *leaves)
    with pairops.engine("cuda"):
        mine = [z.float().requires_grad_() for z in leaves]
        again = results(lambda: run(*mine), mine)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("dtype", "m", "processors"),
    exhaustive_but(
        [
            (torch.bfloat16, 0, SPLITS[0]), (torch.bfloat16, 170, SPLITS[1]),
            (torch.float16, 0, SPLITS[1]), (torch.float16, 170, SPLITS[0]),
            (torch.float32, 0, SPLITS[1]), (torch.float32, 170, SPLITS[0]),
        ],
        lambda dtype, m, _: (m == 0) == (dtype == torch.bfloat16),
    ),
)  # fmt: skip
def test_tile_bits_change_no_result_by_one_bit(
    dtype: torch.dtype, m: int, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "processors", lambda _: processors)
    pairs, rows, columns = sparse(700, m, dtype)
    found, _, bits = engine.forward(pairs, rows, columns)
    share = float((bits[:, None] >> torch.arange(8) & 1).float().mean())
    assert 0 < share < 0.8, f"{share:.2f} of the bits are set: the case does not test skipping"
    cotangents = [torch.randn(len(z)) for z in found]
    with torch.no_grad():
        skipped, whole = (
            engine.backward(pairs, rows, columns, found, cotangents, b, Wanted(True, True))
            for b in (bits, None)
        )
    for a, b in zip((*skipped[:2], *skipped[2]), (*whole[:2], *whole[2]), strict=True):
        assert torch.equal(a, b)
    assert bool((skipped[0] != 0).any())


def test_more_terms_than_a_kernel_s_parameters_hold() -> None:
    x, labels, _ = problem(n=50, d=9)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        levels = [0.1 * k for k in range(11)]
        rows = [lse(NEG, 3.0, level, above=torch.full((50,), -level)) for level in levels]
        return row_stats(Pairs.of(x, labels), *rows, total(POS, 1.0, 0.0))

    assert_as_dense("cuda", run, x)


@pytest.mark.parametrize(
    ("n", "d"),
    exhaustive_but(
        itertools.product([1, 2, 63, 64, 65, 128, 129, 257], [64, 65, 128, 256, 257]),
        lambda n, d: d == 65 or (n in (1, 65, 129) and d in (128, 257)),
    ),
)
def test_sizes_around_those_of_tiles(n: int, d: int) -> None:
    labels = torch.arange(n) // 3
    compare("supcon_loss", {}, Case(smooth(n, d, dtype=torch.float16), labels), ["cuda"])
    compare("ms_loss", {}, Case(embeddings(n, d, dtype=torch.float16), labels), ["cuda"])


@pytest.mark.parametrize("level", ["highest", "high", "medium"])
def test_embeddings_of_very_different_sizes(level: str) -> None:
    """Powers of two per row, also those that no float16 holds, are told apart from the rest."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        sizes = 2.0 ** torch.linspace(-30, 100, 80).round().unsqueeze(1)
        labels = torch.arange(80) // 4
        for dtype in (torch.bfloat16, torch.float32) if level != "medium" else (torch.bfloat16,):
            x = (smooth(80, 40) * sizes).to(dtype)
            with pairops.engine("cuda"):
                plain = pairops.ms_loss((x / sizes).to(dtype), labels, reduction="none")
                assert torch.equal(pairops.ms_loss(x, labels, reduction="none"), plain)
    finally:
        torch.set_float32_matmul_precision(before)


UNKNOWN = Function(value=lambda s: s * s, slopes=lambda s: (2 * s,), name="unknown_to_cuda")


def declined(monkeypatch: pytest.MonkeyPatch) -> Sequence[tuple[str, Any]]:
    x, labels = smooth(6, 3), torch.arange(6) // 2

    def elsewhere() -> Any:
        change_backend(monkeypatch, device="cuda")
        return pairops.ms_loss(x, labels)

    def without() -> Any:
        monkeypatch.setattr(cuda_kernels, "BACKEND", None)
        return pairops.ms_loss(x, labels)

    affine = functions.affine
    return [
        ("x is float64; the CUDA kernels sum in float32",
         lambda: pairops.ms_loss(x.double(), labels)),
        ("no recipe in csrc/recipes.h that is compiled for GPUs has a sum:unknown_to_cuda",
         lambda: row_stats(Pairs.of(x, labels), total(NEG, function=UNKNOWN))),
        ("no recipe in csrc/recipes.h that is compiled for GPUs has a lowest@:affine",
         lambda: row_stats(Pairs.of(x, labels), lowest(NEG, 1.0, 0.0, function=affine))),
        ("no recipe in csrc/recipes.h that is compiled for GPUs has a sum:one",
         lambda: row_stats(Pairs.of(x, labels), total(NEG, function=functions.one))),
        ("x has 65537 dimensions; the CUDA kernels take 65536",
         lambda: pairops.ms_loss(torch.zeros(2, 65537), labels[:2])),
        ("x is on cpu; the CUDA kernels are for CUDA devices", elsewhere),
        ("this build of pairops has no CUDA kernels", without),
    ]  # fmt: skip


def test_who_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    with pairops.engine("cuda"):
        for reason, call in declined(monkeypatch):
            with pytest.raises(ValueError, match=f"engine 'cuda' cannot serve this call: {reason}"):
                call()


def test_memory_that_cannot_be_had_is_torch_s_error_and_the_next_call_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, labels = smooth(50, 20).requires_grad_(), torch.arange(50) // 5
    room = cuda_kernels.Kernels.room

    def none_left(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pairops.engine("cuda"):
        expected = pairops.ms_loss(x, labels)
        monkeypatch.setattr(cuda_kernels.Kernels, "room", none_left)
        with pytest.raises(torch.OutOfMemoryError):
            pairops.ms_loss(x, labels)
        monkeypatch.setattr(cuda_kernels.Kernels, "room", room)
        assert torch.equal(pairops.ms_loss(x, labels), expected)


@pytest.mark.parametrize("related", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("first", "then"), [("high", "medium"), pytest.param("medium", "highest", marks=exhaustive)]
)
def test_a_level_that_changes_after_compilation(
    first: str, then: str, related: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was traced for one level of float32 precision is prepared for it."""
    change_backend(monkeypatch, related=related)
    x, labels = smooth(50, 20), torch.arange(50) // 5
    exact = x.double().requires_grad_()  # of which the level says nothing
    with pairops.engine("dense"):
        (truth,) = torch.autograd.grad(pairops.supcon_loss(exact, labels), exact)
    before = torch.get_float32_matmul_precision()
    torch._dynamo.reset()
    compiled = torch.compile(pairops.supcon_loss, backend="aot_eager", fullgraph=True)
    try:
        with pairops.engine("cuda"):
            for level in (first, then):
                torch.set_float32_matmul_precision(level)
                mine = x.clone().requires_grad_()
                (found,) = torch.autograd.grad(compiled(mine, labels), mine)
                error = float((found - truth).abs().max() / truth.abs().max())
                assert error < 2**-9, f"{level}: {error:.1e}"  # of 11 bits
    finally:
        torch.set_float32_matmul_precision(before)
