"""Recall and reciprocal rank with their standard errors, and the table of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 2  # standard errors of a difference, below which it is none

Ranks = Sequence[Tensor]  # (N,) for each seed: the rank of every query's right answer

MEASURES = {
    "recall@1": lambda ranks: (ranks <= 1).double(),
    "recall@10": lambda ranks: (ranks <= 10).double(),
    "MRR": lambda ranks: 1 / ranks.double(),
}


@dataclass
class Mean:
    """A mean over queries and its standard error, which is that of another choice of queries."""

    value: float
    error: float

    @staticmethod
    def of(each: Tensor) -> "Mean":
        return Mean(each.mean().item(), (each.std() / len(each) ** 0.5).item())


def of_seeds(ranks: Ranks, measure: str) -> Tensor:
    """(N,): what the measure says of each query, the mean of all seeds."""
    return torch.stack([MEASURES[measure](one) for one in ranks]).mean(dim=0)


def mean(ranks: Ranks, measure: str) -> Mean:
    return Mean.of(of_seeds(ranks, measure))


def difference(of: Ranks, to: Ranks, measure: str) -> Mean:
    """Query by query, so that what is hard for both does not count."""
    return Mean.of(of_seeds(of, measure) - of_seeds(to, measure))


def table(found: dict[str, Ranks], compared: Sequence[tuple[str, str]]) -> str:
    """A line for each way of search, then one for each two that are compared."""
    lines = [f"{'':<32}" + "".join(f"{name:>18}" for name in MEASURES) + f"{'seeds':>7}"]
    for name, ranks in found.items():
        means = [mean(ranks, measure) for measure in MEASURES]
        cells = "".join(f"{f'{m.value:.3f} ± {m.error:.3f}':>18}" for m in means)
        lines.append(f"{name:<32}{cells}{len(ranks):>7}")
    lines.append("")
    for of, to in compared:
        cells, told = "", ""
        for measure in MEASURES:
            m = difference(found[of], found[to], measure)
            cells += f"{f'{m.value:+.3f} ± {m.error:.3f}':>18}"
            if measure == "MRR":
                told = "a tie" if abs(m.value) < TIE * m.error else ""
        lines += [f"{of} against {to}", f"{'':<32}{cells}  {told}".rstrip()]
    return "\n".join(lines)
