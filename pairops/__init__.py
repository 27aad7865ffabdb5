"""pairops: pair-based losses that never hold the matrix of pairs."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from . import losses as losses
from . import nn as nn
from . import retrieval as retrieval
from .inspection.explain import explain as explain
from .inspection.memory_estimate import estimate_memory as estimate_memory
from .inspection.mining import mine as mine
from .inspection.pair_weights import pair_weights as pair_weights
from .losses import *  # noqa: F403
from .losses.custom import pair_loss as pair_loss
from .losses.objective.objective import Aux as Aux
from .ops.engines import engine as engine
from .ops.engines import set_engine as set_engine
from .ops.pairs.pairs import Pairs as Pairs
from .ops.row_stats.op import row_stats as row_stats
from .ops.terms import functions as functions
from .ops.terms.arguments import partner as partner
from .ops.terms.arguments import table as table
from .ops.terms.functions import Function as Function
from .ops.terms.term import ALL as ALL
from .ops.terms.term import NEG as NEG
from .ops.terms.term import POS as POS
from .ops.terms.term import Earlier as Earlier
from .ops.terms.term import Term as Term
from .ops.terms.term import highest as highest
from .ops.terms.term import lowest as lowest
from .ops.terms.term import lse as lse
from .ops.terms.term import total as total
from .training.cached_step import cached_step as cached_step
from .training.cross_batch_memory import CrossBatchMemory as CrossBatchMemory

try:
    __version__ = version("pairops")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"

if not TYPE_CHECKING:  # a type checker follows the imports, and would take this for all
    __all__ = [
        *losses.__all__,
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
        "engine",
        "estimate_memory",
        "explain",
        "functions",
        "highest",
        "lowest",
        "lse",
        "mine",
        "pair_loss",
        "pair_weights",
        "partner",
        "row_stats",
        "set_engine",
        "table",
        "total",
    ]
