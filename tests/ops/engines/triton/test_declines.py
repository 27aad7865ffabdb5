"""Whom the Triton engines serve, whom they decline, and which of the two is asked first."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import NEG, Function, Pairs, row_stats, total
from pairops.ops import engines
from pairops.ops.engines.cuda import engine as cuda_engine
from pairops.ops.engines.triton import engine, tile_configs
from support.engine_names import TRITON
from support.exhaustive import exhaustive
from support.named_cases import smooth

pytest.importorskip("triton")


@exhaustive
def test_torch_s_newer_setting_of_precision_is_read() -> None:
    code = """
import torch, pairops
from pairops.ops.bindings import devices
torch.backends.cuda.matmul.fp32_precision = "tf32"
assert devices.float32_level() == "high", devices.float32_level()
with pairops.engine("triton"):
    pairops.supcon_loss(torch.randn(6, 3), torch.arange(6) // 2)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_compiled_call_may_ask_the_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 16-bit embeddings, and as on the GPU that was counted: it is asked for D and N too.
    monkeypatch.setattr(engines, "_runs_sm_80_path_on_9_0", lambda _: True)

    def plan(x: Tensor) -> Tensor:
        pairs = Pairs.of(x, torch.arange(len(x)) // 2)
        chunks = engine.prefers_chunks(pairs) or cuda_engine.prefers_chunks(pairs)
        chunks = chunks or engines._triton_is_faster(pairs)
        return x + 1 if chunks else x - 1

    torch._dynamo.reset()
    compiled = torch.compile(plan, fullgraph=True, dynamic=True, backend="aot_eager")
    x = smooth(6, 3)
    assert torch.equal(compiled(x), plan(x))
    half = x.bfloat16()
    assert torch.equal(compiled(half), half + 1)  # the compiler does not ask for N
    assert torch.equal(plan(half), half - 1)  # few rows


def test_importing_pairops_imports_no_triton() -> None:
    code = "import sys, pairops; assert not [m for m in sys.modules if m.split('.')[0] == 'triton']"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "version", "old"),
    [
        ("triton", "3.2.0", True),
        ("triton", "2.10.1", True),
        ("pytorch-triton", "3.5.1+git0a", True),
        ("triton", "3.6.0", False),
        ("triton", "3.10.0", False),
        ("triton", "4.0.0", False),
        ("built-from-source", "1.0", False),  # nobody knows
    ],
)
def test_a_triton_older_than_the_kernels_need_declines(
    name: str, version: str, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(asked: str) -> str:
        if asked != name:
            raise PackageNotFoundError(asked)
        return version

    monkeypatch.setattr("importlib.metadata.version", installed)
    reason = engine._without()
    assert reason == (f"triton is {version}; the kernels need 3.6 or newer" if old else None)
    monkeypatch.setattr(engine, "MISSING", reason)
    for asked in TRITON if old else []:
        with pairops.engine(asked), pytest.raises(ValueError, match=rf"triton is {version[:3]}"):
            pairops.supcon_loss(smooth(6, 3), torch.arange(6) // 2)


UNKNOWN = Function(lambda s: torch.special.i0(s), name="unknown_to_triton")


@pytest.mark.parametrize(
    ("capability", "dtype", "level", "d", "same", "chunks"),
    [
        ((9, 0), torch.bfloat16, "highest", 128, True, False),
        ((9, 0), torch.bfloat16, "highest", 256, False, False),
        ((9, 0), torch.bfloat16, "highest", 300, False, True),
        ((9, 0), torch.float16, "highest", 1024, True, True),
        ((8, 6), torch.bfloat16, "highest", 100, True, False),
        ((9, 0), torch.float32, "highest", 128, True, True),
        ((9, 0), torch.float32, "high", 64, True, False),
    ],
)
def test_the_planner_reads_the_table(
    capability: tuple[int, int], dtype: torch.dtype, level: str, d: int, same: bool, chunks: bool
) -> None:
    config = tile_configs.choose(capability, dtype, d, level)
    assert tile_configs.chunks_pay(config, d, same) == chunks
    assert config.padded >= d
    assert config.parts * config.accumulators * config.depth == config.padded


@pytest.mark.parametrize("chunks", [True, False])
def test_auto_on_a_gpu_asks_the_planner(chunks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "prefers_chunks", lambda _: chunks)
    on_gpu = SimpleNamespace(x=SimpleNamespace(is_cuda=True, device=torch.device("cuda")))
    first = ["chunked", "triton"] if chunks else ["triton", "chunked"]
    expected = ["cpu", "cuda", *first, "blockwise", "dense"]
    assert engines._preferred(on_gpu) == expected  # type: ignore[arg-type]
    pairs = Pairs.of(smooth(6, 3), torch.arange(6))
    assert engines._preferred(pairs) == ["cpu", "blockwise", "dense"]


@pytest.mark.parametrize(
    ("capability", "dtype", "d", "n", "hopper", "faster"),
    [
        ((9, 0), torch.bfloat16, 128, 5000, False, True),
        ((9, 0), torch.float16, 64, 5000, False, True),
        ((9, 0), torch.bfloat16, 256, 5000, False, True),
        ((9, 0), torch.bfloat16, 257, 5000, False, False),  # not counted on the sm_80 path
        ((9, 0), torch.bfloat16, 128, 4096, False, False),  # few rows: launches count
        ((9, 0), torch.float32, 128, 5000, False, False),
        ((9, 0), torch.bfloat16, 128, 5000, True, False),  # asked for
        ((8, 0), torch.bfloat16, 128, 5000, False, False),  # not counted
        ((10, 0), torch.bfloat16, 128, 5000, False, False),
    ],
)
def test_auto_on_a_gpu_follows_the_table_of_instructions(
    capability: tuple[int, int],
    dtype: torch.dtype,
    d: int,
    n: int,
    hopper: bool,
    faster: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines.cuda_engine, "declines", lambda *_: None)
    monkeypatch.setattr(engines.cuda_engine, "prefers_chunks", lambda _: False)
    monkeypatch.setattr(engine, "prefers_chunks", lambda _: False)
    monkeypatch.setattr(engines, "capability", lambda _: capability)
    monkeypatch.setattr(engines.cuda_kernels, "on_hopper", lambda _: hopper)
    x = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(77, d))
    names = engines._preferred(SimpleNamespace(x=x, shape=(77, n)))  # type: ignore[arg-type]
    first = ["triton", "cuda"] if faster else ["cuda", "triton"]
    assert names == ["cpu", *first, "chunked", "blockwise", "dense"]


@pytest.mark.parametrize("name", TRITON)
def test_who_is_declined(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = smooth(6, 3), torch.arange(6) // 2
    cases: list[tuple[str, Callable[[], Any]]] = [
        (
            "x is float64; the Triton kernels sum in float32",
            lambda: pairops.ms_loss(x.double(), labels),
        ),
        (
            "x has 4097 dimensions; the Triton kernels take 4096",
            lambda: pairops.ms_loss(smooth(6, 4097), labels),
        ),
        (
            "the value of the function unknown_to_triton uses aten.i0.default, which has no Triton",
            lambda: row_stats(Pairs.of(x, labels), total(NEG, function=UNKNOWN)),
        ),
    ]
    with pairops.engine(name):
        for reason, call in cases:
            with pytest.raises(
                ValueError, match=f"engine '{name}' cannot serve this call: {reason}"
            ):
                call()
        monkeypatch.setattr(engine, "MISSING", "triton is not installed")
        with pytest.raises(ValueError, match="triton is not installed"):
            pairops.ms_loss(x, labels)
