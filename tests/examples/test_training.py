"""Training on real images: the rival's loss curve step by step, and bfloat16 beside float32."""

import importlib
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import Tensor

import pairops
from support.exhaustive import exhaustive
from support.project import EXAMPLES


@pytest.fixture
def train_digits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES / "digits")
    return importlib.import_module("train_digits")


def curve(train_digits: ModuleType, loss: Callable[[Tensor, Tensor], Tensor], steps: int) -> Tensor:
    """Loss by step of a float64 training, the same batches every time."""
    torch.manual_seed(0)
    half, _ = train_digits.load_halves(0)
    half.images = half.images.double()
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)
    ).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    source = train_digits.batches(half, 128, paired=False)
    values = []
    for _ in range(steps):
        images, labels = next(source)
        optimizer.zero_grad()
        value = loss(network(images), labels)
        value.backward()
        optimizer.step()
        values.append(value.detach())
    return torch.stack(values)


@pytest.mark.usefixtures("wide_engine")
def test_200_steps_overlay_the_rival_s_curve(train_digits: ModuleType) -> None:
    """ms_loss without mining and pytorch-metric-learning, float64: 1e-9 at every step."""
    ours = curve(train_digits, lambda x, y: pairops.ms_loss(x, y, epsilon=None), 200)
    theirs = curve(train_digits, MultiSimilarityLoss(2, 50, 0.5), 200)
    assert theirs[-1] < 0.7 * theirs[0]
    assert float((ours - theirs).abs().max()) <= 1e-9


@pytest.mark.parametrize("mined", [True, False])
@pytest.mark.parametrize("references", [True, False])
@pytest.mark.usefixtures("small_tiles", "wide_engine")
def test_value_and_gradient_equal_the_rival_s(mined: bool, references: bool) -> None:
    """1e-12 in float64; anchors without positives and a second set of references among them."""
    x = torch.randn(90, 16, dtype=torch.float64, requires_grad=True)
    y = torch.randn(70, 16, dtype=torch.float64, requires_grad=True)
    labels, ref_labels = torch.randint(0, 40, (90,)), torch.randint(0, 40, (70,))
    loss, miner = MultiSimilarityLoss(2, 50, 0.5), MultiSimilarityMiner(0.1)
    both = {"ref_emb": y, "ref_labels": ref_labels} if references else {}
    pairs = miner(x, labels, *both.values()) if mined else None
    theirs = loss(x, labels, pairs, *both.values())
    ours = pairops.ms_loss(x, labels, epsilon=0.1 if mined else None, **both)
    assert abs(float((ours - theirs).detach())) <= 1e-12
    leaves = [x, y] if references else [x]
    for a, b in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        assert float((a - b).abs().max()) <= 1e-12


@pytest.mark.slow
@exhaustive
def test_bfloat16_ends_where_float32_does(train_digits: ModuleType) -> None:
    scores = []
    for dtype in ("float32", "bfloat16"):
        options = train_digits.parse(["--steps", "400", "--seconds", "120", "--dtype", dtype])
        training, test = train_digits.load_halves(0)
        run = train_digits.fit(training, test, options)
        scores.append(train_digits.map_at_r(run.after, test.digits))
    assert scores[0] >= 0.9
    assert abs(scores[0] - scores[1]) <= 0.01
