"""`python -m pairops`: says what is there, and fails when an engine is wrong."""

import json
import subprocess
import sys

import pytest

from pairops import __main__ as report
from pairops import engines
from pairops.engines import blockwise


def test_json_says_what_is_installed_and_who_serves() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pairops", "--json"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["versions"]["pairops"] == found["extension"]["version"]
    assert found["extension"]["available"]
    built = found["extension"]["cuda"]
    reason = "x is on cpu; the CUDA kernels are for CUDA devices"
    expected = dict.fromkeys(engines.ENGINES, "available")
    expected["cuda"] = reason if built else "this build of pairops has no CUDA kernels"
    assert found["engines"] == expected
    assert found["a tensor on this device takes"]["cpu"] == "native"
    assert set(found["self-test"]) == set(engines.ENGINES)


def test_the_environment_chooses_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIROPS_ENGINE", "dense")
    done = subprocess.run(
        [sys.executable, "-m", "pairops"], capture_output=True, text=True, check=True
    )
    assert "cpu                  dense" in done.stdout
    assert "PAIROPS_ENGINE       dense" in done.stdout


def test_a_wrong_engine_fails_the_self_test(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gather = blockwise.gather

    def off(*call: object) -> object:
        statistics, *rest = gather(*call)  # type: ignore[arg-type]
        return [s * 1.001 for s in statistics], *rest

    monkeypatch.setattr(blockwise, "gather", off)
    assert report.main([]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_importing_prints_nothing_and_loads_no_extra() -> None:
    code = (
        "import sys, pairops; print(sorted({'triton', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
