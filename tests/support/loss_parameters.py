"""The losses by what they compare, their parameter sets, and what else they have to be given."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import losses
from support.engine_names import HERE

# A loss is picked up by existing; these are the parameter sets beyond its defaults.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ms_loss": [
        {"epsilon": None},
        {"alpha": 3.0, "beta": 40.0, "base": 0.3},
        {"distance": "l2", "base": 1.0},
        {"distance": "snr", "epsilon": None, "base": 1.5},
    ],
    "contrastive_loss": [
        {"pos_margin": 0.8, "neg_margin": 0.1},
        {"negatives": "raw"},
        {"distance": "l2"},
        {"distance": "sqeuclidean", "normalize": False, "neg_margin": 40.0},
        {"distance": "snr"},
    ],
    "supcon_loss": [{"temperature": 0.5}, {"distance": "sqeuclidean"}],
    "triplet_loss": [
        {"margin": 0.4},
        {"mining": "semihard"},
        {"mining": "all"},
        {"mining": "all", "soft": True},
        {"soft": True, "distance": "l2"},
        {"mining": "semihard", "distance": "l2"},
    ],
    "lifted_structure_loss": [
        {"form": "original"},
        {"distance": "cosine"},
        {"form": "original", "distance": "cosine", "pos_margin": 0.5, "neg_margin": 0.2},
        {"form": "original", "distance": "snr"},
    ],
    "binomial_deviance_loss": [{"alpha": 3.0, "base": 0.2}, {"distance": "l2", "base": 1.1}],
    "margin_loss": [{"triplets": True}, {"distance": "cosine", "beta": 0.3, "margin": 0.1}],
    "circle_loss": [{"margin": 0.25, "gamma": 16.0}],
    "nt_xent_loss": [{"temperature": 0.5}, {"distance": "l2"}],
    "decoupled_softmax_loss": [],
    "n_pair_loss": [{"distance": "cosine"}],
    "nca_loss": [{"scale": 4.0, "distance": "cosine"}],
    "mlcd_loss": [{"scale": 4.0}],
    "arcface_loss": [{"scale": 4.0, "margin": 0.3}, {"margin": 0.0, "cosine_margin": 0.35}],
    "proxy_anchor_loss": [{"alpha": 8.0, "margin": 0.3}],
    "proxy_nca_loss": [{"scale": 3.0, "smoothing": 0.1}, {"distance": "cosine"}],
    "smooth_ap_loss": [{"temperature": 0.1}, {"distance": "l2", "temperature": 0.05}],
    "fast_ap_loss": [{"bins": 4}],
    "soft_topk_loss": [
        {"k": 2, "alpha": 1.0, "temperature": 0.2},
        {"distance": "sqeuclidean", "temperature": 0.2},
    ],
    "uniformity_loss": [{"t": 5.0}, {"distance": "l2"}],
    "info_nce_loss": [
        {"temperature": 0.5},
        {"symmetric": False},
        {"distance": "sqeuclidean"},
        {"directions": ("xy", "yx", "xx", "yy"), "partition": "joint", "false_negatives": 0.1},
        {"directions": ("xx", "yy"), "label_smoothing": 0.1},
    ],
    "hard_negative_info_nce_loss": [{"hardness": 5.0}, {"concentration": 0.5, "debias": 0.1}],
    "siglip_loss": [{"scale": 0.0, "bias": 0.0}],
    "decoupled_contrastive_loss": [
        {"sigma": 0.5},
        {"sigma": 0.5, "detach_weights": True},
        {"symmetric": False},
        {"distance": "snr"},
    ],
    "auc_loss": [{"temperature": 0.3}, {"distance": "sqeuclidean", "temperature": 0.1}],
    "alignment_loss": [
        {"alpha": 1.0},
        {"alpha": 3.0, "normalize": False},
        {"distance": "sqeuclidean"},
    ],
    "cosent_loss": [{"temperature": 0.5}, {"distance": "sqeuclidean"}],
    "tal_loss": [{"temperature": 0.1, "margin": 0.4}],
    "sms_loss": [{"gamma": 0.3}],
    "hydra_loss": [{"temperature": 0.5}, {"distance": "dot", "temperature": 5.0}],
    "hashing_loss": [{"rectified": False, "scale": 0.4}],
    "multi_positive_loss": [{"temperature": 0.2}],
    "conr_loss": [
        {"temperature": 0.3, "eta": 0.5, "width": 0.5},
        {"constant": False, "distance": "l2"},
    ],
    "supremix_loss": [{"width": 0.5}, {"temperature": 0.1, "distance": "sqeuclidean"}],
    "nnclr_loss": [{"temperature": 0.3}, {"symmetric": False}, {"distance": "snr"}],
    "conditional_transport_loss": [{"scale": 25.0}, {"scale": 1.0, "distance": "l2"}],
    "cwcl_loss": [{"temperature": 0.5}],
    "distillation_loss": [
        {"divergence": "jeffreys"},
        {"temperature": 0.3, "teacher_temperature": 0.5, "distance": "l2"},
    ],
    "gram_matching_loss": [{"distance": "dot"}],
    "soft_triplet_loss": [
        {"normalize": False},
        {"distance": "cosine"},
        {"distance": "snr", "normalize": False},
    ],
}


def _takes(name: str, *parameters: str) -> bool:
    return set(parameters) <= set(inspect.signature(getattr(losses, name)).parameters)


# What takes no distance.
SIMILAR_ONLY = [
    "circle_loss", "cwcl_loss", "fast_ap_loss", "gram_matching_loss", "hashing_loss", "hydra_loss",
    "proxy_anchor_loss",
]  # fmt: skip
DISTANT_ONLY = ["alignment_loss"]  # what takes no similarity
NOT_COMPILED = [
    "conditional_transport_loss",
    "fast_ap_loss",
    "hashing_loss",
    "soft_topk_loss",
]  # on a CPU
ONE_SET = ["n_pair_loss"]  # what has no references
AGAINST_PROXIES = [name for name in losses.LOSSES if _takes(name, "proxies")]
LABELLED = [
    name
    for name in losses.LOSSES
    if _takes(name, "labels")
    and name not in AGAINST_PROXIES
    and not any(_takes(name, other) for other in ("y", "gate", "teacher"))
]
# A gate is like a second set: a row of it belongs to each row of x.
# Those that take labels and y, numbers, or a teacher are among these too, with y as references.
TWO_SETS = [name for name in losses.LOSSES if name not in (*LABELLED, *AGAINST_PROXIES)]


def parameters(name: str) -> list[dict[str, Any]]:
    return [{}, *VARIANTS.get(name, [])]


def is_first(name: str, params: dict[str, Any]) -> bool:
    return params == parameters(name)[0]


# Tensors that get no gradient, and those that all ranks have in full.
CONSTANT = {
    "relevance", "scores", "values", "ref_values", "predictions", "ref_predictions", "queue",
    "teacher", "ref_teacher",
    "teacher_x", "teacher_y",
}  # fmt: skip
WHOLE = {"relevance", "proxies", "queue"}


def argument_names(name: str) -> list[str]:
    """The names of a loss's arguments, in their order."""
    return list(inspect.signature(getattr(losses, name)).parameters)


