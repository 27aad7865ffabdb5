"""The pair weights of four losses on the same batch, as a picture."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import pairops

# Raw pixels are all alike; so losses see how they differ from the mean digit.
LOSSES = {
    "contrastive_loss": lambda x, y: pairops.contrastive_loss(x, y, neg_margin=0.3),
    "triplet_loss, hard": lambda x, y: pairops.triplet_loss(x, y, margin=0.2),
    "supcon_loss": lambda x, y: pairops.supcon_loss(x, y, temperature=0.2),
    "ms_loss": lambda x, y: pairops.ms_loss(x, y, beta=10.0),
}


def batch(classes: int, each: int) -> tuple[Tensor, Tensor]:
    """`each` digits of every class, sorted."""
    data = load_digits()
    x, labels = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    rows = torch.cat([(labels == c).nonzero()[:each, 0] for c in range(classes)])
    return (x - x.mean(0))[rows], labels[rows]


def draw(x: Tensor, labels: Tensor, each: int) -> plt.Figure:
    unit = torch.nn.functional.normalize(x)
    s = unit @ unit.T
    same = labels[:, None] == labels
    figure, axes = plt.subplots(2, len(LOSSES), figsize=(15, 7.2), layout="constrained")
    for (name, loss), top, bottom in zip(LOSSES.items(), *axes, strict=True):
        w = pairops.pair_weights(loss, x, labels)
        most = float(w.abs().max())
        image = top.imshow(w, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        figure.colorbar(image, ax=top, shrink=0.8)
        top.set_title(name)
        ticks = range(each // 2, len(x), each)
        top.set_xticks(ticks, labels[::each].tolist())
        top.set_yticks(ticks, labels[::each].tolist())
        apart = ~torch.eye(len(x), dtype=torch.bool)
        for chosen, color, label in (
            (~same, "tab:red", "negative"),
            (same & apart, "tab:blue", "positive"),
        ):
            bottom.scatter(s[chosen], w[chosen], s=6, color=color, alpha=0.5, label=label)
        bottom.axhline(0, color="gray", linewidth=0.5)
        bottom.set_xlabel("similarity s_ij")
    axes[0, 0].set_ylabel("anchor, by digit")
    axes[1, 0].set_ylabel("weight w_ij = ∂L/∂s_ij")
    axes[1, 0].legend(loc="center left", bbox_to_anchor=(0.0, 0.75))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/pair_weights.png"))
    args = parser.parse_args()
    each = 8
    x, labels = batch(10, each)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(x, labels, each).savefig(args.output, dpi=100)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
