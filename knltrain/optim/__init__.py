"""What turns gradients into new weights: the schedule of the learning rate, and the optimizers by their names."""

from .adaptive import Lamb, RmspropWarmup
from .average import Average
from .lars import VARIANTS, ZERO_NORMS, Lars, trust_ratio
from .scaling import LossScale
from .schedule import ORIGINS, POLICIES, WARMUPS, learning_rate

# name in a recipe: class; LARS has variants, of which SGD is a case
OPTIMIZERS = {**dict.fromkeys(VARIANTS, Lars), "lamb": Lamb, "rmsprop_warmup": RmspropWarmup}

__all__ = [
    "OPTIMIZERS", "Average", "Lamb", "RmspropWarmup",
    "ORIGINS", "POLICIES", "VARIANTS", "WARMUPS", "ZERO_NORMS", "Lars", "LossScale", "learning_rate", "trust_ratio",
]  # fmt: skip
