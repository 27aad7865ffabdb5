"""`python -m bench path`: a count of calls is the same every time, and says what it counted."""

import pytest
import torch

import pairops
from bench.__main__ import main
from bench.cpu.call_path import LOSSES, cells, entered, path_of


def test_a_step_is_counted_alike_every_time() -> None:
    for loss in LOSSES:
        path = path_of(loss)
        assert path == path_of(loss)
        assert any(file.startswith("losses/") for file in path)
        _, files, calls, changes = cells(loss, path)
        assert 5 < files < changes < calls < 5000


def test_what_counts() -> None:
    """A loss that refuses its arguments: ranks' agreement, then its own file; no other package."""
    x = torch.randn(4, 2)

    def refused() -> None:
        try:
            pairops.ms_loss(x, x)
        except (TypeError, ValueError):
            x.sum()

    path = entered(refused)
    assert path[0] == "ops/distributed/agreement.py"
    assert path[1].startswith("losses/")
    assert all(file.endswith(".py") for file in path)
    assert cells("none", ["a", "a", "b", "a"]) == ("none", 2, 4, 2)
    assert cells("none", []) == ("none", 0, 0, 0)


def test_it_prints_a_row_for_each_loss_and_the_files(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["path", "--loss", "ms", "supcon", "--files"])
    printed = capsys.readouterr().out
    for words in ("loss  files  calls  file changes", "\n    ms", "\nsupcon", "supcon: calls into"):
        assert words in printed
