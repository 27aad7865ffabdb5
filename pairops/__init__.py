"""pairops: pair-based losses that never hold the matrix of pairs."""

import difflib as _difflib
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
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
from .nn.classes import ELSEWHERE as _ELSEWHERE
from .ops.engines import engine as engine
from .ops.engines import set_engine as set_engine
from .ops.pairs.pairs import Pairs as Pairs
from .ops.row_stats.op import row_stats as row_stats
from .ops.row_stats.positive_rows import PositiveRows as PositiveRows
from .ops.terms import functions as functions
from .ops.terms.arguments import between as between
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
    __version__ = _version("pairops")
except _PackageNotFoundError:  # imported from a source tree that was never installed
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
        "PositiveRows",
        "Term",
        "between",
        "cached_step",
        "engine",
        "estimate_memory",
        "explain",
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

# Losses of pytorch-metric-learning that are not here under any name.
_NOT_SERVED = (
    "AngularLoss", "CentroidTripletLoss", "DynamicSoftMarginLoss",
    "HistogramLoss", "InstanceLoss", "IntraPairVarianceLoss", "LargeMarginSoftmaxLoss",
    "ManifoldLoss", "MultipleLosses", "NormalizedSoftmaxLoss", "P2SGradLoss", "PNPLoss",
    "RankedListLoss", "SoftTripleLoss", "SphereFaceLoss", "SubCenterArcFaceLoss",
    "ThresholdConsistentMarginLoss", "TupletMarginLoss", "VICRegLoss",
)  # fmt: skip
# Recipes, and packages that are not imported with this one.
_INSTEAD = {
    "anchor_info_nce_loss": "pairops.info_nce_loss(x, anchor.detach(), symmetric=False)",
    "quality_weighted_info_nce_loss": "pairops.info_nce_loss(x, y, symmetric=False, "
    "weight=len(x) * torch.softmax(gamma * quality, 0))",
    "GenericPairLoss": "pairops.pair_loss(x, labels, *terms, combine=...)",
    "SelfSupervisedLoss": "pairops.info_nce_loss(x, y), or pairops.nt_xent_loss of both views and "
    "their labels",
    "ArcFaceLoss": "pairops.nn.ArcFaceProxyLoss(num_classes, embedding_size)",
    "CosFaceLoss": "pairops.arcface_loss(x, labels, proxies, margin=0, cosine_margin=0.35)",
    "SmoothAPLoss": "pairops.smooth_ap_loss(x, labels, include_self=True)",
    "use": "with pairops.engine(name), or pairops.set_engine(name)",
    "compat": "import pairops.compat.pml, for pytorch-metric-learning, import "
    "pairops.compat.sentence_transformers or import pairops.compat.open_clip",
}


def _where(name: str) -> str:
    """Say what to write in place of a name that is not here."""
    if name in _INSTEAD:
        return f"; write {_INSTEAD[name]}"
    if name in _ELSEWHERE:
        return (
            f"; write pairops.nn.{_ELSEWHERE[name]}, or import pairops.compat.pml for the class "
            "of pytorch-metric-learning"
        )
    if name in _NOT_SERVED:
        return (
            ", a loss of pytorch-metric-learning; pairops.pair_loss makes any loss over pairs, "
            "pairops.losses.LOSSES lists those that there are, and docs/coming_from.md says what "
            "to write for each of that library's"
        )
    if hasattr(nn, name):
        return f"; write pairops.nn.{name}"
    if name in functions.FUNCTIONS:
        return f"; write pairops.functions.{name}"
    near = _difflib.get_close_matches(name, [n for n in globals() if n[0] != "_"], 1)
    return f"; did you mean {near[0]!r}?" if near else ""


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        where = "" if name.startswith("_") else _where(name)
        raise AttributeError(f"pairops has no {name!r}{where}", name=name)
