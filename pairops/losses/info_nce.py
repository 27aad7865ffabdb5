"""InfoNCE: a row finds its partner in the other set among whatever else it is compared with."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.row_stats.pieces import softplus_of
from pairops.ops.terms.checks import flag, one_of, plain_number
from pairops.ops.terms.tensor_checks import check_embeddings, number
from pairops.ops.terms.term import ALL, NEG, POS, Term, highest, lse, total

from .directions.candidates import Candidates, Direction, checked_directions
from .directions.directions import Directions
from .objective.keywords import Paired, Value
from .objective.objective import Objective, paired, split
from .objective.registration import loss

__all__ = ["info_nce_loss"]

Partition = Literal["separate", "joint"]
PARTITIONS = get_args(Partition)
_BOTH: tuple[Direction, ...] = ("xy", "yx")
_NUMBERS = (float, int)


@loss()
def info_nce_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    *,
    temperature: float | Tensor = 0.07,
    directions: Sequence[Direction] = _BOTH,
    symmetric: bool | None = None,
    partition: Partition = "separate",
    own_negatives: Tensor | None = None,  # (N, K, D)
    false_negatives: float | Tensor | None = None,
    ids: Tensor | None = None,  # (N,)
    ref_ids: Tensor | None = None,  # (M,)
    log_q: Tensor | None = None,  # (M,)
    guide: tuple[Tensor, Tensor] | None = None,  # (N, E), (M, E)
    guide_margin: float = 0.0,
    guide_relative: bool = False,
    label_smoothing: float = 0.0,
    queue: Tensor | None = None,  # (Q, D)
    queue_only: bool = False,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = mean over directions of log(1 + Σ_j e^{(s_ij − s_ii)/τ}): x_i finds y_i, and y_i x_i.

    y_i is the one positive of x_i. Rows of y beyond the N-th are hard negatives: every x_i has to
    tell them from y_i. The sum is over the negatives of a direction, or with partition="joint" of
    all directions, and all keywords combine. `weight` is one factor per pair (i, i). With a
    distance d, s is −d; that of x_i and y_j is the same in "xy" and "yx". `with_aux` counts the
    rows of y, whatever is dropped or comes from elsewhere.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        y: (M, D) of the dtype of x, with M ≥ N. The embeddings that x is compared with.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.
        directions: which of "xy", "yx", "xx" and "yy", each for the anchors i < N with the positive
            s_ii: x_i against all rows of y; y_i against the other x_j; x_i against the other x_j;
            y_i against all other rows of y.
        symmetric: a short way to say directions: True ("xy", "yx"), False ("xy",). None: as
            `directions` says.
        partition: "separate", a softmax for each direction; "joint", one whose denominator has the
            negatives of all directions, and the positive once.
        own_negatives: (N, K, D) of the dtype of x, K further negatives for each x_i alone, in "xy".
        false_negatives: a number or a 0-d tensor, held constant: m. A negative with s_ij > s_ii + m
            is dropped, in every direction, of own negatives and of the queue too; one that is as
            near, but for rounding, stays. None: none is.
        ids: (N,) integers that name the pairs. A row of x or y with the id of the anchor is no
            negative, in every direction; own negatives and the queue have no ids. None: every pair
            has a name of its own.
        ref_ids: (M,) integers, the names of the rows of y, of which the first N are those of
            `ids`. None: `ids`, where M = N.
        log_q: (M,) floating point, held constant: s_ij/τ − log_q_j takes the place of s_ij/τ for
            the rows of y in "xy", the positive among them, and in "yy".
        guide: (u, v), (N, E) and (M, E) floating point, held constant: unit vectors of these
            compare, as x and y do, by g. A negative with g above b_i is dropped; own negatives and
            the queue have no g.
        guide_margin: a number: b_i = g_ii − margin.
        guide_relative: True takes b_i = g_ii − |g_ii| · margin.
        label_smoothing: a number from 0 to below 1, as in `torch.nn.functional.cross_entropy` over
            the positive and all candidates of a direction; dropped ones count as candidates, and
            add nothing.
        queue: (Q, D) of the dtype of x, held constant: further negatives in "xy" for all rows. With
            a group it is this rank's, for this rank's rows.
        queue_only: True takes the negatives of "xy" from the queue alone, as MoCo does.

    Source:
        van den Oord et al., 2018; two-way as in CLIP (Radford et al., 2021). The two-way loss
        equals open_clip's ClipLoss with logit_scale = 1/τ. The one-way loss with hard negatives is
        sentence-transformers' MultipleNegativesRankingLoss with scale = 1/τ. False negatives as in
        Qwen3-Embedding, 2025; a guide as in GISTEmbed (Solatorio, 2024); log_q as in Yi et al.,
        Sampling-Bias-Corrected Neural Modeling, RecSys 2019; a queue as in MoCo (He et al., 2020).

    Differs from:
        sentence-transformers counts the positive twice in its joint denominator.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    if symmetric is not None:
        flag("symmetric", symmetric, optional=True)
        if directions is not _BOTH:
            raise ValueError("symmetric and directions are both given; give one of them")
        ways = _BOTH if symmetric else _BOTH[:1]
    else:
        ways = directions if directions is _BOTH else checked_directions(directions)
    if (
        own_negatives is None and false_negatives is None and ids is None and ref_ids is None
        and log_q is None and guide is None and guide_relative is False and queue is None
        and queue_only is False and type(guide_margin) in _NUMBERS and guide_margin == 0
        and type(label_smoothing) in _NUMBERS and label_smoothing == 0 and type(partition) is str
        and (partition == "separate" or (partition == "joint" and len(ways) == 1))
        and ways in (_BOTH, _BOTH[:1])
    ):  # fmt: skip
        objective = paired(x, y, common)
        terms: list[tuple[Term, ...]] = [self_and_others(scale)]
        both = len(ways) > 1
        if both:
            terms += (self_and_others(scale),)
        share = 0.5 if both else 1.0
        pieces = [softplus_of(neg, pos, weight=share) for _, pos, neg in terms]
        seen = {}
        if objective.return_aux:
            seen = dict(zip(ways, [lse(ALL, scale, 0.0) for _ in ways], strict=True))
            terms = [(*term, every) for term, every in zip(terms, seen.values(), strict=True)]
        return objective.of_pieces(terms[0], pieces, terms[1] if both else (), **seen)
    one_of("partition", partition, PARTITIONS)
    smoothing = plain_number("label_smoothing", label_smoothing)
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing is {smoothing}; it must be from 0 to below 1")
    check_embeddings("x", x)
    check_embeddings("y", y, like=("x", x))
    candidates = Candidates.checked(
        x, y, ways, own_negatives=own_negatives, false_negatives=false_negatives, ids=ids,
        ref_ids=ref_ids, log_q=log_q, guide=guide, guide_margin=guide_margin,
        guide_relative=guide_relative, queue=queue, queue_only=queue_only,
    )  # fmt: skip
    asked, comparing = split(common, x)
    at = Directions(x, y, scale, candidates, smoothing > 0, comparing)
    found = at.negatives(ways)
    losses = at.joint(found, smoothing) if partition == "joint" else at.separate(found, smoothing)
    objective = Objective.of(at.paired, **asked)
    return objective.value(losses, **(at.log_sum_exps(found) if objective.return_aux else {}))


def self_and_others(scale: float | Tensor) -> tuple[Term, ...]:
    """Build terms of an anchor: c = s_ii, scale (s_ii − c), log Σ_{j≠i} e^{scale (s_ij − c)}.

    c is held constant. A loss of differences from it does not lose small numbers in large ones.
    """
    near = highest(POS, grad=False)
    return near, total(POS, scale, near), lse(NEG, scale, near)
