"""The smoke matrix of torch versions: what it was run on, and that it sees what is wrong."""

import re

import pytest
import torch

from pairops.ops.bindings import extension
from support import torch_versions
from support.on_cpu import device as device
from support.project import ROOT
from support.torch_versions import CHECKS, LOSSES

HEAD = ["torch", "Python", "Triton", *CHECKS]


def rows() -> list[list[str]]:
    """The table of docs/testing.md below its head."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "testing.md").read_text().splitlines()
    ]
    return [line for line in lines[lines.index(HEAD) + 2 :] if len(line) == len(HEAD)]


def test_the_oldest_torch_that_is_asked_for_is_the_oldest_that_passed() -> None:
    def release(torch: str) -> tuple[int, ...]:
        return tuple([int(part) for part in torch.partition("+")[0].split(".")])

    passed = [release(row[0]) for row in rows() if "FAILED" not in row]
    asked = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert asked is not None
    assert (*release(asked[1]), 0) == min(passed)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("part", ["value", "gradient"])
def test_a_wrong_loss_is_seen(name: str, part: str) -> None:
    torch_versions.hold(name, 24)

    def wrong(loss: torch_versions.Loss) -> torch_versions.Loss:
        def run(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            value, slip = loss(x, *others), 1e-4 * x.sum(1)
            return value + (slip.detach() if part == "value" else slip - slip.detach())

        return run

    with pytest.raises(AssertionError, match=f"{name}, result {int(part == 'gradient')}"):
        torch_versions.hold(name, 24, wrong)


def test_a_missing_extension_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "native", None)
    with pytest.raises(AssertionError):
        torch_versions.compiled_engine()


def test_a_check_that_fails_fails_the_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for found in ("right", "FAILED", "FAILED: 900 s", "declines: triton is 3.3.0"):
        monkeypatch.setattr(torch_versions, "in_separate_process", lambda _, found=found: found)
        assert torch_versions.main([]) == found.startswith("FAILED")
        assert f"| {found} |" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_a_check_passes_in_its_own_process() -> None:
    """One of them: what the others check has tests of its own."""
    assert torch_versions.in_separate_process("cpu") == "right"
