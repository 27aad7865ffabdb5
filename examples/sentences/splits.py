"""Pairs of docstring and code from installed files, for training, for choice and for the test."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from docstrings import Pair, read, split, without_doubles

READ_SHARE = 0.45  # of the files: as many pairs as are asked for, in half a minute
MOST_CHOSEN_BY, MOST_TESTED = 1000, 2000


@dataclass
class Splits:
    """No file has pairs in two of these; each is in random order, the same every time."""

    training: list[Pair]
    validation: list[Pair]  # what learning rates are chosen by
    test: list[Pair]


def shuffled(pairs: Sequence[Pair], most: int | None = None) -> list[Pair]:
    return random.Random(0).sample(pairs, len(pairs))[:most]


def splits_of(folders: Sequence[Path]) -> Splits:
    training, others = split(without_doubles(read(folders, READ_SHARE)))
    groups = sorted({pair.group for pair in others})
    chosen_by = set(random.Random(0).sample(groups, len(groups) // 3))
    return Splits(
        shuffled(training),
        shuffled([pair for pair in others if pair.group in chosen_by], MOST_CHOSEN_BY),
        shuffled([pair for pair in others if pair.group not in chosen_by], MOST_TESTED),
    )
