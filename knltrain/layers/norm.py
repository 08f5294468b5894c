"""Normalization: batch norm (with the ReLU and the residual add that follow it) and local response normalization."""

import math

from knltrain.kernels import (
    batchnorm_backward,
    batchnorm_factors,
    batchnorm_inference,
    batchnorm_moments,
    batchnorm_normalize,
    batchnorm_plan,
    batchnorm_statistics,
    batchnorm_sums,
    lrn_backward,
    lrn_forward,
)

from ..arena import Parameter, Statistic
from . import init as initialisers
from .base import Layer
from .program import MEMORY, Field, Op


class BatchNorm(Layer):
    """Batch normalization over the images of one slot (Ioffe and Szegedy 2015; ghost batch of Goyal et al. 2017).

    y = relu(gamma * (x - mean) / sqrt(var + eps) + beta + residual), each of affine, relu and residual optional.
    running: weight of the old value in the running statistics that inference uses. beta_rate: see `Parameter.rate`.
    """

    def __init__(self, name, affine=True, eps=1e-5, running=0.9, relu=False, gamma=1.0, beta_rate=1.0):
        super().__init__(name)
        self.beta_rate = beta_rate
        self.affine, self.eps, self.running, self.relu, self.gamma_value = affine, eps, running, relu, gamma

    def forward(self, program, x, residual=None):
        channels = x.shape[-1]
        self.rows = (math.prod(x.shape[:-1]), channels)
        self.learned = ()
        if self.affine:
            gamma = self._learned(program, "gamma", self.gamma_value)
            self.learned = gamma, self._learned(program, "beta", 0.0, self.beta_rate)
        self.mean = program.add(Statistic(f"{self.name}.mean", (channels,), 0.0, self.running))
        self.var = program.add(Statistic(f"{self.name}.var", (channels,), 1.0, self.running))
        y = self.output(program, x.shape, bool(residual) and self.relu)
        self.x, self.residual, self.y = x.view(*self.rows), residual and residual.view(*self.rows), y.view(*self.rows)
        reads = {"x": self.x} | ({"residual": self.residual} if residual else {})
        kernel, others, uses = batchnorm_inference, self._vectors("running"), self.learned
        if program.train:
            self._statistics(program)
            kernel, others, uses = batchnorm_normalize, {"table": self.table}, ()
        others["relu"] = self.relu
        program.forward.append(Op(self, MEMORY, kernel, reads, {"y": self.y}, others, uses=uses))
        return y

    def _statistics(self, program):
        """The moments of x, and what follows from them."""
        self.plan = plan = batchnorm_plan(*self.rows)
        moments = self.scratch("moments", plan.moments_shape)
        self.table = self.tensor("table", plan.table_shape)
        others = {"moments": moments, "counts": plan.moments_counts, "pixels": self.rows[0]} | self._vectors("batch")
        first = Op(self, MEMORY, batchnorm_moments, {"x": self.x}, {"moments": moments}, passes=((("x",), ()),))
        then = Op(self, MEMORY, batchnorm_statistics, {}, {"table": self.table}, others, uses=self.learned)
        program.forward.extend((first, then))

    def backward(self, program, dy):
        """dx, or (dx, gradient of the residual) where there is one: the gradient behind the ReLU."""
        shape, dy = dy.shape, dy.view(*self.rows)
        dx = self.gradient(program, "dx", shape)
        sums = self.scratch("sums", self.plan.moments_shape)
        factors = self.scratch("factors", self.plan.table_shape)
        reads, writes, others = {"x": self.x, "dy": dy}, {"sums": sums}, {"table": self.table, "relu": self.relu}
        first = Op(self, MEMORY, batchnorm_sums, reads, writes, others, ((("x", "dy"), ()),))
        last = Op(self, MEMORY, batchnorm_backward, dict(reads), {"dx": dx.view(*self.rows)}, dict(others))
        last.others["factors"], last.overwrites = factors, {"dx": ("dy",)}
        if self.residual:  # y: for the mask of the ReLU, which otherwise follows from x
            dresidual = self.gradient(program, "dresidual", shape)
            reads["y"], writes["dresidual"] = self.y, dresidual.view(*self.rows)
            first.passes, first.overwrites = ((("x", "y", "dy"), ("dresidual",)),), {"dresidual": ("dy",)}
            last.reads["dy"], last.others["relu"], last.overwrites = writes["dresidual"], False, {"dx": ("x",)}
        else:
            others["y"] = None
        program.backward.extend((first, self._factors(sums, factors), last))
        return (dx, dresidual) if self.residual else dx

    def _factors(self, sums, factors) -> Op:
        vectors = self._vectors("batch")
        others = {name: vectors[name] for name in ("gamma", "var", "eps")} | {"sums": sums, "pixels": self.rows[0]}
        fields = (Field(parameter, "dw") for parameter in self.learned)
        writes = {"factors": factors} | dict(zip(("dgamma", "dbeta"), fields, strict=False))
        return Op(self, MEMORY, batchnorm_factors, {}, writes, others, uses=self.learned[:1])

    def _learned(self, program, name, value, rate=1.0):
        shape = (self.rows[1],)
        constant = initialisers.constant(shape, value)
        return program.add(Parameter(f"{self.name}.{name}", shape, constant, decay=False, adapt=False, rate=rate))

    def _vectors(self, which) -> dict:
        """What x is normalized by, with the `batch` statistics or the `running` ones."""
        gamma, beta = (Field(parameter, "w") for parameter in self.learned) if self.learned else (None, None)
        statistics = {"mean": Field(self.mean, which), "var": Field(self.var, which), "eps": self.eps}
        return {"gamma": gamma, "beta": beta} | statistics


class LocalResponseNorm(Layer):
    """y = x * (k + alpha/n * sum of x^2 over n neighbouring channels)^-beta (Krizhevsky et al. 2012; as in Caffe)."""

    def __init__(self, name, n=5, alpha=1e-4, beta=0.75, k=1.0):
        super().__init__(name)
        self.constants = {"size": n, "alpha": alpha, "beta": beta, "k": k}

    def forward(self, program, x):
        self.x, y = x, self.output(program, x.shape, as_read=True)
        program.forward.append(Op(self, MEMORY, lrn_forward, {"x": x}, {"y": y}, self.constants))
        return y

    def backward(self, program, dy):
        dx = self.gradient(program, "dx", dy.shape)
        reads, others, overwrites = {"x": self.x, "dy": dy}, self.constants | {"rectified": False}, {"dx": ("dy",)}
        program.backward.append(Op(self, MEMORY, lrn_backward, reads, {"dx": dx}, others, overwrites=overwrites))
        return dx
