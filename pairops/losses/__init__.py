"""The losses, each as its paper writes it: statistics from `row_stats`, the rest in plain torch."""

from .alignment import sms_loss, tal_loss
from .circle import circle_loss
from .contrastive import binomial_deviance_loss, contrastive_loss, margin_loss
from .info_nce import (
    anchor_info_nce_loss,
    decoupled_contrastive_loss,
    info_nce_loss,
    multi_positive_loss,
    quality_weighted_info_nce_loss,
)
from .lifted_structure import lifted_structure_loss
from .multi_similarity import mlcd_loss, ms_loss
from .proxy import proxy_anchor_loss, proxy_nca_loss
from .siglip import siglip_loss
from .softmax import decoupled_softmax_loss, n_pair_loss, nca_loss, nt_xent_loss, supcon_loss
from .triplet import triplet_loss

__all__ = [
    "anchor_info_nce_loss",
    "binomial_deviance_loss",
    "circle_loss",
    "contrastive_loss",
    "decoupled_contrastive_loss",
    "decoupled_softmax_loss",
    "info_nce_loss",
    "lifted_structure_loss",
    "margin_loss",
    "mlcd_loss",
    "ms_loss",
    "multi_positive_loss",
    "n_pair_loss",
    "nca_loss",
    "nt_xent_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "quality_weighted_info_nce_loss",
    "siglip_loss",
    "sms_loss",
    "supcon_loss",
    "tal_loss",
    "triplet_loss",
]
