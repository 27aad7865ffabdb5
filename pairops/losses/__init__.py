"""The losses, each as its paper writes it: statistics from `row_stats`, the rest in plain torch."""

from typing import TYPE_CHECKING

from .alignment import *
from .circle import *
from .conditional_transport import *
from .contrastive import *
from .decoupled_contrastive import *
from .distillation import *
from .hard_negative import *
from .hashing import *
from .hydra import *
from .info_nce import *
from .lifted_structure import *
from .mann_whitney import *
from .multi_positive import *
from .multi_similarity import *
from .neighbours import *
from .objective.registration import LOSSES as LOSSES
from .proxy import *
from .ranking import *
from .regression import *
from .scored_pairs import *
from .siglip import *
from .soft_topk import *
from .soft_triplet import *
from .softmax import *
from .teacher_similarities import *
from .triplet import *
from .uniformity import *

if not TYPE_CHECKING:  # a type checker follows the lines above, and would take this for all
    __all__ = sorted(LOSSES)
