"""Losses with a teacher: frozen embeddings of the same rows say how similar these are to be."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, relu
from typing_extensions import Unpack

from pairops.ops.autograd.recompute import recomputed
from pairops.ops.bindings.devices import widest_float
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import apply_scale, at_least_float32, inverse_norm, product
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms.tensor_checks import check_embeddings, number
from pairops.ops.terms.term import ALL, lse

from .info_nce import self_and_others
from .objective.keywords import Paired, Value
from .objective.objective import (
    Objective,
    all_negatives,
    check_one_for_each,
    paired,
    similar_only,
    split,
)
from .objective.registration import loss

__all__ = ["cwcl_loss", "gram_matching_loss"]

_ENTRIES = 1 << 20  # of rows that are made wide at a time


@loss()
def cwcl_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    teacher: Tensor,  # (N, E)
    *,
    temperature: float | Tensor = 0.07,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = log Σ_j e^{s_ij/τ} − Σ_j w_ij s_ij/τ / Σ_j w_ij, plus log Σ_j e^{s_ji/τ} − s_ii/τ.

    x_i finds every y_j as far as a teacher has it for alike: w_ij = (1 + cos(u_i, u_j))/2, where u
    are its embeddings of what x embeds, held constant. The other direction, y_i among the x, is
    plain InfoNCE, and the two are added up. `weight` is one factor per pair (i, i). `distance` must
    be "cosine" or "dot".

    The weighted mean is linear in s: two products of N × D × E and a matrix (D, E) take the place
    of the pairs, in float64 where the device has it. So the loss takes the time of
    `info_nce_loss`, in float32 for 16-bit embeddings too, and O(N (D + E)) memory.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings of one modality.
        y: (N, D) of the dtype of x, those of the other. y_i belongs to x_i.
        teacher: (N, E) floating point without gradient, embeddings of what x embeds by a model that
            is trained already; only their directions count.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.

    Source:
        Srinivasa et al., CWCL: Cross-Modal Transfer with Continuously Weighted Contrastive Loss,
        NeurIPS 2023. No code of the authors is public.

    Differs from:
        CellCLIP's code, which cites the paper, adds 1e-8 to Σ_j w_ij, and takes the weights of
        embeddings that are being trained, with a gradient.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    check_one_for_each(x, y)
    check_teacher("teacher", teacher, "x", x)
    objective = paired(x, y, common)
    similar_only("cwcl_loss", objective.pairs)
    # Of 16-bit rows the gradients of both parts, which nearly cancel, would be rounded apart.
    pairs = objective.pairs.widened()
    rows, cols = self_and_others(scale), self_and_others(scale)
    _, pos, neg, _, pos_of_y, neg_of_y = row_stats(pairs, *rows, cols=cols)
    farther = _pull(objective, pairs, teacher.detach()).to(pos.dtype)
    losses = log1p_exp(neg - pos) + log1p_exp(neg_of_y - pos_of_y) - scale * farther
    return objective.value(losses, xy=lse(ALL, scale, 0.0))


def _pull(objective: Objective, pairs: Pairs, teacher: Tensor) -> Tensor:
    """Return (N,) Σ_j w_ij (s_ij − s_ii) / Σ_j w_ij, in the widest dtype."""
    unit, count = _units(pairs), pairs.batch[1]
    # Around their mean, rows of y that nearly coincide have small products, and one row has 0.
    q = torch.cat(_by_blocks(partial(_rows, unit), pairs.other))
    q = q - objective.total(q.sum(0)) / max(count, 1)
    joint = objective.total(_sum(_by_blocks(_joint, q, teacher)))
    whole = joint, joint.new_full((), count)
    return torch.cat(_by_blocks(partial(_excess, unit), pairs.x, q, teacher, whole=whole))


def _joint(q: Tensor, teacher: Tensor) -> Tensor:
    """Return (E, 1 + D) Σ_j u_j (1, q_j)."""
    return product(_rows(True, teacher).T, torch.nn.functional.pad(q, (1, 0), value=1.0).T)


def _excess(
    unit: bool, x: Tensor, q: Tensor, teacher: Tensor, joint: Tensor, count: Tensor
) -> Tensor:
    """Return (n,) Σ_j w_ij (s_ij − s_ii) / Σ_j w_ij of some rows, where Σ_j q_j = 0."""
    sums = product(_rows(True, teacher), joint.T)
    return (_rows(unit, x) * (sums[:, 1:] / (sums[:, :1] + count) - q)).sum(1)


@loss()
def gram_matching_loss(
    x: Tensor,  # (N, D)
    teacher: Tensor,  # (N, E)
    *,
    ref_emb: Tensor | None = None,  # (M, D)
    ref_teacher: Tensor | None = None,  # (M, E)
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = 1/M Σ_j (s_ij − t_ij)²: the similarities of x are to be those t of a teacher.

    The mean over anchors is ‖S − T‖² / (N M). All pairs count, a row's own with them. Embeddings of
    the teacher are compared as x is, and held constant: unit vectors, unless normalize=False or
    distance="dot" says otherwise. `distance` must be "cosine" or "dot". `Aux` counts every pair as
    a negative.

    No pair is computed: with b_j = (y_j, v_j) and a_i = (x_i, −u_i), Σ_j (s_ij − t_ij)² =
    a_iᵀ (Σ_j b_j b_jᵀ) a_i. That takes O((N + M) (D + E)²) time and O((N + M) (D + E)) memory. Its
    rounding is about 1e-16 of Σ_j s_ij² / M, however small the loss is, as it is in float64, on the
    slower units of a GPU that has few of them; and 1e-7 of it on a device without float64.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        teacher: (N, E) floating point without gradient, the teacher's embeddings of the same rows.
        ref_emb: (M, D) of the dtype of x, with gradient: what x is compared with. None: x itself.
        ref_teacher: (M, E) of the dtype of `teacher`, its embeddings of `ref_emb`; needed with it.

    Source:
        The manifold loss of U-REPA (Tian et al., 2025), whose code was not public; as a loss over
        similarities it is that of Tung & Mori, Similarity-Preserving Knowledge Distillation, ICCV
        2019, which divides the rows of S and T by their norms.
    """
    check_embeddings("x", x)
    check_teacher("teacher", teacher, "x", x)
    asked, comparing = split(common, x)
    y = x
    if ref_emb is not None:
        check_embeddings("ref_emb", ref_emb, like=("x", x))
        y = ref_emb
    v = teacher_of_references(teacher, ref_teacher, ref_emb)
    teacher, v = teacher.detach(), v.detach()
    x, y = at_least_float32(x), at_least_float32(y)
    pairs = all_negatives(x, y, exclude_self=False, **comparing)
    similar_only("gram_matching_loss", pairs)
    objective = Objective.of(pairs, **asked)
    unit = _units(pairs)
    gram = objective.total(_sum(_by_blocks(partial(_gram, unit), y, v)))
    sums = torch.cat(_by_blocks(partial(_squares, unit), x, teacher, whole=(gram,)))
    squares = sums / max(pairs.batch[1], 1)
    # Rounding may leave less than nothing; the gradient is as small there, and stays.
    squares = squares + (relu(squares) - squares).detach()
    return objective.value(squares.to(pairs.dtype))


