"""The memory of one step: by how much forward and backward raise the peak of a fresh process."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

# How memory is measured, and code that other modules here read, is in the examples beside this one.
sys.path += [str(Path(__file__).parents[1] / name) for name in ("digits", "code_search")]

from memory import peak_mib
from torch.nn.functional import cross_entropy, normalize

import pairops

WARM = 8  # pairs of a step that goes first, so that code which loads late is not counted
KINDS = ("plain step", "cached step", "torch loss", "pairops loss")


def encoder_step(cached: bool, bf16: bool) -> Callable[[int], None]:
    """A step of the fine-tuning over N pairs, with the graph of all of them or of CHUNK."""
    import fine_tuning
    from encoder import MOST_TOKENS, Encoder, Side, Texts

    encoder = Encoder(bf16).train()

    def texts(rows: int, width: int) -> Texts:
        places = torch.arange(MOST_TOKENS).expand(rows, MOST_TOKENS)
        mask = (places < width).long()
        return Texts(torch.randint(1000, 20000, mask.shape) * mask, mask)

    def step(rows: int) -> None:
        docstrings, codes = texts(rows, MOST_TOKENS // 3), texts(rows, MOST_TOKENS)
        batch = Side(docstrings, codes, torch.arange(rows))
        fine_tuning.step(encoder, batch, fine_tuning.CHUNK if cached else rows)

    return step


def loss_step(dense: bool) -> Callable[[int], None]:
    """InfoNCE of N pairs in both directions: as torch has it, with the matrix, or without."""

    def step(rows: int) -> None:
        x, y = torch.randn(2, rows, 384, requires_grad=True)
        if dense:
            similarity = normalize(x) @ normalize(y).T / 0.05
            own = torch.arange(rows)
            loss = (cross_entropy(similarity, own) + cross_entropy(similarity.T, own)) / 2
        else:
            loss = pairops.info_nce_loss(x, y, temperature=0.05)
        loss.backward()

    return step


def growth_here(kind: str, rows: int, bf16: bool) -> float:
    encoding = kind.endswith("step")
    step = (
        encoder_step(kind == "cached step", bf16) if encoding else loss_step(kind == "torch loss")
    )
    step(WARM)
    before = peak_mib()
    step(rows)
    return peak_mib() - before


def growth(kind: str, rows: int, bf16: bool) -> float:
    """Peak resident MiB that one step or loss adds, in a process of its own."""
    command = [sys.executable, __file__, kind, str(rows), *(["--bf16"] if bf16 else [])]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(answer.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("rows", type=int)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    print(growth_here(options.kind, options.rows, options.bf16))


if __name__ == "__main__":
    main()
