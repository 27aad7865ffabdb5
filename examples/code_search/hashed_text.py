"""Texts and code as bags of hashed words and parts of words, weighted by TF-IDF."""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from tqdm import tqdm

BUCKETS = 2**16
# What snake_case and CamelCase are made of: getHTTPResponse2 -> get HTTP Response 2.
PIECE = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


@cache
def buckets(piece: str) -> tuple[int, ...]:
    """Of a piece of an identifier, and of its letters by threes: `plots` has most of `plot`'s."""
    framed = f"<{piece}>"
    parts = [piece, *(framed[i : i + 3] for i in range(len(framed) - 2))]
    return tuple(zlib.crc32(part.encode()) % BUCKETS for part in parts)


@dataclass
class Bags:
    """N bags on end: bag i is entries ends[i] to ends[i + 1], a bucket and a weight each."""

    entries: Tensor  # (E,)
    weights: Tensor  # (E,)
    ends: Tensor  # (N + 1,)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def owners(self) -> Tensor:
        """(E,): the bag of each entry."""
        return torch.arange(len(self)).repeat_interleave(self.ends.diff())

    def chosen(self, rows: Tensor) -> "Bags":
        """These bags, in this order."""
        begins, lengths = self.ends[rows], self.ends.diff()[rows]
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        shifts = (begins - ends[:-1]).repeat_interleave(lengths)
        places = torch.arange(len(shifts)) + shifts
        return Bags(self.entries[places], self.weights[places], ends)

    def thinned(self, share: float) -> "Bags":
        """Without a share of the entries, drawn at random."""
        kept = torch.rand(len(self.entries)) >= share
        before = torch.cat([self.ends.new_zeros(1), kept.cumsum(0)])
        return Bags(self.entries[kept], self.weights[kept], before[self.ends])

    def matrix(self) -> csr_array:
        """(N, BUCKETS)"""
        parts = (self.weights.numpy(), self.entries.numpy(), self.ends.numpy())
        return csr_array(parts, shape=(len(self), BUCKETS))


def counted(texts: Sequence[str]) -> Bags:
    """How often each bucket is met in each text."""
    entries: list[int] = []
    counts: list[int] = []
    ends = [0]
    for text in tqdm(texts, desc="hashing", unit="text", leave=False):
        met: Counter[int] = Counter()
        for piece, times in Counter(PIECE.findall(text)).items():
            for bucket in buckets(piece.lower()):
                met[bucket] += times
        entries.extend(met.keys())
        counts.extend(met.values())
        ends.append(len(entries))
    weights = torch.from_numpy(np.array(counts, dtype=np.float32))
    return Bags(torch.tensor(entries), weights, torch.tensor(ends))


def rarity(*sides: Bags) -> Tensor:
    """(BUCKETS,): log of one by the share of bags that have a bucket."""
    texts = sum(len(bags) for bags in sides)
    met = torch.cat([bags.entries for bags in sides]).bincount(minlength=BUCKETS)
    return torch.log((texts + 1) / (met + 1))


def weighted(bags: Bags, rare: Tensor) -> Bags:
    """TF-IDF: (1 + log count) · rarity, every bag of length 1."""
    weights = (1 + bags.weights.log()) * rare[bags.entries]
    squares = torch.zeros(len(bags)).index_add(0, bags.owners(), weights**2)
    lengths = squares.sqrt().clamp(min=1e-12)
    return Bags(bags.entries, weights / lengths[bags.owners()], bags.ends)
