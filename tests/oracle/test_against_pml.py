"""Holds the oracle against pytorch-metric-learning: values and gradients in float64."""

from functools import partial

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from torch.nn import Parameter

import oracle
from support.oracle_samples import agree, sample

COSINE = {"distance": distances.CosineSimilarity()}
L2 = {"distance": distances.LpDistance()}
SQUARED = {"distance": distances.LpDistance(power=2)}
SNR = {"distance": distances.SNRDistance()}
SUM = {"reducer": reducers.SumReducer()}


def call(name, reduction="mean", **params):
    """Return the oracle as a function that gives a scalar."""
    formula = partial(getattr(oracle, f"{name}_loss"), **params)
    if reduction == "mean_pairs":
        return partial(formula, reduction=reduction)
    return lambda *given, **pairing: oracle.reduce(formula(*given, **pairing), reduction=reduction)


def exact(loss):
    """With a softplus that is not the identity above 20."""
    loss.soft_plus = torch.nn.Softplus(threshold=1e9)
    return loss


ms = losses.MultiSimilarityLoss
contrastive = losses.ContrastiveLoss
triplet = losses.TripletMarginLoss
LOSSES = {
    "contrastive": (contrastive(), call("contrastive", "mean_pairs", distance="l2")),
    "contrastive of cosines": (
        contrastive(1, 0, **COSINE),
        call("contrastive", "mean_pairs", pos_margin=1.0, neg_margin=0.0),
    ),
    "contrastive sum": (contrastive(1, 0.5, **COSINE, **SUM), call("contrastive", "sum")),
    "contrastive of SNR": (
        losses.SignalToNoiseRatioContrastiveLoss(),
        call("contrastive", "mean_pairs", distance="snr"),
    ),
    "triplet": (triplet(), call("triplet", "mean_pairs", mining="all", distance="l2")),
    "triplet soft": (
        triplet(smooth_loss=True),
        call("triplet", "mean_pairs", mining="all", soft=True, distance="l2"),
    ),
    "triplet of cosines": (
        triplet(0.2, **COSINE),
        call("triplet", "mean_pairs", mining="all", margin=0.2),
    ),
    "triplet of SNR": (
        triplet(0.2, **SNR),
        call("triplet", "mean_pairs", mining="all", margin=0.2, distance="snr"),
    ),
    "lifted": (
        losses.LiftedStructureLoss(),
        call("lifted_structure", "mean_pairs", form="original"),
    ),
    "lifted of cosines": (
        losses.LiftedStructureLoss(0, 1, **COSINE),
        call("lifted_structure", "mean_pairs", form="original", distance="cosine"),
    ),
    "lifted generalised": (losses.GeneralizedLiftedStructureLoss(), call("lifted_structure")),
    "lifted generalised of cosines": (
        losses.GeneralizedLiftedStructureLoss(0, 1, **COSINE),
        call("lifted_structure", distance="cosine"),
    ),
    "n-pair": (losses.NPairsLoss(), None),
    "n-pair of products": (
        losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False)),
        None,
    ),
    "margin": (
        losses.MarginLoss(beta=1.25),
        call("margin", "mean_pairs", beta=1.25, triplets=True),
    ),
    "circle": (exact(losses.CircleLoss()), call("circle", "mean_nonzero")),
    "NT-Xent": (losses.NTXentLoss(), call("nt_xent", "mean_pairs")),
    "NT-Xent of L2": (
        losses.NTXentLoss(0.5, **L2),
        call("nt_xent", "mean_pairs", temperature=0.5, distance="l2"),
    ),
    "SupCon": (losses.SupConLoss(), call("supcon", "mean_nonzero")),
    "SupCon of L2": (losses.SupConLoss(**L2), call("supcon", "mean_nonzero", distance="l2")),
    "NCA": (losses.NCALoss(), call("nca", "mean_nonzero")),
    "NCA of cosines": (
        losses.NCALoss(8, **COSINE),
        call("nca", "mean_nonzero", scale=8, distance="cosine"),
    ),
    "FastAP": (losses.FastAPLoss(), call("fast_ap", "mean_nonzero")),
    "FastAP of 4 bins": (losses.FastAPLoss(4), call("fast_ap", "mean_nonzero", bins=4)),
    "MS": (ms(2, 50, 0.5), call("ms", epsilon=None)),
    "MS of L2": (
        ms(2, 5, 0.75, **L2),
        call("ms", beta=5.0, base=0.75, epsilon=None, distance="l2"),
    ),
}
MINED = {
    "MS": (ms(2, 50, 0.5), miners.MultiSimilarityMiner(0.1), call("ms")),
    "MS of squared L2": (
        ms(2, 5, 0.75, **SQUARED),
        miners.MultiSimilarityMiner(0.5, **SQUARED),
        call("ms", beta=5.0, base=0.75, epsilon=0.5, distance="sqeuclidean"),
    ),
    "triplet": (
        triplet(0.05, **COSINE, **SUM),
        miners.BatchHardMiner(**COSINE),
        call("triplet", "sum"),
    ),
    "triplet of L2": (
        triplet(0.1, **L2, **SUM),
        miners.BatchHardMiner(**L2),
        call("triplet", "sum", margin=0.1, distance="l2"),
    ),
}
# with references lifted takes the negatives of the anchor that has the number of the positive
ALONE = {"n-pair", "n-pair of products", "lifted", "lifted of cosines"}
ALONE |= {"FastAP", "FastAP of 4 bins"}  # which take no references


