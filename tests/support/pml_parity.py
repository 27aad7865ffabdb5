"""A loss of pytorch-metric-learning and what pairops.compat.pml makes of it, compared."""

from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor

from pairops.compat import pml
from support.named_cases import smooth

DOUBLE = torch.float64
CLASSES = [name for name in pml.__all__ if name != "convert"]
PROXIES = {"num_classes": 6, "embedding_size": 8}
ALONE = ["NPairsLoss", "ProxyAnchorLoss", "ProxyNCALoss"]
AT_MOST_ONE_PAIR_IS_NONE = [
    name for name in CLASSES if issubclass(getattr(losses, name), losses.GenericPairLoss)
]


def build(name: str, **given: Any) -> Any:
    torch.manual_seed(3)
    return getattr(losses, name)(**given, **(PROXIES if name.startswith("Proxy") else {})).double()


def batch(n: int = 24) -> tuple[Tensor, Tensor]:
    x, labels = 0.7 * smooth(n, 8, DOUBLE), torch.randint(0, 5, (n,))
    labels[0] = 5  # alone
    return x.requires_grad_(), labels


def result(loss: Any, *given: Any) -> list[Tensor]:
    """The loss and its gradients by embeddings and parameters."""
    value = loss(*given)
    assert value.requires_grad
    leaves = [z for z in (*given, *loss.parameters()) if torch.is_tensor(z) and z.requires_grad]
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    found = [torch.zeros_like(z) if g is None else g for g, z in zip(found, leaves, strict=True)]
    return [value.detach().reshape(()), *found]


def same(loss: Any, x: Tensor, labels: Tensor, *refs: Any, miner: Any = None) -> None:
    """Ours and theirs agree. refs: embeddings and labels."""
    tuples = None if miner is None else miner(x, labels, *refs)
    expected = result(loss, x, labels, tuples, *refs)
    found = result(pml.convert(loss, miner), x, labels, None, *refs)
    # Their softplus is the identity above 20, and so 2e-9 off.
    rtol = 1e-7 if isinstance(loss, losses.CircleLoss) else 1e-10
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol / 100)
