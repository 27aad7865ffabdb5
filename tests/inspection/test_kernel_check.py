"""`python -m pairops --check`: bad kernels are named, whatever they do to their process."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pairops import __main__ as command
from pairops.inspection import kernel_check, kernel_problems
from pairops.inspection.kernel_problems import Kernel, kernels, tried
from pairops.ops.engines import cuda_engine, first_use, passed
from support import bad_kernels
from support.exhaustive import exhaustive
from support.on_cpu import device as device
from support.project import ROOT


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pairops" / "passed.json"


IDENTITY = {"gpu": "a GPU", "capability": "9.0", "driver": "580.1", "torch": "2", "build": "1"}

# A process that says what it is told: the first kernel that it tries, and engines to leave out.
SCRIPT = """
import json, os, sys, time
first, *left_out = sys.argv[1:]
every = [["cuda", "a"], ["cuda", "b"], ["triton", "c"], ["cuda", "d"], ["triton", "e"]]
print("a line of somebody else")
print(json.dumps({"identity": IDENTITY, "kernels": every}), flush=True)
for k in range(int(first), 5):
    if every[k][0] in left_out:
        continue
    print(json.dumps({"at": k, "outcome": None, "detail": None}), flush=True)
    DO
    print(json.dumps({"at": k, "outcome": outcome, "detail": "so it is"}), flush=True)
