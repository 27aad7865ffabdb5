"""The Lightning example: it learns in one process, and in two that share every batch."""

import importlib
import re
import subprocess
import sys

import pytest

from support.exhaustive import exhaustive
from support.project import EXAMPLES

ASKED = ["--epochs", "4"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ranks"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
]


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("lightning")


def check(printed: str, each: str) -> None:
    """It is said once, by one process, that images are embedded better than before."""
    assert printed.count("images a step") == 1
    assert each in printed
    assert "loss after 28 steps" in printed
    found = re.search(r"MAP@R on 897 other images (\S+), after training (\S+)", printed)
    assert found is not None
    before, after = map(float, found.groups())
    assert after > before + 0.2


def test_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "lightning")
    importlib.import_module("train_lightning").main(["--processes", "1", *ASKED])
    check(capsys.readouterr().out, "1 x 128 images a step")


@exhaustive
def test_two_processes() -> None:
    call = [sys.executable, EXAMPLES / "lightning/train_lightning.py", "--processes", "2", *ASKED]
    done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=300)
    check(done.stdout, "2 x 64 images a step")


def test_a_batch_that_is_no_batch_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "lightning")
    with pytest.raises(SystemExit):
        importlib.import_module("train_lightning").main(["--batch", "3"])
    assert "--batch must be from 4 to 900, not 3" in capsys.readouterr().err
