"""A head on embeddings that are computed once, in batches of up to thousands of pairs."""

from dataclasses import dataclass

import torch
from encoder import WIDTH
from fine_tuning import MARGIN, TEMPERATURE
from torch import Tensor
from torch.nn.functional import gelu
from tqdm import tqdm

import pairops
from pairops.retrieval import first_ranks

# Of each batch, passes over the pairs: more than 6 of them helped the largest alone, by MRR on the
# validation pairs.
PASSES = {32: 6, 256: 6, 1024: 6, 8192: 16}


@dataclass
class Embedded:
    """N docstrings and their codes as the encoder embeds them, and the functions' names, hashed."""

    docstrings: Tensor  # (N, WIDTH)
    codes: Tensor
    names: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.names)


class Head(torch.nn.Module):
    """x + W₂ gelu(W₁ x), with W₂ = 0 at first: it begins with what the encoder says."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(WIDTH, WIDTH)
        self.second = torch.nn.Linear(WIDTH, WIDTH)
        torch.nn.init.zeros_(self.second.weight)
        torch.nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(gelu(self.first(x)))


def train_heads(
    training: Embedded,
    size: int,
    rate: float,
    seed: int,
    ids: bool = True,
    margin: float | None = MARGIN,
) -> tuple[Head, Head]:
    """Some passes over the pairs, a head for either side; the rate rises, then falls to 0."""
    torch.manual_seed(seed)
    heads = Head(), Head()
    parameters = [*heads[0].parameters(), *heads[1].parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, fused=True)
    steps = PASSES[size] * (len(training) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1, anneal_strategy="linear"
    )
    with tqdm(
        total=steps, desc=f"head, batch {size:,}, rate {rate:g}", unit="step", leave=False
    ) as bar:
        for _ in range(PASSES[size]):
            for rows in torch.randperm(len(training)).split(size):
                if len(rows) < size:
                    continue
                loss = pairops.info_nce_loss(
                    heads[0](training.docstrings[rows]),
                    heads[1](training.codes[rows]),
                    temperature=TEMPERATURE,
                    ids=training.names[rows] if ids else None,
                    false_negatives=margin,
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return heads


@torch.no_grad()
def ranks_behind(heads: tuple[Head, Head], side: Embedded) -> Tensor:
    """(N,): the rank of each docstring's own code among all of the side."""
    own = torch.arange(len(side))
    x, y = heads[0](side.docstrings), heads[1](side.codes)
    return first_ranks(x, own, ref_emb=y, ref_labels=own)
