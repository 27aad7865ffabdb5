"""The example of unseen digits: its sets, its images, and what a short run prints and draws."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support.exhaustive import exhaustive
from support.project import EXAMPLES


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES / "digits")
    return importlib.import_module("train_unseen_digits")


def test_no_digit_is_in_both_sets(unseen: ModuleType) -> None:
    training, test = unseen.images_of(range(5)), unseen.images_of(range(5, 10))
    assert training.digits.unique().tolist() == [0, 1, 2, 3, 4]
    assert test.digits.unique().tolist() == [5, 6, 7, 8, 9]
    assert len(training.images) + len(test.images) == 1797


def test_symmetries_are_classes_of_their_own(unseen: ModuleType) -> None:
    half = unseen.images_of(range(5))
    turned = unseen.turned(half)
    assert turned.digits.unique().tolist() == [
        10 * k + digit for k in range(8) for digit in range(5)
    ]
    of_first = turned.images.view(8, -1, 64)[:, 0]
    assert len(of_first.unique(dim=0)) == 8  # no symmetry twice
    assert torch.equal(of_first[0], half.images[0])
    torch.testing.assert_close(of_first.sum(1), half.images[0].sum().expand(8))


def test_a_warp_changes_an_image_a_little(unseen: ModuleType) -> None:
    """It is nearer to its image than other images are."""
    images = unseen.images_of(range(5)).images
    similarity = torch.nn.functional.normalize(unseen.warped(images)) @ (
        torch.nn.functional.normalize(images).T
    )
    assert similarity.diagonal().mean() > 0.75
    assert similarity.diagonal().mean() > similarity.mean() + 0.1
    assert similarity.diagonal().max() < 1 - 1e-4


@exhaustive
def test_it_prints_a_table_and_draws(
    unseen: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(unseen, "STEPS", 20)
    output = tmp_path / "new" / "unseen.png"
    unseen.main(["--losses", "ms", "siglip", "--seeds", "2", "--output", str(output)])
    rows = {
        line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line
    }
    assert rows["raw"] == ["pixels", "0.606", "0.991"]
    for loss in ("ms", "siglip"):
        precision, _, recall, _, more, *_ = rows[loss]
        assert 0.2 < float(precision) < float(more) < 1  # more classes keep more of what is unseen
        assert float(recall) > 0.85
    assert output.read_bytes().startswith(b"\x89PNG")


def test_no_seeds_are_refused(
    unseen: ModuleType, refusal: Callable[[ModuleType, list[str]], str]
) -> None:
    assert "--seeds must be 1 or more, not 0" in refusal(unseen, ["--seeds", "0"])