def _gram(unit: bool, y: Tensor, teacher: Tensor) -> Tensor:
    """Return (D + E, D + E) Σ_j b_j b_jᵀ, b_j = (y_j, v_j)."""
    b = torch.cat([_rows(unit, y), _rows(unit, teacher)], 1)
    return product(b.T, b.T)


def _squares(unit: bool, x: Tensor, teacher: Tensor, gram: Tensor) -> Tensor:
    """Return (n,) a_iᵀ gram a_i, a_i = (x_i, −u_i), of some rows."""
    a = torch.cat([_rows(unit, x), -_rows(unit, teacher)], 1)
    return (product(a, gram) * a).sum(1)


def _units(pairs: Pairs) -> bool:
    return pairs.scales.x is not None


def _rows(unit: bool, given: Tensor) -> Tensor:
    """Return rows as they are compared, in the widest dtype."""
    rows = given.to(widest_float(given.device))
    return apply_scale(rows, inverse_norm(rows), rows.dtype) if unit else rows


def _by_blocks(
    function: Callable[..., Tensor], *rows: Tensor, whole: tuple[Tensor, ...] = ()
) -> list[Tensor]:
    """Call a function of some rows block by block: wide copies of rows are made again in the
    backward pass, and are never all there. Within torch.compile it is called once, of all."""
    if torch.compiler.is_compiling():  # it follows no node that differentiates within itself
        return [function(*rows, *whole)]

    def of_block(*given: Tensor) -> tuple[Tensor]:
        return (function(*given),)

    at_once = max(_ENTRIES // max(sum([z.shape[1] for z in rows]), 1), 1)
    blocks = zip(*[z.split(at_once) for z in rows], strict=True)
    return [recomputed(of_block, *block, *whole)[0] for block in blocks]


def _sum(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


def teacher_of_references(
    teacher: Tensor, ref_teacher: Tensor | None, ref_emb: Tensor | None
) -> Tensor:
    """Return a teacher's embeddings of what x is compared with: `teacher`, if that is x itself."""
    if ref_emb is None:
        if ref_teacher is not None:
            raise ValueError("ref_teacher is given without ref_emb; it must come with one")
        return teacher
    if ref_teacher is None:
        raise ValueError("ref_teacher is None; it must be given with ref_emb")
    check_embeddings("ref_teacher", ref_teacher, like=("teacher", teacher))
    check_teacher("ref_teacher", ref_teacher, "ref_emb", ref_emb)
    return ref_teacher


def check_teacher(name: str, given: Tensor, owner: str, x: Tensor) -> None:
    """Refuse a teacher's embeddings that are not one for each row of x, whose name is `owner`."""
    check_embeddings(name, given)
    if given.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name} has {given.shape[0]} rows; it must have {x.shape[0]}, "
            f"one for each row of {owner}"
        )
