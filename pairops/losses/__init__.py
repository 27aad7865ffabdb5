"""The losses, each as its paper writes it: statistics from `row_stats`, the rest in plain torch."""

from .contrastive import contrastive_loss
from .multi_similarity import ms_loss
from .softmax import info_nce_loss, siglip_loss, supcon_loss
from .triplet import triplet_loss

__all__ = [
    "contrastive_loss",
    "info_nce_loss",
    "ms_loss",
    "siglip_loss",
    "supcon_loss",
    "triplet_loss",
]