def variants(names: list[str]) -> list[Any]:
    return [
        pytest.param(name, params, id="-".join([name, *(f"{k}={v}" for k, v in params.items())]))
        for name in names
        for params in parameters(name)
    ]


def mined(name: str, params: dict[str, Any]) -> bool:
    """Does a threshold lie among the similarities?"""
    return name == "ms_loss" and params.get("epsilon", 0.1) is not None


# An engine sees terms, never a loss (see ops/engines/test_contract.py), so three losses run on all
# of them from end to end: one that mines, one that counts pairs, one over two sets.
THOROUGH = ("ms_loss", "contrastive_loss", "info_nce_loss")


def on_engines(names: list[str]) -> list[Any]:
    """(loss, engine): each on those that serve it anyhow, some on all."""
    engines = {name: ["dense", "blockwise", "auto"] for name in names}
    for name in set(names).intersection(THOROUGH):
        engines[name] = HERE
    return [pytest.param(n, e, id=f"{n}-{e}") for n in names for e in engines[n]]


def with_rest(name: str, x: Tensor, y: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """What a loss over two sets, N rows each, is called with besides x: y in its form, and what is
    told of the rows."""
    n = len(x)
    if name == "multi_positive_loss":
        slots = torch.stack([y, y.roll(1, 1), y.flip(1)], 1)
        return (slots,), {"negatives": y.roll(2, 1)[: n // 2]}
    if name == "hydra_loss":
        labels = torch.arange(n) % 5
        return (y, labels, (3 * torch.arange(n) + 1) % 5), {}
    if name == "tal_loss":
        return (y, torch.arange(n) // 3), {}
    if name == "sms_loss":
        classes = torch.arange(n)
        table = torch.linspace(0, 1, 35).view(5, 7)
        told = {"relevance": table, "x_classes": classes % 5, "y_classes": classes * 3 % 7}
        return (y,), told
    if name == "cosent_loss":  # with ties
        return (y, torch.arange(n) * 7 % 11 / 4), {}
    if name == "nnclr_loss":
        # As these are in any dtype, and near no tie.
        waves = torch.sin(torch.arange(31 * x.shape[1]) * 1.7).view(31, x.shape[1])
        return (y, ((32 * waves).round() / 32).to(x.dtype)), {}
    if name in ("conr_loss", "supremix_loss"):
        places = torch.arange(n)
        values, others = places * 7 % 11 / 4, places * 5 % 11 / 4
        told = {"ref_emb": y, "ref_values": others}
        if name == "supremix_loss":
            return (values,), told
        said = values + 0.37 * (places % 5)
        return (values, said), {**told, "ref_predictions": said.flip(0)}
    teacher = torch.cos(torch.arange(8 * n) * 1.3).view(n, 8)
    if name == "cwcl_loss":
        return (y, teacher), {}
    if name == "distillation_loss":
        return (y, teacher, teacher.flip(0)), {}
    if name == "gram_matching_loss":
        return (teacher,), {"ref_emb": y, "ref_teacher": teacher.flip(0)}
    if name == "soft_triplet_loss":
        told = {"ref_emb": y, "ref_labels": torch.arange(n) % 4, "ref_teacher": teacher.flip(0)}
        return (torch.arange(n) * 3 % 5, teacher), told
    return (y,), {}


def call(name: str, x: Tensor, *, aux: bool = False, **keywords: Any) -> Any:
    """Any loss on x (N, D) with labels, proxies or a second set made up for it."""
    generator = torch.Generator().manual_seed(len(x))
    labels = torch.randint(0, 6, (len(x),), generator=generator)
    loss = getattr(pairops, name)
    loss = loss.with_aux if aux else loss
    params = parameters(name)[0]
    if name in LABELLED:
        return loss(x, labels, **params, **keywords)
    other = torch.randn(max(len(x), 6), x.shape[1], generator=generator).to(x.dtype)
    if name in AGAINST_PROXIES:
        return loss(x, labels, other[:6], **params, **keywords)
    args, told = with_rest(name, x, other[: len(x)])
    return loss(x, *args, **told, **params, **keywords)
