"""pairops: pair-based losses that never hold the matrix of pairs."""

from importlib.metadata import PackageNotFoundError, version

from . import losses
from . import nn as nn
from . import retrieval as retrieval
from .inspection.memory_estimate import estimate_memory
from .inspection.mining import mine
from .inspection.pair_weights import pair_weights
from .losses import *  # noqa: F403
from .losses.custom import pair_loss
from .losses.objective.objective import Aux
from .ops.engines import use
from .ops.pairs.pairs import Pairs
from .ops.row_stats.op import row_stats
from .ops.terms.arguments import partner, table
from .ops.terms.functions import Function
from .ops.terms.term import ALL, NEG, POS, Earlier, Term, highest, lowest, lse, total
from .training.cached_step import cached_step
from .training.cross_batch_memory import CrossBatchMemory

try:
    __version__ = version("pairops")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "ALL",
    "NEG",
    "POS",
    "Aux",
    "CrossBatchMemory",
    "Earlier",
    "Function",
    "Pairs",
    "Term",
    "cached_step",
    "estimate_memory",
    "highest",
    "lowest",
    "lse",
    "mine",
    "pair_loss",
    "pair_weights",
    "partner",
    "row_stats",
    "table",
    "total",
    "use",
]
__all__ += losses.__all__
