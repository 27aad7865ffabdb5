"""The fine-tuning of an encoder on pairs, in batches that may be larger than its graph could be."""

import statistics
import time
from dataclasses import dataclass
from functools import partial

import torch
from encoder import Encoder, Side
from torch import Tensor
from tqdm import tqdm

import pairops
from pairops.retrieval import first_ranks

TEMPERATURE = 0.05
# Functions of one name often do the same, and so does what is much nearer than the right answer.
MARGIN = 0.1
BATCHES = (32, 1024)
CHUNK = 32  # pairs whose graph is held at a time
WEIGHT_DECAY = 0.01


@dataclass
class Tuned:
    """What a training left behind."""

    encoder: Encoder
    curve: list[float]
    step_seconds: float


def loss_of(x: Tensor, y: Tensor, names: Tensor) -> Tensor:
    return pairops.info_nce_loss(x, y, temperature=TEMPERATURE, ids=names, false_negatives=MARGIN)


def step(encoder: Encoder, batch: Side, chunk_size: int) -> Tensor:
    """The loss of the batch, after its backward pass, with the graph of `chunk_size` pairs.

    The pairs are in order of code length, so that a chunk has little padding.
    """
    batch = batch[batch.codes.lengths().argsort()]
    docstrings = (batch.docstrings.tokens, batch.docstrings.mask)
    codes = (batch.codes.tokens, batch.codes.mask)
    loss = partial(loss_of, names=batch.names)
    if len(batch) > chunk_size:
        return pairops.cached_step(
            loss, (encoder, docstrings), (encoder, codes), chunk_size=chunk_size, progress=False
        )
    value = loss(encoder(*docstrings), encoder(*codes))
    value.backward()
    return value.detach()


def fine_tune(training: Side, pairs: int, size: int, rate: float, seed: int, bf16: bool) -> Tuned:
    """One pass over `pairs` of the pairs, batches of `size`, with a learning rate that falls to 0.

    The seed draws pairs, their order and dropout: batches of different sizes see the same pairs.
    """
    torch.manual_seed(seed)
    rows = torch.randperm(len(training))[:pairs]
    encoder = Encoder(bf16).train()
    optimizer = torch.optim.AdamW(
        encoder.parameters(), lr=rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    batches = rows.split(size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / len(batches), len(batches) - 1)
    curve, seconds = [], []
    with tqdm(total=pairs, desc=f"batch {size:,}, rate {rate:g}", unit="pair") as bar:
        for rows in batches:
            begin = time.perf_counter()
            optimizer.zero_grad()
            curve.append(step(encoder, training[rows], CHUNK).item())
            optimizer.step()
            schedule.step()
            seconds.append(time.perf_counter() - begin)
            bar.update(len(rows))
            bar.set_postfix(loss=f"{curve[-1]:.3f}", refresh=False)
    return Tuned(encoder, curve, statistics.median(seconds))


def ranks_of(encoder: Encoder, side: Side) -> Tensor:
    """(N,): the rank of each docstring's own code among all of the side."""
    own = torch.arange(len(side))
    docstrings, codes = encoder.embed(side.docstrings), encoder.embed(side.codes)
    return first_ranks(docstrings, own, ref_emb=codes, ref_labels=own)
