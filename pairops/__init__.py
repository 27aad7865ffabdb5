"""pairops: pair-based losses that never hold the matrix of pairs."""

from importlib.metadata import PackageNotFoundError, version

from .engines import use
from .functions import Function
from .losses import (
    contrastive_loss,
    info_nce_loss,
    ms_loss,
    siglip_loss,
    supcon_loss,
    triplet_loss,
)
from .losses.pair import pair_loss
from .memory import CrossBatchMemory
from .pairs import Pairs
from .stats import row_stats
from .terms import ALL, NEG, POS, Term, highest, lowest, lse, partner, total

try:
    __version__ = version("pairops")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "ALL",
    "NEG",
    "POS",
    "CrossBatchMemory",
    "Function",
    "Pairs",
    "Term",
    "contrastive_loss",
    "highest",
    "info_nce_loss",
    "lowest",
    "lse",
    "ms_loss",
    "pair_loss",
    "partner",
    "row_stats",
    "siglip_loss",
    "supcon_loss",
    "total",
    "triplet_loss",
    "use",
]
