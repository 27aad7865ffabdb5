"""open_clip's contrastive losses, computed by pairops: without the matrix of logits.

    from pairops.compat.open_clip import ClipLoss  # or SigLipLoss
    loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)
    loss(image_features, text_features, logit_scale, output_dict=True)["contrastive_loss"]

The classes have that library's constructors and calls, its values and, once
DistributedDataParallel has averaged them, its gradients. Features are compared as they come: its
models return unit vectors. Nothing is imported of the package.

With world_size > 1 the default process group of torch.distributed shares the batch, exactly, as
`group="auto"` does. ClipLoss then needs gather_with_grad=True. Without it, which is open_clip's
default, its gradients are others: with local_loss=False those of the features are divided by
world_size and that of logit_scale is not; with local_loss=True the features of other ranks count as
constants.

Unlike there: the loss of float16 and bfloat16 features is float32, and so are similarities under
autocast; labels are never made, so cache_labels and rank change nothing; logit_bias cancels out of
ClipLoss, so its gradient is 0, where there it is rounding; and there are no get_logits and
get_ground_truth. Of its other classes, CoCaLoss is ClipLoss beside a cross-entropy of captions, and
DistillClipLoss is ClipLoss beside a cross-entropy of a teacher's softmax.
"""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from pairops.losses.info_nce import info_nce_loss
from pairops.losses.siglip import siglip_loss
from pairops.ops.terms.checks import count, flag, one_of
from pairops.ops.terms.tensor_checks import check_embeddings, number

__all__ = ["ClipLoss", "SigLipLoss"]

_EXCHANGES = ("bidir", "shift", "reduce", "gather")


