"""A list of pairs that has all of them: its positives are then a list, and all others negatives."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pairops.ops.terms.tensor_checks import check_integers

_WANTED = (
    "it must be None, or (anchors, positives, anchors, negatives) that have every pair of an "
    "anchor and a reference once, but for one reference of an anchor that is itself; a miner is "
    "given to convert(loss, miner)"
)


@dataclass(frozen=True, eq=False)
class EveryPair:
    """Pairs of N anchors and M references, each of which is a positive or a negative."""

    positives: tuple[Tensor, Tensor]  # (K,) anchors and references
    negatives: Tensor  # (L,) the anchors of negatives
    self_index: Tensor | None  # (N,) the reference that anchor i itself is, or −1; None: all are −1

    @staticmethod
    def of(indices_tuple: Any, n: int, m: int, device: torch.device) -> "EveryPair":
        """Check a list of pairs, in as many steps as it has entries.

        There a pair that is on neither side counts nowhere, here it would be a negative.

        Args:
            indices_tuple: what a loss of pytorch-metric-learning is called with.
            n: the number of anchors.
            m: the number of references.
            device: that of the embeddings.

        Raises:
            ValueError, TypeError: pairs are missing, or are there twice.
        """
        count = len(indices_tuple) if isinstance(indices_tuple, (tuple, list)) else 0
        if count != 4:
            what = f"{count} entries" if count else f"a {type(indices_tuple).__name__}"
            raise ValueError(f"indices_tuple is {what}; {_WANTED}")
        for z in indices_tuple:
            check_integers("indices_tuple", z, "(K,)")
            if z.dim() != 1:
                raise ValueError(f"indices_tuple has an entry {tuple(z.shape)}; {_WANTED}")
        a, p, b, q = (z.to(device, torch.int64) for z in indices_tuple)
        listed = len(a) + len(b)
        if len(a) != len(p) or len(b) != len(q) or not n * m - n <= listed <= n * m:
            raise ValueError(f"indices_tuple has {listed} pairs of {n} · {m}; {_WANTED}")
        rows, cols = torch.cat([a, b]), torch.cat([p, q])
        if bool(((rows < 0) | (rows >= n) | (cols < 0) | (cols >= m)).any()):
            raise ValueError(f"indices_tuple names rows that there are not; {_WANTED}")
        seen = torch.zeros(n * m, dtype=torch.bool, device=device)
        seen[rows * m + cols] = True
        row, col = (~seen).view(n, m).nonzero().unbind(1)
        if len(row) != n * m - listed:
            raise ValueError(f"indices_tuple has some pairs twice; {_WANTED}")
        if len(row.unique()) != len(row) or len(col.unique()) != len(col):
            raise ValueError(f"indices_tuple lacks several pairs of a row; {_WANTED}")
        self_index = None
        if len(row):
            self_index = torch.full((n,), -1, device=device)
            self_index[row] = col
        return EveryPair((a, p), b, self_index)

    def pairing(self, x: Tensor, ref_emb: Tensor) -> dict[str, Any]:
        """Return keywords of `Pairs.listed`, as losses take them."""
        n, m = len(x), len(ref_emb)
        given: dict[str, Any] = {"positives": self.positives}
        if self.self_index is None:
            return {**given, "ref_emb": ref_emb, "exclude_self": False}
        names = torch.arange(n, device=x.device)
        if ref_emb is x and torch.equal(self.self_index, names):
            return given
        known = self.self_index >= 0
        ref_ids = torch.arange(n, n + m, device=x.device)
        ref_ids[self.self_index[known]] = names[known]
        return {**given, "ref_emb": ref_emb, "ids": names, "ref_ids": ref_ids}

    def counts(self, n: int) -> tuple[Tensor, Tensor]:
        """Count positives and negatives (N,) of every anchor."""
        positives, negatives = (
            torch.bincount(rows, minlength=n) for rows in (self.positives[0], self.negatives)
        )
        return positives, negatives
