"""Retrieval metrics: Recall@K, MRR, R-precision and MAP@R, by counting ranks."""

from .hubs import dual_softmax
from .metrics import Retrieval, average_precisions, evaluate, first_ranks

__all__ = ["Retrieval", "average_precisions", "dual_softmax", "evaluate", "first_ranks"]
