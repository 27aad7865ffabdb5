"""`python -m pairops`: says what is there, and fails when an engine is wrong."""

import contextlib
import json
import os
import re
import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pairops import __main__ as report
from pairops import losses
from pairops.ops import engines
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import extension
from pairops.ops.engines.blockwise import engine as blockwise_engine
from support.engine_names import TRITON
from support.exhaustive import exhaustive
from support.on_cpu import device as device
from support.project import ROOT

# Here Triton is interpreted, which a self-test of every loss need not wait for.
AS_A_USER = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def test_json_says_what_is_installed_and_who_serves() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pairops", "--json"],
        capture_output=True, text=True, check=True, env=AS_A_USER,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["versions"]["pairops"] == found["extension"]["version"]
    assert found["extension"]["available"]
    built = found["extension"]["cuda"]
    reason = "x is on cpu; the CUDA kernels are for CUDA devices"
    expected = dict.fromkeys(engines.ENGINES, "available")
    expected["cuda"] = reason if built else "this build of pairops has no CUDA kernels"
    if engines.triton_engine.MISSING is None:
        expected |= dict.fromkeys(TRITON, "x is on cpu; Triton here is for CUDA devices")
    assert found["engines"] == expected
    dtypes = ("float16", "bfloat16", "float32", "float64")
    no_gpu = "none: torch sees no CUDA device"
    assert found["a tensor on this device takes"] == {
        "cpu": dict.fromkeys(dtypes, "cpu"), "cuda": dict.fromkeys(dtypes, no_gpu),
    }  # fmt: skip
    assert set(found["self-test"]) == set(engines.ENGINES)
    # What docs/install.md shows of it.
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    for engine in ("cpu", "blockwise", "dense"):
        test = found["self-test"][engine]
        right = sum(isinstance(error, float) for error in test.values())
        assert re.search(rf"^  {engine} +{right} of {len(test)} losses, ", page, re.MULTILINE)


@exhaustive
def test_the_environment_chooses_the_engine_and_the_instruction_set() -> None:
    """And the self-test of every engine passes with the least one."""
    chosen = {"PAIROPS_ENGINE": "dense", "PAIROPS_ISA": "baseline"}
    done = subprocess.run(
        [sys.executable, "-m", "pairops"],
        capture_output=True, text=True, check=True, env=AS_A_USER | chosen,
    )  # fmt: skip
    assert "on cpu: dense (float16, bfloat16, float32, float64)\n" in done.stdout
    assert "environment: PAIROPS_ENGINE=dense, PAIROPS_ISA=baseline" in done.stdout


def test_the_reason_of_the_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU whose driver is older than the runtime in the extension."""
    module, old = mock.Mock(), "cudaErrorInsufficientDriver, CUDA driver version is insufficient"
    module.reason_against.return_value, module.kinds.return_value = old, []
    monkeypatch.setattr(cuda_kernels, "BACKEND", cuda_kernels.Backend.of(module))
    monkeypatch.setattr(cuda_kernels, "capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(engines, "ENGINES", {"cuda": engines.ENGINES["cuda"]})
    toolkit = extension.native.features()["cuda_toolkit"]  # type: ignore[union-attr]
    cuda_kernels._reason_against.cache_clear()
    with FakeTensorMode():
        found = report._engines()
    cuda_kernels._reason_against.cache_clear()
    what = (
        f"pairops is built by nvcc {toolkit}; it must be built by nvcc 12, or the driver be newer"
    )
    assert found == {"cuda": f"{old}: {what}"}


def test_a_wrong_engine_fails_the_self_test_and_the_others_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interpreted and emulated ones are asked here, for one loss."""
    monkeypatch.setattr(losses, "LOSSES", {"supcon_loss": losses.supcon_loss})
    forward = blockwise_engine.forward

    def off(*call: object) -> object:
        statistics, *rest = forward(*call)  # type: ignore[arg-type]
        return [s * 1.001 for s in statistics], *rest

    monkeypatch.setattr(blockwise_engine, "forward", off)
    assert report.main([]) == 1
    told = dict(re.findall(r"^  (\w+) +(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert set(told) == set(engines.ENGINES)
    assert [name for name, said in told.items() if "FAILED" in said] == ["blockwise"]
    assert re.fullmatch(r"FAILED 1 of 1 losses: supcon_loss \d\.\de-0\d", told["blockwise"])
    assert told["dense"].startswith("1 of 1 losses, at most ")


def test_a_person_reads_a_few_short_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However much there is to say: a loss that an engine declines, reasons of any length, and
    every variable."""
    for name in report._VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PAIROPS_ENGINE", "cpu")
    errors = dict.fromkeys(losses.LOSSES, 1e-07)
    monkeypatch.setattr(report, "_self_test", lambda: {
        "cpu": errors | {"sms_loss": "declined: for a reason"}, "cuda": errors,
        "blockwise": dict.fromkeys(errors, "FAILED 1.0e-01"),
    })  # fmt: skip
    reasons = {"cpu": "available", "cuda": "why " * 99, "blockwise": "available"}
    monkeypatch.setattr(report, "_engines", lambda: reasons)
    assert report.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 15
    assert max(len(line) for line in lines) == 100
    n = len(errors)
    assert f"  cpu        {n - 1} of {n} losses, at most 1e-07 (tal_loss); 1 declined" in lines
    assert f"  blockwise  FAILED {n} of {n} losses: tal_loss 1.0e-01," in "\n".join(lines)
    assert "  cuda       none: why why" in "\n".join(lines)


def test_importing_prints_nothing_and_loads_no_extra() -> None:
    code = (
        "import sys, pairops; print(sorted({'triton', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
