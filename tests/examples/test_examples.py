"""The examples: the measures of retrieval are right, and a short training draws its picture."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support.exhaustive import exhaustive
from support.project import EXAMPLES


@pytest.fixture
def retrieval(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES / "digits")
    return importlib.import_module("retrieval")


@pytest.fixture
def train_digits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES / "digits")
    return importlib.import_module("train_digits")


def on_circle(*degrees: float) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def map_at_r_by_loops(embedding: torch.Tensor, labels: torch.Tensor) -> float:
    averages = []
    for query, label in enumerate(labels):
        cosine = torch.nn.functional.cosine_similarity(embedding, embedding[query : query + 1])
        others = [row for row in cosine.argsort(descending=True).tolist() if row != query]
        relevant = sum(bool(labels[row] == label) for row in others)
        if relevant == 0:
            continue
        found, total = 0, 0.0
        for rank, row in enumerate(others[:relevant], start=1):
            if labels[row] == label:
                found += 1
                total += found / rank
        averages.append(total / relevant)
    return sum(averages) / len(averages)


def test_retrieval_by_hand(retrieval: ModuleType) -> None:
    # On the circle, from 0 on: A A B A B. The nearest rows of each, and its share of MAP@R:
    #   A   0: A10 B30 | ...     (1 + 0) / 2
    #   A  10: A0  B30 | ...     (1 + 0) / 2
    #   B  30: A10     | ...      0 / 1
    #   A  70: B30 A10 | ...     (0 + 1/2) / 2
    #   B 140: A70     | ...      0 / 1
    embedding = on_circle(0, 10, 30, 70, 140)
    labels = torch.tensor([7, 7, -1, 7, -1])
    assert retrieval.map_at_r(embedding, labels) == pytest.approx((0.5 + 0.5 + 0.25) / 5)
    assert retrieval.recall_at_1(embedding, labels) == pytest.approx(2 / 5)


def test_map_at_r_equals_its_loops(retrieval: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (60,), generator=generator)
    labels[0] = 99  # alone in its class
    embedding = torch.randn(60, 5, generator=generator) + 2 * torch.eye(100)[labels, :5]
    expected = map_at_r_by_loops(embedding.double(), labels)
    assert retrieval.map_at_r(embedding, labels) == pytest.approx(expected, rel=1e-12)


def test_length_does_not_count(retrieval: ModuleType) -> None:
    embedding, labels = on_circle(0, 1, 90, 91), torch.tensor([0, 0, 1, 1])
    lengths = torch.tensor([[1e-3], [50.0], [2.0], [1e3]])
    assert retrieval.map_at_r(embedding * lengths, labels) == 1
    assert retrieval.recall_at_1(embedding * lengths, labels) == 1


def test_partner_is_another_image_of_the_digit(train_digits: ModuleType) -> None:
    digits = torch.tensor([3, 1, 3, 0, 1, 3, 0])
    anchors = torch.arange(7).repeat(50)
    partner = train_digits.partners(digits, anchors)
    assert torch.equal(digits[partner], digits[anchors])
    assert (partner != anchors).all()
    assert set(partner[anchors == 0].tolist()) == {2, 5}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ms", pytest.param("siglip", marks=exhaustive)])
def test_training_prints_a_table_and_draws(
    train_digits: ModuleType,
    loss: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train_digits, "MEMORY_ROWS", 512)
    output = tmp_path / "new" / "digits.png"
    train_digits.main(["--loss", loss, "--seconds", "2", "--output", str(output)])
    printed = capsys.readouterr().out
    for line in ("raw pixels", "after training", "one training step", "its peak at 512 rows"):
        assert line in printed
    assert output.read_bytes().startswith(b"\x89PNG")


def test_a_batch_beyond_the_training_half_is_refused(
    train_digits: ModuleType, refusal: Callable[[ModuleType, list[str]], str]
) -> None:
    said = refusal(train_digits, ["--batch", "901"])
    assert "--batch must be from 2 to 900, not 901" in said