""".replace("IDENTITY", repr(IDENTITY))


def checked(do: str, limit: float = 20.0) -> tuple[dict[str, str], dict[str, Any]]:
    """The outcomes by key, and all that `check` returns."""
    script = SCRIPT.replace("DO", do)
    found = kernel_check.check([sys.executable, "-S", "-c", script], limit)
    return {row["key"]: row["outcome"] for row in found["kernels"]}, found


def test_all_pass_and_are_remembered(cache: Path) -> None:
    outcomes, found = checked("outcome = 'passed'")
    assert outcomes == dict.fromkeys("abcde", "passed")
    assert found["passed"] is True
    assert (found["device"], found["driver"]) == ("a GPU", "580.1")
    assert json.loads(cache.read_text()) == [{**IDENTITY, "passed": ["cuda", "triton"]}]


def test_a_wrong_kernel(cache: Path) -> None:
    """Its engine is not remembered."""
    outcomes, found = checked("outcome = 'wrong' if k == 1 else 'passed'")
    assert outcomes == {**dict.fromkeys("acde", "passed"), "b": "wrong"}
    assert found["passed"] is False
    assert json.loads(cache.read_text())[0]["passed"] == ["triton"]


def test_a_kernel_that_traps() -> None:
    """Another process goes on after it."""
    outcomes, found = checked("k == 1 and os.abort(); outcome = 'passed'")
    assert outcomes == {**dict.fromkeys("acde", "passed"), "b": "trapped"}
    assert found["kernels"][1]["detail"] == "the process ended by signal 6"
    assert found["passed"] is False


def test_a_kernel_that_ends_with_an_error() -> None:
    outcomes, found = checked("assert k != 4, 'illegal address'; outcome = 'passed'")
    assert outcomes["e"] == "trapped"
    expected = "the process ended with exit status 1: AssertionError: illegal address"
    assert found["kernels"][4]["detail"] == expected


def test_a_kernel_that_hangs() -> None:
    """The rest of its engine is not tried, and the others are."""
    outcomes, found = checked("k == 1 and time.sleep(60); outcome = 'passed'", limit=2.0)
    assert outcomes == {"a": "passed", "b": "hung", "c": "passed", "d": "declined", "e": "passed"}
    assert found["kernels"][3]["detail"] == "not tried, since another hung: b"
    assert found["passed"] is False


def test_a_process_that_does_not_start(cache: Path) -> None:
    found = kernel_check.check([sys.executable, "-c", "raise SystemExit('no torch')"])
    assert found["passed"] is False
    (row,) = found["kernels"]
    assert row["outcome"] == "trapped"
    assert row["detail"].endswith("no torch")
    assert not cache.exists()


def test_nothing_to_check_is_no_fault_and_is_not_remembered(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes, found = checked("outcome = 'declined'")
    assert set(outcomes.values()) == {"declined"}
    assert found["passed"] is False
    assert not cache.exists()
    monkeypatch.setattr(kernel_check, "check", lambda: found)
    assert kernel_check.report(as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_the_report_for_people_names_what_is_bad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = checked("outcome = 'wrong' if k == 1 else 'passed'")
    monkeypatch.setattr(kernel_check, "check", lambda: found)
    assert kernel_check.report(as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "device: a GPU, driver: 580.1"
    assert any(line.split() == ["cuda", "passed", "2"] for line in lines)
    assert any(line.split()[:3] == ["cuda", "wrong", "1"] for line in lines)
    assert "  cuda wrong: b" in lines


@exhaustive
def test_bad_kernels_in_real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    found = kernel_check.check([sys.executable, "-m", "support.bad_kernels"], limit=5.0)
    outcomes = [row["outcome"] for row in found["kernels"]]
    assert outcomes == ["passed", "wrong", "trapped", "hung", "declined", "declined"]
    assert "is allowed" in found["kernels"][1]["detail"]


def test_the_command_prints_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = checked("outcome = 'wrong' if k == 1 else 'passed'")
    monkeypatch.setattr(kernel_check, "check", lambda: found)
    assert command.main(["--check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == found


KINDS = sorted({kernel.recipe for kernel in kernels() if kernel.engine == "cuda"})
SMALL = Kernel("cuda", "lse:pos:affine(op) lse:neg:affine(op)>", torch.bfloat16, 40, 17, 48)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("m", [0, 17])
def test_right_kernels_pass(m: int, dtype: torch.dtype) -> None:
    outcome, detail = tried(SMALL._replace(m=m, dtype=dtype), "cpu")
    assert outcome == "passed", detail


@exhaustive
@pytest.mark.parametrize("recipe", KINDS)
def test_right_kernels_of_every_kind(recipe: str) -> None:
    for m in (0, 17):
        outcome, detail = tried(SMALL._replace(recipe=recipe, m=m, d=20), "cpu")
        assert outcome == "passed", detail


@exhaustive
@pytest.mark.parametrize(
    ("engine", "recipe"),
    [("triton", kernel_problems._RECIPES[1]), ("chunked", kernel_problems._RECIPES[2])],
)
def test_right_kernels_of_engines_that_write_them(
    recipe: str,
    engine: str,
    small_triton_tiles: None,  # noqa: ARG001
) -> None:
    outcome, detail = tried(SMALL._replace(engine=engine, recipe=recipe, m=0), "cpu")
    assert outcome == "passed", detail


def changed(
    monkeypatch: pytest.MonkeyPatch, change: Any, backward: bool = False
) -> tuple[str, str]:
    """What is found of kernels whose results are changed, call by call."""
    name = "backward" if backward else "forward"
    sound: Any = getattr(cuda_engine, name)
    calls: list[int] = []

    def other(*call: Any) -> Any:
        calls.append(0)
        first, *rest = sound(*call)
        return change(first, len(calls)), *rest

    monkeypatch.setattr(cuda_engine, name, other)
    return tried(SMALL, "cpu")


def test_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, detail = changed(monkeypatch, lambda dx, _: dx * 1.05, backward=True)
    assert outcome == "wrong"
    assert "is allowed" in detail


def test_results_that_nobody_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, detail = changed(monkeypatch, lambda dx, _: torch.full_like(dx, torch.nan), True)
    assert outcome == "wrong"
    assert "error nan" in detail


def test_other_bits_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, detail = changed(monkeypatch, lambda z, k: [v * (1 + 2**-23 * (k == 2)) for v in z])
    assert outcome == "wrong"
    assert "other bits" in detail


def test_the_reason_of_an_engine_that_declines() -> None:
    assert tried(SMALL._replace(engine="cpu", recipe="sum:pos:identity"), "cpu")[0] == "declined"


def test_every_kind_is_tried_in_every_shape() -> None:
    every = [kernel for kernel in kernels() if kernel.engine == "cuda"]
    kinds = cuda_engine.cuda_kernels.installed().kinds
    assert len({kernel.recipe for kernel in every}) == len(kinds)
    assert len({kernel.key for kernel in every}) == len(every)
    dimensions = {(kernel.dtype, kernel.d) for kernel in every}
    assert len(dimensions) == 15
    assert any(min(kernel.n, kernel.m or kernel.n) > 1024 for kernel in every)  # one part


def test_the_process_tries_an_engine_whatever_was_found_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so it checks nothing at first use."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr(first_use, "ENABLED", True)
    monkeypatch.setattr(
        kernel_problems, "kernels", lambda: [SMALL, SMALL._replace(engine="triton")]
    )
    monkeypatch.setattr(kernel_problems, "tried", lambda *_: ("passed", str(first_use.ENABLED)))
    assert kernel_problems.main(["0", "triton"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("detail") for line in lines] == [None, None, "False"]


def test_bad_kernels_are_kernels() -> None:
    assert len(bad_kernels.kernels(*bad_kernels.RECIPES)) == 4


def test_what_is_known_of_a_gpu(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The package's entries are for a capability, the driver's first number and a build; the
    user's for all there is."""
    device, here = torch.device("cpu"), dict(IDENTITY)
    monkeypatch.setattr(passed, "identity", lambda _: here)
    monkeypatch.setattr(passed, "SHIPPED", tmp_path / "shipped.json")
    assert passed.of(device) == frozenset()
    passed.remember(here, ["triton"])
    passed.remember({**here, "gpu": "another"}, ["cuda"])
    assert passed.of(device) == {"triton"}
    assert [entry["gpu"] for entry in json.loads(cache.read_text())] == ["a GPU", "another"]
    passed.remember(here, ["chunked"])
    assert passed.of(device) == {"chunked"}
    for name, other, counts in (
        ("gpu", "a like one", True), ("torch", "3", True), ("driver", "580.99", True),
        ("driver", "590.1", False), ("capability", "8.0", False), ("build", "2", False),
        ("driver", "", False),
    ):  # fmt: skip
        entry = {**IDENTITY, name: other, "passed": ["cuda"]}
        passed.SHIPPED.write_text(json.dumps([entry]))
        assert ("cuda" in passed.of(device)) is counts, (name, other)
    for name in IDENTITY:
        passed.SHIPPED.unlink(missing_ok=True)
        here[name] += "!"
        assert passed.of(device) == frozenset(), name
        here[name] = IDENTITY[name]


def test_a_file_is_written_whole_or_not_at_all(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed.remember(IDENTITY, ["cuda"])
    before = cache.read_text()

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space"):
            passed.remember(IDENTITY, ["triton"])
    assert cache.read_text() == before
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    cache.write_text("not JSON")
    passed.remember(IDENTITY, ["triton"])
    assert json.loads(cache.read_text())[0]["passed"] == ["triton"]
