"""LARS (You, Gitman, Ginsburg 2017, arXiv:1708.03888) with momentum. SGD is the same code with the trust off.

The published implementations do not agree, so each is a row of options.VARIANTS. Gradients are those of the global
batch, reduced and averaged before `step`: then every rank computes the same ratios to the bit, and replicas stay equal.
"""

import math
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from knltrain.kernels import combine_norms, momentum_update, squared_norm_chunks

from ..arena import Parameter
from ..layers import UPDATE, Observer, Op, run
from .options import RULES, Optim


class Lars:
    """Updates parameters in place: `step(lr)` reads dw, changes w and v.

    With lr the learning rate, m momentum, b weight decay, n trust coefficient, e epsilon, each tensor in this order:

    1. trust ratio   r = n |w| / (|g| + b |w| + e)     larc: r = (1 - m) n |w| / (|g| + e)
                     where |w| or |g| is 0, by zero_norm: "raw" r = 1; "trust" r = n, larc: (1 - m) n
    2. decay         d = g + b w
    3. buffer        v = m v + lr r d                  larc_clip: v = m v + min(lr, r) d; nus: v = m v + d
    4. weights       w = w - v                         nus: w = w - lr r v
       Nesterov      w = w - (m v + what d added to v in line 3), for nus times lr r

    caffe2017  You et al., Intel Caffe: every tensor has its ratio, biases and batch norm too.
    mlperf     MLPerf's reference (TensorFlow): tensors with adapt=False have r = 1 and b = 0.
    larc_clip  NVIDIA Caffe's LARC "clip": every tensor; the ratio can only lower the rate.
    larc_scale the same with the policy "scale": the rate is lr r.
    nus        NUS and Intel's MLPerf code, "scaled momentum": as mlperf, but the rate stands outside the buffer, so a
               change of lr acts on the whole past at once. Its step is lr n |w| |v| / |g|, without bound where g
               vanishes but v does not: give it an epsilon when the training loss can reach 0.

    Trust coefficient 0 is SGD: r = 1 and the rate is lr, in every variant. decay=False exempts a tensor from line 2 but
    not from b in line 1 (in Caffe b is the solver's); decay_bias_and_norm makes every tensor decay.

    momentum_correction (Goyal et al. 2017): while lr rises, that is in warm-up, m in line 3 is m lr / previous_lr, so
    that the past counts at the new rate. It needs a buffer proportional to lr: caffe2017 or mlperf.

    end_momentum, if not 0: momentum goes evenly from m to it over the run (NVIDIA Caffe's policy "poly" of power 1).

    lr is that of the step times the tensor's own `rate`, as Caffe's lr_mult.

    The rate of the last step is the only `state` beside v: a checkpoint stores it. trust_ratios holds r by name, of the
    last step.

    options: in their ranges, as `recipe.config.checked` sees to.
    """

    name = "update"
    states: ClassVar[tuple[str, ...]] = ()  # what it keeps of a parameter beside v

    def __init__(self, parameters: Iterable[Parameter], options: Optim):
        self.parameters, self.options, self.rule = list(parameters), options, RULES[options.variant]
        self.momentum = options.momentum
        self.count, self.epoch, self._previous_lr = 0, 0.0, 0.0
        self.trust_ratios: dict[str, float] = {}
        self.observer: Observer | None = None
        self._scale = 1.0
        self._ops: dict[tuple, Op] = {}

    def observe(self, observer: Observer | None):
        """From now on `observer` is told of every op that runs; None: nobody."""
        self.observer = observer

    def state(self) -> dict:
        """What `restore` takes."""
        return {"previous_lr": self._previous_lr}

    def restore(self, state: dict):
        """Go on from `state`; from the begin where it says nothing."""
        self._previous_lr = state.get("previous_lr", 0.0)

    def check_start(self, *rates: float):
        """Raise ValueError where a tensor of zeros would step at a raw rate above 1: see `trust_ratio`.

        rates: of the first two steps, in which every tensor has its first gradient; gammas of 0 hold it up by one.
        """
        if max(rates) <= 1 or self.rule.clip or self.options.zero_norm != "raw":
            return
        for p in self.parameters:
            if self.adapts(p) and not p.w.any():
                raise ValueError(
                    f"{p.name} begins with zeros, thus without a trust ratio: its raw rate would be {max(rates):g}, "
                    'expected at most 1; set optim.zero_norm="trust", or a variant that skips biases and batch norm'
                )

    def at(self, done: int, epoch: float, progress: float):
        """The step that follows is the one after so many; progress: of the run, 0 to 1."""
        self.count, self.epoch = done, epoch
        begin, end = self.options.momentum, self.options.end_momentum
        if end:
            self.momentum = begin + (end - begin) * progress

    def step(self, lr: float, parameters: Iterable[Parameter] | None = None):
        """One update of every parameter from its gradient; `parameters`: the same ones, in the order they are ready."""
        self.begin(lr)
        for p in self.parameters if parameters is None else parameters:
            self.update(p, combine_norms(self.measure(p)) if self.adapts(p) else None)

    def norms(self, p: Parameter) -> tuple[float, float]:
        """Squared, of a parameter and its gradient; the latter is not finite where one element is not."""
        return combine_norms(self.measure(p))

    def measure(self, p: Parameter, part: slice = slice(None)) -> np.ndarray:
        """The sums of squares that `update` wants of the elements `part`, by chunk: (chunks, 2) float64."""
        sums = [self._measure(p, piece) for piece in p.pieces(part)]
        return sums[0] if len(sums) == 1 else np.concatenate(sums)

    def _measure(self, p: Parameter, piece: slice) -> np.ndarray:
        return self._run(p, squared_norm_chunks, "wg", part=piece)

    def begin(self, lr: float, scale: float = 1.0):
        """A step at this rate begins: `update` follows, once for every element of every parameter.

        scale: of the loss, thus of all gradients and norms, a power of two. It is taken out where numbers are
        multiplied anyway: d/scale = (g + scale b w) / scale to the bit, as long as nothing is a denormal.
        """
        self._lr, self._momentum, self._scale = lr, self.momentum, scale
        if self.options.momentum_correction and 0 < self._previous_lr < lr:
            self._momentum *= lr / self._previous_lr
        self._previous_lr = lr

    def adapts(self, p: Parameter) -> bool:
        """Whether `update` wants the norms of this parameter."""
        return self.options.trust_coefficient != 0 and (p.adapt or not self.rule.skip)

    def update(self, p: Parameter, norms: tuple[float, float] | None, part: slice = slice(None)):
        """Update the elements `part`, in memory order, of a parameter; norms: squared, of all of w and its gradient."""
        rate = self._rate(p, norms)
        inside, outside = (rate, 1.0) if self.rule.lr_in_buffer else (1.0, rate)
        rates = {"momentum": self._momentum, "weight_decay": self._decay(p) * self._scale}
        rates |= {"gradient_scale": inside / self._scale, "step_scale": outside, "nesterov": self.options.nesterov}
        self._run(p, momentum_update, "wgv", "wv", part, **rates)

    def _run(self, p: Parameter, kernel, reads: str, writes="", part=slice(None), **numbers):
        """Run a kernel on the elements `part` of w, g and v of a parameter, as an op; returns what it returns."""
        key = p.name, kernel, part.start, part.stop
        op = self._ops.get(key)
        if op is None:
            arrays = {"w": p.w, "g": p.gradient, "v": p.v, "s": p.states.get("second")}
            arrays = {name: arrays[name].reshape(-1)[part] for name in reads}
            op = Op(self, UPDATE, kernel, arrays, {name: arrays[name] for name in writes}, {}, uses=(p,))
            op.bind()
            self._ops[key] = op
        op.arguments.update(numbers)
        return run(op, self.observer)

    def _decay(self, p: Parameter) -> float:
        decays = p.decay and (p.adapt or not self.rule.skip)
        return self.options.weight_decay if decays or self.options.decay_bias_and_norm else 0.0

    def _rate(self, p: Parameter, norms) -> float:
        """lr times the trust ratio, or the smaller of the two; plain lr where there is no trust."""
        lr, o = self._lr * p.rate, self.options
        if not self.adapts(p):
            return lr
        ww, gg = norms
        coefficient, decay = o.trust_coefficient, o.weight_decay
        if self.rule.larc:
            coefficient, decay = (1 - self.momentum) * coefficient, 0.0
        g_norm = math.sqrt(gg) / self._scale
        ratio = trust_ratio(math.sqrt(ww), g_norm, coefficient, decay, o.epsilon, o.zero_norm)
        self.trust_ratios[p.name] = ratio
        return min(lr, ratio) if self.rule.clip else lr * ratio


def trust_ratio(w_norm, g_norm, coefficient: float, decay: float, epsilon: float, zero_norm: str = "raw") -> float:
    """coefficient * |w| / (|g| + decay * |w| + epsilon); where a norm is 0, 1 ("raw") or the coefficient ("trust").

    At |w| = 0 the formula gives 0: a bias that starts at zero would never move. But 1, as in all published code, means
    the raw learning rate, 32 in AlexNet's recipe at batch 32,768: hence the skip lists, and Caffe's biases that start
    at 0.01 and 0.1. The coefficient moves it as plain SGD at lr * coefficient would.
    """
    if w_norm > 0 and g_norm > 0:
        return coefficient * w_norm / (g_norm + decay * w_norm + epsilon)
    return 1.0 if zero_norm == "raw" else coefficient
