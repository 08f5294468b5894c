"""What large-batch experience says against a recipe: each finding with its fact, where that is from, and a cure.

RULES is the table, one function a rule. A finding is no error: a recipe that reproduces a paper has its paper's faults.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data import DataSet
from ..models import declare
from ..optim.options import VARIANTS
from .config import Recipe, at_phase, load_recipe
from .experiment import build_network
from .phases import Leg, legs

IMAGENET = 1_281_167  # training images
# MLPerf's reference convergence points of ResNet-50, 75.9 % top-1 (mlcommons/logging, training_4.0.0/rcps_resnet.json)
EPOCHS_NEEDED = {
    1_632: 35.0, 3_264: 35.2, 4_096: 40.0, 8_192: 42.0, 13_056: 45.4, 32_768: 56.0, 49_152: 68.0, 58_880: 79.9,
    65_536: 84.5, 67_840: 85.9,
}  # fmt: skip
JUMP = 0.05  # share of the rate that may be lost where warm-up ends
FEW = 16  # images of a batch norm: at 16 it loses 0.1 points, at 8 already 1.2


class Finding(NamedTuple):
    """rule: its name; fact: what the recipe does and what that did elsewhere; source; cure: what to set."""

    rule: str
    fact: str
    source: str
    cure: str

    def __str__(self):
        return f"{self.rule}: {self.fact} ({self.source}); {self.cure}"


@dataclass(frozen=True)
class Case:
    """A recipe and the number of its images; what rules ask of it."""

    recipe: Recipe
    images: int
    classes: int

    @cached_property
    def leg(self) -> Leg:
        """Its steps, or the first ones."""
        return legs(self.recipe, self.images)[0]

    @cached_property
    def parameters(self) -> list:
        """The tensors of the network, not allocated."""
        return declare(*build_network(self.recipe, self.classes)).parameters.parameters

    @property
    def is_imagenet_resnet50(self) -> bool:
        """Whether the published figures of ResNet-50 on ImageNet are those of this recipe."""
        model = self.recipe.model
        return self.images > 10**6 and model.name in ("resnet50", "resnet") and model.args.get("depth", 50) == 50

    @property
    def is_lars(self) -> bool:
        """Whether trust ratios are on."""
        return self.recipe.optim.trust_coefficient > 0 and self.recipe.optim.variant in VARIANTS


# ---- rules: each yields (fact, source, cure) ----------------------------------------------------------------------


def rate_without_warmup(case: Case):
    """A rate for a large batch from the first step on."""
    batch, schedule = case.recipe.batch.global_batch, case.recipe.schedule
    scaled = batch >= 1024 and (case.is_lars or schedule.base_lr >= 0.05 * batch / 256)
    if scaled and not schedule.warmup_epochs:
        fact = f"rate {schedule.base_lr:g} at batch {batch:,} from the first step on; ResNet-50 lost 1.1 points so"
        yield fact, "Goyal et al. 2017: error at 8,192 24.84 %, 23.74 with warm-up", "set schedule.warmup_epochs = 5"


def decay_on_norm_and_bias(case: Case):
    """Decay of what has no reason to be small, at batches where it was seen to matter."""
    batch, optim = case.recipe.batch.global_batch, case.recipe.optim
    if optim.decay_bias_and_norm and optim.weight_decay and batch >= 16_384:
        fact = f"biases and batch norm decay at batch {batch:,}; without, AlexNet at 65,536 gained 1.3 points"
        yield fact, "Jia et al. 2018", "set optim.decay_bias_and_norm = false"


def zeros_at_raw_rate(case: Case):
    """LARS on a tensor of zeros, which has no trust ratio."""
    optim, first = case.recipe.optim, max(case.leg.rate(step) for step in (0, 1))
    rule = VARIANTS.get(optim.variant)
    if not case.is_lars or rule.skip or rule.clip or optim.zero_norm != "raw" or first <= 0.1:
        return
    zero = [p.name for p in case.parameters if len(p.shape) == 1 and not np.any(p.init(np.random.default_rng(0)))]
    if zero:
        fact = f"{zero[0]} (of {len(zero)}) begins with zeros: no trust ratio, and a first step at rate {first:g}"
        yield fact, "all published LARS take 1 for 0 / 0", 'set optim.zero_norm = "trust", or variant = "mlperf"'


def gamma_held_at_zero(case: Case):
    """LARS that adapts a gamma of 0 moves it in proportion to itself."""
    optim = case.recipe.optim
    if not case.is_lars or VARIANTS[optim.variant].skip or optim.zero_norm != "trust":
        return
    if any(p.name.endswith(".gamma") and not np.any(p.init(np.random.default_rng(0))) for p in case.parameters):
        fact = f"{optim.variant} adapts gammas that begin at 0: they hardly move, and no gradient passes them"
        yield fact, "docs/results/study.md", 'set model.zero_gamma = false, or optim.variant = "mlperf"'


def rate_jump(case: Case):
    """The rate drops where warm-up ends, as the decay counted from step 0."""
    schedule = case.recipe.schedule
    steps = case.leg.derived.rate.warmup_steps
    if schedule.policy in ("poly", "cosine") and schedule.origin == "zero" and 0 < steps < case.leg.stop:
        after = case.leg.rate(steps)
        if after < (1 - JUMP) * schedule.base_lr:
            fact = f"the rate jumps from {schedule.base_lr:g} to {after:.4g} where warm-up ends, after step {steps}"
            source = "Caffe counts poly from step 0, MLPerf from the end of warm-up"
            yield fact, source, 'set schedule.origin = "warmup", unless the source has the jump'


def warmup_too_long(case: Case):
    """The run ends before its rate is reached."""
    last = legs(case.recipe, case.images)[-1]
    if last.warming(last.stop - 1):
        schedule = last.recipe.schedule
        fact = f"the run ends within its {schedule.warmup_epochs:g} epochs of warm-up: {schedule.base_lr:g} never comes"
        source = "Goyal et al. 2017 warm up for 5 of 90 epochs"
        yield fact, source, f"set schedule.warmup_epochs = {case.recipe.run.epochs / 10:.3g}"


def slot_too_small(case: Case):
    """Batch norm over too few images."""
    slot = case.recipe.batch.slot_batch
    normalized = any(".bn" in p.name for p in case.parameters) or case.recipe.model.name == "alexnet_bn"
    if slot < FEW and normalized:
        fact = f"batch norm over {slot} images; ResNet-50's error is 23.6 % with 32, 24.8 with 8, 27.3 with 4"
        yield fact, "Wu and He 2018 (Group Normalization), table 2", f"set batch.slot_batch = {2 * FEW}"


def augmentation_too_weak(case: Case):
    """Crops alone do not reach what ResNet-50 is known for."""
    level = case.recipe.data.augmentation
    if case.is_imagenet_resnet50 and level in ("none", "crop_flip"):
        fact = f"augmentation {level}: ResNet-50 ends at 73.0 % top-1, with scale and aspect at 75.3 to 76.4"
        yield fact, "You et al. 2017; Goyal et al. 2017", 'set data.augmentation = "scale_aspect", with whole pictures'


def epochs_too_few(case: Case):
    """Fewer epochs than MLPerf's reference needs at this batch."""
    batch, epochs = case.recipe.batch.global_batch, case.recipe.run.epochs
    needed = float(np.interp(batch, list(EPOCHS_NEEDED), list(EPOCHS_NEEDED.values())))
    if case.is_imagenet_resnet50 and epochs < needed - 0.5:
        fact = f"{epochs:g} epochs at batch {batch:,}; MLPerf's reference needs {needed:.1f} to reach 75.9 %"
        yield fact, "its reference convergence points, training 4.0", f"set run.epochs = {np.ceil(needed):g}"


