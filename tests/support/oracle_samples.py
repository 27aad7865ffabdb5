"""Samples and comparisons for the tests of the oracle, and its losses over labels by name."""

from functools import partial

import torch

import oracle

LABELLED = {
    "ms": oracle.ms_loss,
    "ms_unmined": partial(oracle.ms_loss, epsilon=None),
    "contrastive": oracle.contrastive_loss,
    "contrastive_raw": partial(oracle.contrastive_loss, negatives="raw"),
    "contrastive_l2": partial(oracle.contrastive_loss, distance="l2"),
    "supcon": oracle.supcon_loss,
    "triplet": oracle.triplet_loss,
    "triplet_all": partial(oracle.triplet_loss, mining="all", soft=True),
    "triplet_semihard": partial(oracle.triplet_loss, mining="semihard", distance="sqeuclidean"),
    "lifted": oracle.lifted_structure_loss,
    "lifted_original": partial(oracle.lifted_structure_loss, form="original"),
    "binomial": oracle.binomial_deviance_loss,
    "margin": partial(oracle.margin_loss, beta=0.1),
    "circle": oracle.circle_loss,
    "nt_xent": oracle.nt_xent_loss,
    "nca": oracle.nca_loss,
    "nca_snr": partial(oracle.nca_loss, distance="snr"),
    "mlcd": oracle.mlcd_loss,
    "smooth_ap": partial(oracle.smooth_ap_loss, temperature=0.2),
    "fast_ap": oracle.fast_ap_loss,
    "soft_topk": partial(oracle.soft_topk_loss, k=1, temperature=0.5),
}


def sample(N, D=16, classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (N,), generator=generator)
    centres = torch.randn(classes, D, generator=generator, dtype=torch.float64)
    x = centres[labels] + torch.randn(N, D, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), labels


def agree(actual, expected, *inputs, atol=1e-12):
    """Compare two scalars and their gradients."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)
    wanteds = torch.autograd.grad(expected, inputs, retain_graph=True)
    for got, wanted in zip(torch.autograd.grad(actual, inputs), wanteds, strict=True):
        assert wanted.abs().max() > 1e-6, "the other side has no gradient to compare with"
        torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


def leaf(tensor):
    return tensor.detach().requires_grad_()


def two_sets(N=30):
    return sample(N)[0], sample(N, seed=1)[0]


def relu(z):
    return z.clamp(min=0)
