"""The two towers of the code search, and the batches that they learn from."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from docstrings import Pair
from hashed_text import BUCKETS, Bags, counted, rarity, weighted
from torch import Tensor

WIDTH = 256
THINNED = 0.5


@dataclass
class Side:
    """N docstrings and their N codes, as bags of hashed words."""

    docstrings: Bags
    codes: Bags
    names: Tensor  # (N,) of the functions, hashed


class Towers(torch.nn.Module):
    """Docstrings and code to WIDTH numbers each: the weighted sum of what their words stand for.

    What a word stands for is the same on both sides: a word that no training pair holds still finds
    itself. How much it says is learned for each side apart: `return` says much in a docstring.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.EmbeddingBag(BUCKETS, WIDTH, mode="sum", include_last_offset=True)
        torch.nn.init.normal_(self.words.weight, std=WIDTH**-0.5)
        self.docstring_gain = torch.nn.Parameter(torch.zeros(BUCKETS))
        self.code_gain = torch.nn.Parameter(torch.zeros(BUCKETS))

    def embed(self, bags: Bags, gain: Tensor) -> Tensor:
        # Not gain[bags.entries]: of that, torch adds the gradients in any order.
        weights = bags.weights * gain.index_select(0, bags.entries).exp()
        return self.words(bags.entries, bags.ends, per_sample_weights=weights)

    def forward(self, side: Side) -> tuple[Tensor, Tensor]:
        docstrings = self.embed(side.docstrings, self.docstring_gain)
        return docstrings, self.embed(side.codes, self.code_gain)


def bags_of(training: Sequence[Pair], test: Sequence[Pair]) -> tuple[Side, Side]:
    """Hashed and weighted; how rare a word is, the training pairs say."""
    sides = [
        Side(
            counted([pair.docstring for pair in half]),
            counted([pair.code for pair in half]),
            torch.tensor([zlib.crc32(pair.name.encode()) for pair in half]),
        )
        for half in (training, test)
    ]
    rare = rarity(sides[0].docstrings, sides[0].codes)
    first, second = (
        Side(weighted(s.docstrings, rare), weighted(s.codes, rare), s.names) for s in sides
    )
    return first, second


def batches(side: Side, size: int) -> Iterator[Side]:
    """Random batches without end, no pair twice before all the others.

    Of every bag a random half is left out, or millions of numbers learn some ten thousand pairs by
    heart: no pair can then be known by one rare word.
    """
    while True:
        for rows in torch.randperm(len(side.codes)).split(size):
            if len(rows) == size:
                halves = (b.chosen(rows).thinned(THINNED) for b in (side.docstrings, side.codes))
                yield Side(*halves, side.names[rows])