def batch(same_set):
    """x, labels and references; three labels of ten are of one row, and one of none."""
    (x, labels), (y, ref_labels) = sample(50), sample(41, seed=1)
    labels[:3] = torch.tensor([6, 7, 8])
    references = {} if same_set else {"ref_emb": y, "ref_labels": ref_labels}
    return x, labels, references, (x,) if same_set else (x, y)


@pytest.mark.parametrize(
    ("name", "same_set"),
    [(name, True) for name in LOSSES] + [(name, False) for name in LOSSES if name not in ALONE],
)
def test_as_defined_there(name, same_set):
    theirs, ours = LOSSES[name]
    x, labels, references, inputs = batch(same_set)
    if name.startswith("n-pair"):
        values = oracle.n_pair_loss(x, labels, distance="dot" if "of" in name else "cosine")
        actual = values.sum() / len(oracle.n_pairs(labels)[0])
    else:
        actual = ours(x, labels, **references)
    agree(actual, theirs(x, labels, **references), *inputs, atol=1e-10)


@pytest.mark.parametrize("same_set", [True, False])
@pytest.mark.parametrize("name", MINED)
def test_with_their_miner(name, same_set):
    theirs, miner, ours = MINED[name]
    x, labels, references, inputs = batch(same_set)
    pairs = miner(x, labels, *references.values())
    agree(
        ours(x, labels, **references),
        theirs(x, labels, pairs, **references),
        *inputs,
        atol=1e-10,
    )


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_smooth_ap(temperature, monkeypatch):
    """Of as many classes as each has rows, which it takes for one another, and in float64."""
    x, labels = sample(25)[0], torch.arange(25) // 5
    monkeypatch.setattr(torch, "zeros", partial(torch.zeros, dtype=torch.float64))
    theirs = losses.SmoothAPLoss(temperature)(x, labels)
    monkeypatch.undo()
    actual = call("smooth_ap", temperature=temperature, include_self=True)(x, labels)
    agree(actual, theirs, x, atol=1e-10)


@pytest.mark.parametrize("classes", [1, 10])
def test_margin_with_a_beta_that_learns(classes):
    theirs = losses.MarginLoss(learn_beta=True, num_classes=classes if classes > 1 else None)
    theirs.beta = Parameter(torch.linspace(0.8, 1.4, classes, dtype=torch.float64))
    beta = theirs.beta if classes > 1 else theirs.beta[0]
    x, labels, *_ = batch(True)
    options = {"triplets": True, "reduction": "mean_pairs"}
    actual = oracle.margin_loss(x, labels, beta=beta, **options)
    agree(actual, theirs(x, labels).squeeze(), x, theirs.beta, atol=1e-10)


@pytest.mark.parametrize("name", ["proxy_anchor", "proxy_nca"])
def test_proxies(name):
    x, labels, *_ = batch(True)
    kind = losses.ProxyAnchorLoss if name == "proxy_anchor" else losses.ProxyNCALoss
    theirs = kind(num_classes=10, embedding_size=16).double()
    reduction = "mean" if name == "proxy_anchor" else "mean_nonzero"
    actual = call(name, reduction)(x, labels, theirs.proxies)
    agree(actual, theirs(x, labels), x, theirs.proxies, atol=1e-10)
