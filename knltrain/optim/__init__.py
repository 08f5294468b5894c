"""What turns gradients into new weights: the schedule of the learning rate, and LARS, of which SGD is a case."""

from .lars import VARIANTS, ZERO_NORMS, Lars, trust_ratio
from .scaling import LossScale
from .schedule import ORIGINS, POLICIES, WARMUPS, learning_rate

__all__ = [
    "ORIGINS", "POLICIES", "VARIANTS", "WARMUPS", "ZERO_NORMS", "Lars", "LossScale", "learning_rate", "trust_ratio",
]  # fmt: skip
