"""Losses for the trainer of sentence-transformers: columns of texts in, a loss of pairops out.

    from pairops.compat.sentence_transformers import PairedLoss
    loss = PairedLoss(model, pairops.info_nce_loss, temperature=0.05, symmetric=False)
    SentenceTransformerTrainer(model=model, train_dataset=pairs, loss=loss).train()

Its own losses are these:

- MultipleNegativesRankingLoss: the class of that name here, with its arguments; or
  `PairedLoss(model, info_nce_loss, temperature=0.05, symmetric=False)`, where temperature is
  1/scale, and `distance="dot"` is similarity_fct=dot_score.
- GISTEmbedLoss: `info_nce_loss(x, y, temperature=0.01, partition="joint", directions=("xy", "xx",
  "yy"), guide=(u, v))` of pairs, and of triplets with contrast_positives=False and directions
  ("xy", "xx"). u and v are the guide's embeddings, margin is `guide_margin`, and a relative one has
  `guide_relative=True`. Its other cases are other losses: with a margin below 0, or a guide that
  gives a pair 1, rows are negatives of themselves there; of triplets with contrast_positives=True
  positives are not compared with negatives.
- MultipleNegativesSymmetricRankingLoss: the same without `symmetric`.
- Cached…: the same with `mini_batch_size`.
- BatchHardTripletLoss: `LabelledLoss(model, triplet_loss, margin=5, distance="l2",
  normalize=False)`; its cosine distance is `distance="cosine"`.
- BatchHardSoftMarginTripletLoss: the same with `margin=0, soft=True`.
- BatchAllTripletLoss and BatchSemiHardTripletLoss: that of BatchHardTripletLoss with `mining="all"`
  or "semihard", and `reduction="mean_pairs"`.

`group="auto"` is gather_across_devices=True; as there, it changes nothing where no process group is
initialised.

Unlike there: an anchor that has no positive is worth 0, where BatchHard counts it as if its
farthest were at distance 0; with `group` the value is the mean over all processes on every one of
them, and what a loss learns itself gets one gradient on all; a column too many or too few raises;
and nothing is imported of the package, so no particular version of it is needed.
"""

from .columns import LabelledLoss, PairedLoss
from .multiple_negatives import MultipleNegativesRankingLoss

__all__ = ["LabelledLoss", "MultipleNegativesRankingLoss", "PairedLoss"]
