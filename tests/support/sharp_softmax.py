"""Softmax losses beside float32 cross_entropy, by temperature and by how far a batch is solved.

PYTHONPATH=tests python -m support.sharp_softmax

prints the table of docs/numerics.md.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import pairops

N, D = 64, 32
TEMPERATURES = (0.2, 0.07, 0.02, 0.01, 0.005)
NOISE = {"fresh": 3.0, "half-trained": 0.3, "nearly solved": 0.03}

Loss = Callable[[Tensor, Tensor, float, str], Tensor]
TWINS = torch.arange(N).repeat(2)  # one positive for every row of both sets


def against(y: Tensor) -> dict[str, Any]:
    return {"ref_emb": y, "ref_labels": torch.arange(len(y)), "exclude_self": False}


# Each with one positive for every anchor, y_i for x_i.
OURS: dict[str, Loss] = {
    "info_nce": lambda x, y, t, d: pairops.info_nce_loss(x, y, temperature=t, distance=d),
    "one-way": lambda x, y, t, d: pairops.info_nce_loss(
        x, y, temperature=t, symmetric=False, distance=d
    ),
    "supcon": lambda x, y, t, d: pairops.supcon_loss(
        x, torch.arange(len(x)), temperature=t, distance=d, **against(y)
    ),
    "nt_xent": lambda x, y, t, d: pairops.nt_xent_loss(
        x, torch.arange(len(x)), temperature=t, distance=d, **against(y)
    ),
    "nca": lambda x, y, t, d: pairops.nca_loss(
        x, torch.arange(len(x)), scale=1 / t, distance=d, **against(y)
    ),
    "proxy_nca": lambda x, y, t, d: pairops.proxy_nca_loss(
        x, torch.arange(len(x)), y, scale=1 / t, distance=d
    ),
    "multi_positive": lambda x, y, t, d: pairops.multi_positive_loss(
        x, y[:, None], temperature=t, distance=d
    ),
    "n_pair": lambda x, y, t, d: pairops.n_pair_loss(
        torch.cat([x, y]) if d == "dot" else F.normalize(torch.cat([x, y])) / t**0.5,
        TWINS,
        distance="dot",
    ),
}


def plain(name: str, x: Tensor, y: Tensor, temperature: float, distance: str) -> Tensor:
    """By cross_entropy, in the dtype of x."""
    if distance == "cosine":
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    logits, own = x @ y.T / temperature, torch.arange(len(x))
    there = F.cross_entropy(logits, own)
    return (there + F.cross_entropy(logits.T, own)) / 2 if name == "info_nce" else there


def measured(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Any, Any]:
    leaves = [z.detach().clone().requires_grad_() for z in (x, y)]
    value = run(*leaves)
    return value.detach().double(), torch.cat(torch.autograd.grad(value, leaves)).double()


def views(noise: float) -> tuple[Tensor, Tensor]:
    """Two views of N items, every second of them like the one before."""
    y = torch.randn(N, D)
    y[1::2] = y[::2] + 0.6 * torch.randn(N // 2, D)
    y = F.normalize(y, dim=1)
    return F.normalize(y + noise * torch.randn(N, D) / D**0.5, dim=1), y


def errors(name: str, noise: float, temperature: float) -> list[tuple[float, float]]:
    """(ours, cross_entropy's), of the value and of the gradient, relative to the truth's norm."""
    x, y = views(noise)

    def by_hand(a: Tensor, b: Tensor) -> Tensor:
        return plain(name, a, b, temperature, "cosine")

    truth = measured(by_hand, x.double(), y.double())
    ours = measured(lambda a, b: OURS[name](a, b, temperature, "cosine"), x, y)
    theirs = measured(by_hand, x, y)
    return [
        tuple(float((z - right).norm() / right.norm()) for z in (mine, by_torch))
        for right, mine, by_torch in zip(truth, ours, theirs, strict=True)
    ]  # type: ignore[misc]


def main() -> None:
    print("| loss | batch | τ | value: ours | cross_entropy | gradient: ours | cross_entropy |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name in ("info_nce", "supcon", "nt_xent"):
        for batch, noise in NOISE.items():
            for temperature in TEMPERATURES:
                torch.manual_seed(0)
                value, gradient = errors(name, noise, temperature)
                numbers = " | ".join([f"{z:.1e}" for z in (*value, *gradient)])
                print(f"| {name} | {batch} | {temperature} | {numbers} |")


if __name__ == "__main__":
    main()
