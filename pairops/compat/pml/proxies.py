"""NCA and the losses against proxies of pytorch-metric-learning, as functions of pairops."""

from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor

from pairops import losses as ours

from .served import AVERAGE, DIVISOR, MEAN, SUM, Batch, Served, mean_nonzero


class NCALoss(Served, losses.NCALoss):
    """pytorch-metric-learning's loss, computed by `pairops.nca_loss`."""

    reduces = (MEAN, SUM, AVERAGE)

    def parts(self: Any, batch: Batch) -> dict[str, Any]:
        if len(batch.x) <= 1:
            return dict(self.zero_losses())
        same_rows = batch.ref_emb is batch.x
        batch = Batch(batch.x, batch.labels, batch.ref_emb, batch.ref_labels, same_rows)
        values = self.of(ours.nca_loss, batch, scale=self.softmax_scale)
        return {"loss": self.of_findable(batch, values)}

    def of_findable(self: Any, batch: Batch, values: Tensor) -> dict[str, Any]:
        """Return what reducers get, over the anchors that have positives.

        Args:
            batch: what the loss was called with.
            values: (N,) a loss for each anchor.
        """
        reducer = self.reducer_of("loss")
        if type(reducer) is AVERAGE:
            return batch.reduced(mean_nonzero(values))
        return batch.of_tuples(reducer, values, (batch.counts()[0] > 0).long())


class ProxyNCALoss(NCALoss, losses.ProxyNCALoss):
    """pytorch-metric-learning's loss, computed by `pairops.proxy_nca_loss`."""

    alone = True

    def parts(self: Any, batch: Batch) -> dict[str, Any]:
        self.cast_types(batch.x.dtype, batch.x.device)
        of_proxies = torch.arange(len(self.proxies), device=batch.x.device)
        given = {"proxies": self.proxies, "scale": self.softmax_scale}
        values = self.of(ours.proxy_nca_loss, batch, **given)
        against = Batch(batch.x, batch.labels, self.proxies, of_proxies, same_rows=False)
        result = {"loss": self.of_findable(against, values)}
        self.add_weight_regularization_to_loss_dict(result, self.proxies)
        return result


class ProxyAnchorLoss(Served, losses.ProxyAnchorLoss):
    """pytorch-metric-learning's loss, computed by `pairops.proxy_anchor_loss`."""

    reduces = (DIVISOR,)
    distances = ("cosine", "dot")
    alone = True

    def parts(self: Any, batch: Batch) -> dict[str, Any]:
        self.cast_types(batch.x.dtype, batch.x.device)
        given = {"proxies": self.proxies, "alpha": self.alpha, "margin": self.margin}
        value = self.of(ours.proxy_anchor_loss, batch, **given, reduction="mean")
        result = {"pos_loss": batch.reduced(value)}
        self.add_weight_regularization_to_loss_dict(result, self.proxies)
        return result
