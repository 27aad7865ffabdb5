"""The losses as Modules: arguments given once, and parameters where a loss has any.

Names, defaults and parameters are those of pytorch-metric-learning, so that a line such as
`loss = losses.CircleLoss(m=0.25)` needs another import and no more; `distance` and `reduction`
stand where it has objects. What is computed is the function of `pairops` that a class names; for a
loss that has no class here there is `LabelledLoss`. `pairops.compat.pml` is for those who rely on
that library's edge cases too.
"""

from .labelled import (
    CircleLoss,
    ContrastiveLoss,
    GeneralizedLiftedStructureLoss,
    LabelledLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NCALoss,
    NPairsLoss,
    NTXentLoss,
    SignalToNoiseRatioContrastiveLoss,
    SupConLoss,
    TripletMarginLoss,
)
from .parametric import InfoNCELoss, MarginLoss, ProxyAnchorLoss, ProxyNCALoss, SigLIPLoss

__all__ = [
    "CircleLoss",
    "ContrastiveLoss",
    "GeneralizedLiftedStructureLoss",
    "InfoNCELoss",
    "LabelledLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NPairsLoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SigLIPLoss",
    "SignalToNoiseRatioContrastiveLoss",
    "SupConLoss",
    "TripletMarginLoss",
]