class ClipLoss(nn.Module):
    """open_clip's loss of this name, by `info_nce_loss`.

    N images and N texts take O(N·D) memory; so do those of each rank, however many ranks there are.

    Args:
        local_loss: True gives every rank the mean over its own rows, False the mean over the rows
            of all. The gradients are the same. It says nothing where world_size is 1.
        gather_with_grad: True, where world_size is above 1.
        cache_labels: a bool, which changes nothing: there are no labels.
        rank: an int, which is not read: the process group knows it.
        world_size: the number of ranks of the default process group; 1 for a batch of this process
            alone, whatever groups there are.
        use_horovod: False, where world_size is above 1.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.

    Source:
        open_clip 3.3.0.

    Differs from:
        open_clip holds (N·world_size)² logits with local_loss=False, twice N²·world_size with True.
        Ranks may have different numbers of rows, or none; there all have as many.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (
            ("local_loss", local_loss),
            ("gather_with_grad", gather_with_grad),
            ("cache_labels", cache_labels),
            ("use_horovod", use_horovod),
        ):
            flag(name, value)
        self.world_size = count("world_size", world_size, least=1)
        self.rank = count("rank", rank)
        if self.world_size > 1 and use_horovod:
            raise ValueError(
                f"use_horovod is True with world_size={world_size}; it must be False: write "
                "torch.distributed.init_process_group, and use_horovod=False"
            )
        if self.world_size > 1 and not gather_with_grad:
            what = (
                "features of other ranks would be constants"
                if local_loss
                else f"the gradients of features would be divided by {world_size}, those of "
                "logit_scale not"
            )
            raise ValueError(
                f"gather_with_grad is False with world_size={world_size}; it must be True, since "
                f"{what}: write gather_with_grad=True, in open_clip's training --gather-with-grad"
            )
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.use_horovod = use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Any:
        """Return the mean of both cross-entropies of logit_scale · images · textsᵀ.

        Args:
            image_features: (N, D) float16, bfloat16, float32 or float64.
            text_features: (N, D) of the dtype of image_features.
            logit_scale: a number above 0, or a tensor with one element.
            logit_bias: a number or a tensor with one element; it cancels out. None: 0.
            output_dict: True returns {"contrastive_loss": loss}.

        Returns:
            A 0-d tensor, or with output_dict a dict of it.
        """
        _check_features(image_features, text_features)
        value = _mean(
            info_nce_loss,
            image_features,
            text_features,
            self.world_size,
            of_rank=self.local_loss,
            temperature=1 / number("logit_scale", logit_scale, positive=True),
        )
        bias = number("logit_bias", logit_bias, default=0.0)
        if isinstance(bias, Tensor):  # DDP waits for a gradient of every parameter
            value = value + (0 * bias).to(value.dtype)
        return {"contrastive_loss": value} if output_dict else value


class SigLipLoss(nn.Module):
    """open_clip's loss of this name, by `siglip_loss`.

    N images and N texts take O(N·D) memory; so do those of each rank, however many ranks there are.
    Every rank has the mean over its own images, which are compared with the texts of all.

    Args:
        cache_labels: a bool, which changes nothing: there are no labels.
        rank: an int, which is not read: the process group knows it.
        world_size: the number of ranks of the default process group; 1 for a batch of this process
            alone, whatever groups there are.
        dist_impl: "bidir", "shift", "reduce" or "gather", how features go from rank to rank there:
            all have the same value, and here it is as `group` does. None: "bidir".

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.

    Source:
        open_clip 3.3.0.

    Differs from:
        open_clip holds world_size matrices of N² logits for the backward pass. Ranks may have
        different numbers of rows, or none; there all have as many.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
    ) -> None:
        super().__init__()
        flag("cache_labels", cache_labels)
        if dist_impl is not None:
            one_of("dist_impl", dist_impl, _EXCHANGES)
        self.cache_labels = cache_labels
        self.rank = count("rank", rank)
        self.world_size = count("world_size", world_size, least=1)
        self.dist_impl = dist_impl or _EXCHANGES[0]

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Any:
        """Return Σ_ij log(1 + exp(−z_ij (scale · <image_i, text_j> + bias))) / N, z = ±1.

        Args:
            image_features: (N, D) float16, bfloat16, float32 or float64.
            text_features: (N, D) of the dtype of image_features.
            logit_scale: a number, or a tensor with one element.
            logit_bias: a number, or a tensor with one element. None: 0.
            output_dict: True returns {"contrastive_loss": loss}.

        Returns:
            A 0-d tensor, or with output_dict a dict of it.
        """
        _check_features(image_features, text_features)
        value = _mean(
            siglip_loss,
            image_features,
            text_features,
            self.world_size,
            of_rank=True,
            scale=number("logit_scale", logit_scale),
            bias=number("logit_bias", logit_bias, default=0.0),
        )
        return {"contrastive_loss": value} if output_dict else value


def _check_features(image_features: Tensor, text_features: Tensor) -> None:
    """Refuse what is not (N, D) twice; the losses would take further texts for negatives."""
    check_embeddings("image_features", image_features)
    check_embeddings("text_features", text_features, like=("image_features", image_features))
    if len(text_features) != len(image_features):
        raise ValueError(
            f"text_features has {len(text_features)} rows; it must have {len(image_features)}, as "
            "image_features has"
        )


def _mean(
    loss: Any, x: Tensor, y: Tensor, world_size: int, *, of_rank: bool, **numbers: Any
) -> Tensor:
    """Average a loss over rows; of_rank: over those of this rank, where there are several ranks.

    `backward` differentiates the sum of the values of all ranks, there as here.
    """
    value: Tensor
    if world_size == 1:
        value = loss(x, y, distance="dot", **numbers)
        return value
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            f"world_size is {world_size}, but torch.distributed is not initialised; it must be 1, "
            "or torch.distributed.init_process_group must be called first"
        )
    if dist.get_world_size() != world_size:
        raise ValueError(
            f"world_size is {world_size}; it must be {dist.get_world_size()}, the number of ranks "
            "of the default process group, or 1 for a batch of this process alone"
        )
    reduction = "none" if of_rank else "mean"
    value = loss(x, y, distance="dot", reduction=reduction, group=dist.group.WORLD, **numbers)
    return value.sum() / max(len(x), 1) if of_rank else value