def sgd_beyond_its_batch(case: Case):
    """Linear scaling ends at 8,192."""
    batch, optim = case.recipe.batch.global_batch, case.recipe.optim
    sgd = optim.variant in VARIANTS and not case.is_lars and optim.momentum <= 0.9
    if case.is_imagenet_resnet50 and sgd and batch > 13_056:
        fact = f"SGD with momentum {optim.momentum:g} at batch {batch:,}; ResNet-50 lost 1 point at 16,384"
        source = "Goyal et al. 2017: error 24.79 %, 23.74 at 8,192; Nado et al. 2021 reach 75.9 % with momentum 0.976"
        yield fact, source, "set optim.trust_coefficient = 0.001 (recipes resnet50_16k_lars, resnet50_32k_lars)"


def ratio_without_bound(case: Case):
    """`nus` divides the gradients of the past by the one of today."""
    optim = case.recipe.optim
    if case.is_lars and optim.variant == "nus" and not optim.epsilon and case.images < 100_000:
        fact = f"variant nus without epsilon on {case.images:,} images: once these are known, a ratio has no bound"
        yield fact, "docs/training.md, traps", "set optim.epsilon = 1e-5"


def fp16_without_scale(case: Case):
    """Small gradients are zero in fp16."""
    if case.recipe.compute.precision == "fp16" and case.recipe.compute.loss_scale == 1:
        fact = "fp16 with loss_scale 1: gradients below 6e-8 are zero, and a large batch has many"
        yield fact, "Micikevicius et al. 2018", 'set compute.loss_scale = "dynamic"'


RULES: tuple[Callable[[Case], Iterator[tuple[str, str, str]]], ...] = (
    rate_without_warmup, decay_on_norm_and_bias, zeros_at_raw_rate, gamma_held_at_zero, rate_jump, warmup_too_long,
    slot_too_small, augmentation_too_weak, epochs_too_few, sgd_beyond_its_batch, ratio_without_bound,
    fp16_without_scale,
)  # fmt: skip


def lint(recipe: Recipe, images: int = IMAGENET, classes: int = 1000) -> list[Finding]:
    """The findings of all rules, each once, in all phases of a run on so many images.

    Raises ValueError for a recipe that could not be trained: of an unknown network, or a batch larger than the data.
    """
    first = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, max_steps=0))
    found = {}
    for number in range(len(recipe.phases) + 1):
        case = Case(at_phase(first, number) if number else first, images, classes)
        for rule in RULES:
            if number == 0 or rule in (slot_too_small, sgd_beyond_its_batch):  # what else a phase is, is meant
                for finding in rule(case):
                    found.setdefault(rule.__name__, Finding(rule.__name__.replace("_", "-"), *finding))
    return list(found.values())


def lint_file(path, overrides=(), images: int = 0) -> str:
    """What `knltrain lint` prints. images: 0 for those of the recipe's shards, or ImageNet's where none are here."""
    recipe, classes, where = load_recipe(path, overrides), 1000, "as told"
    if not images:
        images, where = IMAGENET, "ImageNet's, as its shards are not here"
        if any(Path(recipe.data.train).glob("*.h5")):
            data = DataSet(recipe.data.train)
            images, classes, where = len(data), len(data.class_names), f"those of {recipe.data.train}"
    findings = lint(recipe, images, classes)
    count = f"{len(findings)} finding{'s' * (len(findings) != 1)} by {len(RULES)} rules"
    lines = [f"{path}: {count}, with {images:,} images, {where}"]
    for one in findings:
        lines += ["", f"{one.rule}: {one.fact}", f"  source: {one.source}", f"  cure: {one.cure}"]
    return "\n".join(lines)
