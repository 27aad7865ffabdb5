"""The losses of pairops behind one face, objective(embedding, labels)."""

import torch
from torch import Tensor

import pairops

LABELLED = {
    "ms": pairops.ms_loss,
    "contrastive": pairops.contrastive_loss,
    "supcon": pairops.supcon_loss,
    "triplet": pairops.triplet_loss,
}
PAIRED = ("info_nce", "siglip")
NAMES = (*LABELLED, *PAIRED)


class Objective(torch.nn.Module):
    """A loss by its name, with what it learns itself (siglip's scale and bias).

    A labelled loss takes an embedding (N, D) and labels (N,). A paired one compares two sets, row i
    of one with row i of the other: it takes them on top of each other, (2N, D), and no labels.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        if name == "siglip":  # the start values of the paper (Zhai et al., 2023)
            self.log_scale = torch.nn.Parameter(torch.tensor(10.0).log())
            self.bias = torch.nn.Parameter(torch.tensor(-10.0))

    @property
    def paired(self) -> bool:
        return self.name in PAIRED

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        if not self.paired:
            return LABELLED[self.name](embedding, labels)
        x, y = embedding.chunk(2)
        if self.name == "info_nce":
            return pairops.info_nce_loss(x, y)
        return pairops.siglip_loss(x, y, scale=self.log_scale.exp(), bias=self.bias)
