"""Learned parameters of pairops.nn under `fully_shard`, and states that were saved before."""

from typing import Any

import pytest
import torch

from pairops import nn
from support.gloo_ranks import Ranks
from support.named_cases import smooth
from support.on_cpu import device as device

LEARNED: list[Any] = [
    ("InfoNCELoss", {"learn": ["temperature"]}, False),
    ("SigLIPLoss", {"learn": ["scale", "bias"]}, False),
    ("MarginPairLoss", {"learn": ["beta"]}, True),
    ("MarginPairLoss", {"learn": ["beta"], "beta": torch.tensor(0.9)}, True),
]


def _args(labelled: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return smooth(12, 5), torch.arange(12) // 3 if labelled else smooth(12, 5)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(("module", "keywords", "labelled"), LEARNED)
def test_a_sharded_step_is_the_plain_step(
    module: str, keywords: dict[str, Any], labelled: bool, ranks: Ranks
) -> None:
    args = _args(labelled)
    given = {"module": module, "keywords": keywords, "args": args}
    plain = getattr(nn, module)(**keywords)
    plain(*args).backward()
    expected = [own.detach() - 0.1 * own.grad for own in plain.parameters()]
    assert any(bool(own.grad.any()) for own in plain.parameters())
    for found in ranks.run(2, "support.rank_functions:fully_sharded", [given] * 2):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("module", "keywords", "labelled"), LEARNED)
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_without_dimensions_is_loaded(
    module: str, keywords: dict[str, Any], labelled: bool, assign: bool
) -> None:
    loss, args = getattr(nn, module)(**keywords), _args(labelled)
    old = {name: own.reshape(()) + 0.25 for name, own in loss.state_dict().items()}
    outer = torch.nn.ModuleDict({"loss": loss})
    outer.load_state_dict({f"loss.{name}": own for name, own in old.items()}, assign=assign)
    for name, own in loss.state_dict().items():
        assert own.shape == (1,)
        assert torch.equal(own[0], old[name])
    assert loss(*args).shape == ()
