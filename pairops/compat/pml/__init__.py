"""pytorch-metric-learning's losses, computed by pairops: its objects, numbers and edge cases.

    loss = convert(losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner())
    loss(embeddings, labels)  # mined too, without a list of pairs

Its classes are here again, under their names: constructors, distances, reducers, regularizers,
attributes and parameters are its own, and only `compute_loss` is another. `convert` makes one of an
object that exists. What is not served raises and says which attribute it is, what it was and what
it must be.

As there: self pairs are left out if `ref_labels is labels`, or in NCALoss if `ref_emb is
embeddings`; a loss over pairs is 0 if there is at most one positive and one negative pair, and
SupConLoss for a batch without positives or without negatives; labels are moved to the device of the
embeddings; the loss has the dtype of the embeddings.

Unlike there: sums are in float32 or wider, and log(1 + e^z) is not z above 20; a NaN shows in the
loss and in the gradient; a tiny loss is not 0 for AvgNonZeroReducer, where there it may round to 0;
NCALoss is 0, not NaN, for a batch without positives; the distance of duplicates is 0;
PerAnchorReducer takes any number of references; labels are integers; nothing waits
for the device, but for lists and for reducers that do so themselves.

Here an anchor's negatives are all references that are not its positives. So the numbers are the
same for an `indices_tuple` (anchors, positives, anchors, negatives) that has every pair once, but
for those of a row with itself: such as two masks of several labels give, or that library's
CrossBatchMemory makes for its loss. Positives are then a list, and labels are not read. Any other
`indices_tuple` is refused: what a miner finds leaves most pairs out on both sides, and triplets
count a pair many times; a miner is given to `convert`. NCALoss and the losses against proxies take
a list for weights of anchors, NPairsLoss takes two rows of each class, and LiftedStructureLoss
takes negatives of positives: they refuse every list.

Losses of that library that are not here are refused with the call that takes their place, or with
the reason why they may stay as they are; docs/coming_from.md has all of them. Version 3 of that
library is refused when this module is imported: it has other defaults, and this adapter stands on
what was public in 2.9.
"""

from typing import Any

import pytorch_metric_learning

_version = str(getattr(pytorch_metric_learning, "__version__", "of a version that it does not say"))
if not _version.startswith("2."):
    raise ImportError(
        f"pytorch-metric-learning is {_version}; for pairops.compat.pml it must be 2.9 or another "
        "2.x, since 3 has other defaults and other public names: write pip install "
        "'pytorch-metric-learning<3', or call the losses of pairops, which need none of it "
        "(docs/coming_from.md)"
    )

from pytorch_metric_learning import losses

from .classes import (
    CircleLoss,
    ContrastiveLoss,
    GeneralizedLiftedStructureLoss,
    LiftedStructureLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NPairsLoss,
    NTXentLoss,
    SignalToNoiseRatioContrastiveLoss,
    SupConLoss,
    TripletMarginLoss,
)
from .proxies import NCALoss, ProxyAnchorLoss, ProxyNCALoss
from .refused import instead_of
from .served import Served

__all__ = [
    "CircleLoss",
    "ContrastiveLoss",
    "GeneralizedLiftedStructureLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NPairsLoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SignalToNoiseRatioContrastiveLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "convert",
]
_SERVED = {getattr(losses, name): globals()[name] for name in __all__ if name != "convert"}


def convert(loss: Any, miner: Any = None) -> Any:
    """Make the same loss, computed by pairops.

    `loss` stays as it is; its parameters are shared. The result mines for itself, and an
    `indices_tuple` may only be one that has all pairs.

    Args:
        loss: a loss of pytorch-metric-learning, of one of the classes of this module.
        miner: MultiSimilarityMiner for MultiSimilarityLoss; for TripletMarginLoss BatchHardMiner,
            or TripletMarginMiner of all triplets if it keeps every one that the loss is not 0 for.
            None: nothing is mined.

    Returns:
        The loss, of the class with the same name in this module.

    Raises:
        ValueError, TypeError: the message names what is not served.
    """
    kind = type(loss) if isinstance(loss, Served) else _SERVED.get(type(loss))
    if kind is None:
        names = ", ".join(served.__name__ for served in _SERVED)
        raise TypeError(
            f"loss is {type(loss).__name__}; it must be one of {names}{instead_of(loss)}"
        )
    converted: Any = object.__new__(kind)
    for name, value in vars(loss).items():  # its dicts of parameters and modules are copied
        converted.__dict__[name] = value.copy() if isinstance(value, dict) else value
    vars(converted)["miner"] = miner
    converted.check()
    return converted
