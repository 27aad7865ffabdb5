"""The short scripts, one for each way to train: they learn, and ranks have one process's curve."""

import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.exhaustive import exhaustive
from support.gloo_ranks import WORLD, Ranks
from support.project import EXAMPLES

NAMES = ("accelerate", "ddp", "fsdp2", "lightning", "open_clip", "sentence_transformers")
ON_RANKS = pytest.mark.xdist_group("ranks")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def path(name: str) -> Path:
    return EXAMPLES / name / f"train_{name}.py"


def run(name: str) -> dict[str, Any]:
    """What a script has defined when it ends; in this process, with the library it is about."""
    if name in ("accelerate", "lightning", "sentence_transformers"):
        pytest.importorskip(name)
    return runpy.run_path(str(path(name)), run_name="__main__")


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["script"])
    monkeypatch.chdir(tmp_path)  # sentence-transformers writes a folder


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_marks_the_line_that_is_pairops(name: str) -> None:
    lines = path(name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    (marked,) = [line for line in lines if "  # pairops" in line]
    assert "pairops" in marked.partition("#")[0]


def test_ddp() -> None:
    found = run("ddp")
    assert found["after"] > found["before"] + 0.3


def test_open_clip() -> None:
    found = run("open_clip")
    assert found["found"] > 0.4
    assert found["scale"] > 1.1 / 0.07  # where it began


@exhaustive
def test_accelerate() -> None:
    found = run("accelerate")
    importlib.import_module("accelerate.state").AcceleratorState._reset_state(True)
    assert found["after"] > found["before"] + 0.3


@exhaustive
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")
def test_lightning() -> None:
    found = run("lightning")
    assert found["after"] > found["before"] + 0.3


@exhaustive
@pytest.mark.xdist_group("sentence_transformers")
@pytest.mark.filterwarnings("ignore:.*pin_memory.* but no accelerator is found")
def test_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # or it looks for a model card
    found = run("sentence_transformers")
    assert found["after"] > found["before"] + 0.2


@exhaustive
@ON_RANKS
@pytest.mark.parametrize("name", ["accelerate", "ddp", "fsdp2", "open_clip"])
def test_ranks_have_the_curve_of_one_process(name: str, ranks: Ranks) -> None:
    """A network under `fully_shard` has that of DistributedDataParallel."""
    alone = run("ddp" if name == "fsdp2" else name)
    value = "value" if name == "open_clip" else "loss"
    given = {"path": str(path(name)), "wanted": [value]}
    found = ranks.run(WORLD, "support.rank_functions:script", [given] * WORLD, wait=120)
    assert [each[value] for each in found] == pytest.approx([alone[value].item()] * WORLD, rel=5e-3)


@exhaustive
@ON_RANKS
def test_torchrun_starts_two_processes() -> None:
    printed = output([*TORCHRUN, path("ddp")])
    found = re.search(r"^2 x 120 images a step; last loss (\S+)$", printed, re.MULTILINE)
    assert found is not None, printed
    assert float(found[1]) == pytest.approx(run("ddp")["loss"].item(), rel=1e-3)


@exhaustive
@ON_RANKS
def test_lightning_starts_two_processes() -> None:
    pytest.importorskip("lightning")
    printed = output([path("lightning"), "2"])
    assert printed.count("MAP@R on 897 other images") == 1
    assert "2 x 120 images a step" in printed


def output(arguments: list[Any]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
