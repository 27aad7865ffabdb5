"""A loss that pairops does not have, in a dozen lines: contrastive loss with squared hinges.

ℓ_i = Σ_p (1 − s_ip)² + Σ_n [s_in − m]₊²

python examples/own_loss/own_loss.py   compares it with the same loss written over the whole matrix
"""

import torch

import pairops
from pairops import NEG, POS, Function, total
from pairops.ops.engines import ENGINES

pull = Function(lambda s: (1 - s) ** 2, name="pull")
push = Function(lambda s, margin: torch.relu(s - margin) ** 2, name="push")


def squared_contrastive(x, labels, margin=0.5):
    return pairops.pair_loss(
        x,
        labels,
        total(POS, function=pull),
        total(NEG, margin, function=push),
        combine=torch.add,
    )


def naive(x, labels, margin=0.5):
    unit = torch.nn.functional.normalize(x)
    s = unit @ unit.T
    positive = labels[:, None] == labels
    others = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    losses = torch.where(positive, (1 - s) ** 2, torch.relu(s - margin) ** 2)
    return (losses * others).sum(1).mean()


def main():
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(512, 64, device=device, requires_grad=True)
    labels = torch.arange(512, device=device) // 4
    for name in ENGINES:
        try:
            with pairops.engine(name):
                ours = squared_contrastive(x, labels)
        except ValueError as error:
            print(f"{name:<10} {error}")
            continue
        (gradient,) = torch.autograd.grad(ours, x)
        theirs = naive(x, labels)
        (expected,) = torch.autograd.grad(theirs, x)
        error = float((gradient - expected).norm() / expected.norm())
        print(
            f"{name:<10} {ours.item():.6f}, by hand {theirs.item():.6f}; "
            f"gradients differ by {error:.1e}"
        )


if __name__ == "__main__":
    main()
