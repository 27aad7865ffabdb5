"""Orders in which closeness is summed: they mean nothing, and change the last bits of a result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


def _plain(x: Tensor, y: Tensor) -> Tensor:  # (N, D), (M, D)
    return x @ y.T


class Order(NamedTuple):
    """How one closeness, the norms in it and its gradients are summed."""

    reversed: tuple[int, ...] = ()  # dimensions of the embeddings that are run through backwards
    pieces: int = 1  # into which the rows, the columns and the features of a product are cut
    inverse_norms: bool = False  # a row is multiplied by 1 / |x|, where it is else divided by |x|

    def turned(self, x: Tensor) -> Tensor:  # (N, D)
        return x.flip(self.reversed) if self.reversed else x

    def turned_back(self, t: Tensor) -> Tensor:  # (N, M)
        return t.flip(0, 1) if 0 in self.reversed else t

    def product(
        self, x: Tensor, y: Tensor, multiply: Callable[[Tensor, Tensor], Tensor] = _plain
    ) -> Tensor:
        """Return x @ y.T. Rows are cut too, since the gradients are sums over rows."""
        if self.pieces == 1:
            return multiply(x, y)
        blocks = []
        for rows in x.tensor_split(self.pieces):
            features = rows.tensor_split(self.pieces, 1)
            block = []
            for columns in y.tensor_split(self.pieces):
                parts = zip(features, columns.tensor_split(self.pieces, 1), strict=True)
                block.append(torch.stack([multiply(a, b) for a, b in parts]).sum(0))
            blocks.append(torch.cat(block, 1))
        return torch.cat(blocks)


ORDERS = {
    "as stored": Order(),
    "rows reversed": Order(reversed=(0,)),
    "features reversed": Order(reversed=(1,)),
    "product in two": Order(pieces=2),
    "product in four": Order(pieces=4),
    "norms inverted": Order(inverse_norms=True),
    "norms inverted, features reversed": Order(reversed=(1,), inverse_norms=True),
}

_in_use = ORDERS["as stored"]


def in_use() -> Order:
    return _in_use


@contextmanager
def summed_in(order: Order) -> Iterator[None]:
    """Let every closeness within this context be summed in this order."""
    global _in_use
    before, _in_use = _in_use, order
    try:
        yield
    finally:
        _in_use = before
