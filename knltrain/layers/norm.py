"""Normalization: batch norm (with the ReLU and the residual add that follow it) and local response normalization."""

import math

from knltrain.kernels import (
    batchnorm_backward,
    batchnorm_forward,
    batchnorm_inference,
    batchnorm_workspace,
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
        y = self.output(program, x.shape)
        self.x, self.residual, self.y = x.view(*self.rows), residual and residual.view(*self.rows), y.view(*self.rows)
        reads = {"x": self.x} | ({"residual": self.residual} if residual else {})
        others = {"eps": self.eps, "relu": self.relu} | self._vectors("batch" if program.train else "running")
        op = Op(self, MEMORY, batchnorm_inference, reads, {"y": self.y}, others, uses=self.learned)
        if program.train:
            op.kernel, op.passes = batchnorm_forward, ((("x",), ()), (tuple(reads), ("y",)))
            others["workspace"] = self.scratch("workspace", batchnorm_workspace(*self.rows))
        program.forward.append(op)
        return y

    def backward(self, program, dy):
        """dx, or (dx, gradient of the residual) where there is one: the gradient behind the ReLU."""
        shape, dy = dy.shape, dy.view(*self.rows)
        dx = self.gradient(program, "dx", shape)
        reads, writes = {"x": self.x, "dy": dy}, {"dx": dx.view(*self.rows)}
        others = {"eps": self.eps, "relu": self.relu} | self._vectors("batch")
        others["workspace"] = self.scratch("workspace", batchnorm_workspace(*self.rows))
        fields = [Field(parameter, "dw") for parameter in self.learned] or [None, None]
        op = Op(self, MEMORY, batchnorm_backward, reads, writes, others, uses=self.learned)
        op.passes = ((("x", "dy"), ()), (("x", "dy"), ("dx",)))
        op.overwrites, dresidual = {"dx": ("dy",)}, None
        if self.residual:  # y: for the mask of the ReLU, which otherwise follows from x
            dresidual = self.gradient(program, "dresidual", shape)
            reads["y"], writes["dresidual"] = self.y, dresidual.view(*self.rows)
            op.passes = ((("x", "y", "dy"), ("dresidual",)), (("x", "dresidual"), ("dx",)))
            op.overwrites = {"dx": ("x",), "dresidual": ("dy",)}
        else:
            others["y"] = None
        (writes if self.learned else others).update(zip(("dgamma", "dbeta"), fields, strict=True))
        program.backward.append(op)
        return (dx, dresidual) if self.residual else dx

    def _learned(self, program, name, value, rate=1.0):
        shape = (self.rows[1],)
        constant = initialisers.constant(shape, value)
        return program.add(Parameter(f"{self.name}.{name}", shape, constant, decay=False, adapt=False, rate=rate))

    def _vectors(self, which) -> dict:
        """gamma, beta, mean and var, of the `batch` or the `running` ones."""
        gamma, beta = (Field(parameter, "w") for parameter in self.learned) if self.learned else (None, None)
        return {"gamma": gamma, "beta": beta, "mean": Field(self.mean, which), "var": Field(self.var, which)}


class LocalResponseNorm(Layer):
    """y = x * (k + alpha/n * sum of x^2 over n neighbouring channels)^-beta (Krizhevsky et al. 2012; as in Caffe)."""

    def __init__(self, name, n=5, alpha=1e-4, beta=0.75, k=1.0):
        super().__init__(name)
        self.constants = {"size": n, "alpha": alpha, "beta": beta, "k": k}

    def forward(self, program, x):
        self.x, y = x, self.output(program, x.shape)
        program.forward.append(Op(self, MEMORY, lrn_forward, {"x": x}, {"y": y}, self.constants))
        return y

    def backward(self, program, dy):
        dx = self.gradient(program, "dx", dy.shape)
        reads, others, overwrites = {"x": self.x, "dy": dy}, self.constants | {"rectified": False}, {"dx": ("dy",)}
        program.backward.append(Op(self, MEMORY, lrn_backward, reads, {"dx": dx}, others, overwrites=overwrites))
        return dx
