"""pairops: pair-based losses that never hold the matrix of pairs."""

from importlib.metadata import PackageNotFoundError, version

from . import losses
from . import nn as nn
from . import retrieval as retrieval
from .arguments import partner, table
from .block import pair_weights
from .cached import cached_step
from .engines import use
from .estimate import estimate_memory
from .functions import Function
from .losses import *  # noqa: F403
from .losses.objective import Aux
from .losses.pair import pair_loss
from .memory import CrossBatchMemory
from .mining import mine
from .pairs import Pairs
from .stats import row_stats
from .terms import ALL, NEG, POS, Term, highest, lowest, lse, total

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
