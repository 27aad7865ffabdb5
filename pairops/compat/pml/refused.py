"""What to write in place of pytorch-metric-learning's losses that the adapter does not serve."""

from typing import Any

from pytorch_metric_learning import losses

# The call that has the same numbers; docs/coming_from.md has these and the next in tables.
CALLS = {
    "ArcFaceLoss": "pairops.arcface_loss(x, labels, W.T, margin=margin, scale=scale)",
    "BaseMetricLossFunction": "pairops.pair_loss(x, labels, *terms, combine=...)",
    "CosFaceLoss": (
        "pairops.arcface_loss(x, labels, W.T, margin=0.0, cosine_margin=margin, scale=scale)"
    ),
    "CrossBatchMemory": "CrossBatchMemory(convert(loss), D)",
    "FastAPLoss": 'pairops.fast_ap_loss(x, labels, reduction="mean_nonzero")',
    "MultipleLosses": "MultipleLosses([convert(loss)])",
    "NormalizedSoftmaxLoss": (
        "pairops.nt_xent_loss(x, labels, temperature=temperature, ref_emb=W.T, "
        "ref_labels=torch.arange(C), exclude_self=False)"
    ),
    "SelfSupervisedLoss": "SelfSupervisedLoss(convert(loss))",
    "SmoothAPLoss": "pairops.smooth_ap_loss(x, labels, include_self=True)",
    "ThresholdConsistentMarginLoss": (
        "pairops.contrastive_loss(x, labels, pos_margin=0.9, neg_margin=0.5, "
        'reduction="mean_pairs")'
    ),
}

# Why there is no such call, and the nearest loss here.
OTHERS = {
    "AngularLoss": ("it compares sums of two rows with a third", "n_pair_loss"),
    "DynamicSoftMarginLoss": ("it weighs triplets by a histogram of all batches", "triplet_loss"),
    "HistogramLoss": ("it compares the histograms of all pairs", "fast_ap_loss"),
    "InstanceLoss": ("its logits are the rows of the batch, taken for classes", "info_nce_loss"),
    "IntraPairVarianceLoss": ("it compares pairs with the mean of all pairs", "contrastive_loss"),
    "LargeMarginSoftmaxLoss": ("it multiplies the angle to a row of W", "arcface_loss"),
    "ManifoldLoss": ("it inverts the matrix of all similarities", None),
    "P2SGradLoss": ("it squares the differences of cosines from 0 and 1", "binomial_deviance_loss"),
    "PNPLoss": ("it adds up ranks, and divides by none", "smooth_ap_loss"),
    "RankedListLoss": ("it divides the weights of pairs by their sum", "ms_loss"),
    "SoftTripleLoss": ("the proxies of a class make one logit", "proxy_nca_loss"),
    "SphereFaceLoss": ("it multiplies the angle to a row of W", "arcface_loss"),
    "SubCenterArcFaceLoss": ("the proxies of a class make one logit", "arcface_loss"),
    "TupletMarginLoss": ("each positive has a softmax and an angle of its own", "circle_loss"),
    "VICRegLoss": ("it compares dimensions, and no rows", None),
}


def instead_of(loss: Any) -> str:
    """Say what to write for a loss of a class that is refused, or of one derived from it.

    Nothing is said of a class that is none of that library's.
    """
    for kind in type(loss).__mro__:
        name = kind.__name__
        if kind is not getattr(losses, name, None):
            continue
        which = name if kind is type(loss) else f"a loss derived from {name}"
        if name in CALLS:
            return f"; in place of {which} write {CALLS[name]}"
        if name in OTHERS:
            why, nearest = OTHERS[name]
            other = f"; the nearest loss here is pairops.{nearest}" if nearest else ""
            return f"; {which} stays that library's, since {why}{other}"
    return ""
