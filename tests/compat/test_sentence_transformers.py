"""pairops.compat.sentence_transformers without the package: chunks, processes, errors."""

import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pairops
from pairops.compat.sentence_transformers import LabelledLoss, PairedLoss
from support.exhaustive import exhaustive
from support.gloo_ranks import Ranks
from support.on_cpu import device as device

# Its processes and those of other tests would wait for one another.
pytestmark = pytest.mark.xdist_group("ranks")

LABELS = torch.tensor([3, 1, 3, 1, 2, 2, 3, 7, 7, 1, 2, 3])


class Counted(nn.Module):
    """An encoder that knows what of its activations is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 8)
        self.rows: list[int] = []
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most = 0

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        hidden = self.table(features["input_ids"]).mean(1).exp()
        self.rows.append(len(hidden))
        self.alive.add(hidden)
        self.most = max(self.most, len(self.alive))
        features["sentence_embedding"] = hidden.sin()
        return features


def tokens(rows: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(40, (rows, 5)), "prompt_length": 3}


def test_the_activations_of_one_chunk_are_held() -> None:
    for size, rows, most in ((None, 2 * [12], 2), (5, 4 * [5, 5, 2], 1)):
        model = Counted()
        loss = PairedLoss(model, pairops.info_nce_loss, mini_batch_size=size)
        loss([tokens(12), tokens(12)]).backward()
        assert sorted(model.rows) == sorted(rows)
        assert model.most == most
        with torch.no_grad():
            loss([tokens(12), tokens(12)])


def step(_group: Any, given: tuple[Any, ...]) -> list[Tensor]:
    """The value of a loss and its gradients: of one rank, whose model is wrapped, or of a process
    that has no others."""
    kind, function, learned, size, features, *labels = given
    torch.manual_seed(0)
    model: nn.Module = Counted().double()
    if torch.distributed.is_initialized():
        model = DistributedDataParallel(model)
    number = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    loss = kind(model, function, **{learned: number}, group="auto", mini_batch_size=size)
    value = loss(features, *labels)
    value.backward()
    return [value.detach(), *(p.grad for p in loss.parameters() if p.grad is not None)]


@exhaustive
def test_processes_share_a_batch() -> None:
    columns, rows = [tokens(12), tokens(12), tokens(12)], (slice(9), slice(9, 12))
    apart = [[{"input_ids": each["input_ids"][part]} for each in columns] for part in rows]
    started = Ranks(2)
    try:
        for size in (None, 4):
            paired = PairedLoss, pairops.info_nce_loss, "temperature", size
            labelled = LabelledLoss, pairops.ms_loss, "base", size
            shares = [(*labelled, own[:1], LABELS[r]) for own, r in zip(apart, rows, strict=True)]
            for whole, given in (
                ((*paired, columns), [(*paired, own) for own in apart]),
                ((*labelled, columns[:1], LABELS), shares),
            ):
                expected = step(None, whole)
                assert len(expected) == 3
                for found in started.run(2, f"{__name__}:step", given):
                    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    finally:
        started.stop()


def test_what_is_learned_may_be_frozen() -> None:
    frozen = nn.Parameter(torch.tensor(0.1), requires_grad=False)
    loss = PairedLoss(Counted(), pairops.info_nce_loss, temperature=frozen)
    loss([tokens(3), tokens(3)]).backward()
    assert frozen.grad is None


def test_errors() -> None:
    for wrong in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match=f"mini_batch_size is {wrong}; it must be an int of"):
            PairedLoss(Counted(), pairops.info_nce_loss, mini_batch_size=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sentence_features has 1 columns; it must have at least"):
        PairedLoss(Counted(), pairops.info_nce_loss)([tokens(3)])
    labelled = LabelledLoss(Counted(), pairops.ms_loss)
    with pytest.raises(ValueError, match="sentence_features has 2 columns; it must have 1"):
        labelled([tokens(3), tokens(3)], LABELS[:3])
    with pytest.raises((TypeError, ValueError), match="labels"):
        labelled([tokens(3)], None)  # type: ignore[arg-type]
    flat = {"input_ids": torch.arange(7), "offsets": torch.tensor([0, 3, 5])}
    chunked = PairedLoss(Counted(), pairops.info_nce_loss, mini_batch_size=2)
    with pytest.raises(ValueError, match="with 7 input_ids, 3 offsets; every one of them must"):
        chunked([flat, flat])


def test_it_needs_nothing_of_the_package() -> None:
    told = "import sys, pairops.compat.sentence_transformers as ours; assert ours.PairedLoss\n"
    told += "assert 'sentence_transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", told], check=True)
