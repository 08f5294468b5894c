"""Normalization: batch norm (with the ReLU and the residual add that follow it) and local response normalization."""

import math

from kernels import (
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


class BatchNorm(Layer):
    """Batch normalization over the images of one slot (Ioffe and Szegedy 2015; ghost batch of Goyal et al. 2017).

    y = relu(gamma * (x - mean) / sqrt(var + eps) + beta + residual), each of affine, relu and residual optional.
    running: weight of the old value in the running statistics that inference uses. after: the Conv2d that makes x and
    runs immediately before: it tells the moments of x, so that x is not read for them.
    """

    def __init__(self, name, affine=True, eps=1e-5, running=0.9, relu=False, gamma=1.0, after=None):
        super().__init__(name)
        self.after = after
        if after:
            after.gives_moments = True
        self.affine, self.eps, self.running, self.relu, self.gamma_value = affine, eps, running, relu, gamma

    def plan(self, x, parameters, arena, residual=None):
        channels = x.shape[-1]
        shape = (channels,)
        self.gamma = self.beta = None
        if self.affine:
            one, zero = initialisers.constant(shape, self.gamma_value), initialisers.constant(shape, 0.0)
            self.gamma = parameters.add(Parameter(f"{self.name}.gamma", shape, one, decay=False, adapt=False))
            self.beta = parameters.add(Parameter(f"{self.name}.beta", shape, zero, decay=False, adapt=False))
        self.mean = parameters.add(Statistic(f"{self.name}.mean", shape, 0.0, self.running))
        self.var = parameters.add(Statistic(f"{self.name}.var", shape, 1.0, self.running))
        self.x, self.residual, self.y, self.arena = x, residual, arena.take(x.shape), arena
        self.reads_y = residual is not None  # for the mask of the ReLU, which otherwise follows from x
        self.rows = (math.prod(x.shape[:-1]), channels)
        self.scratch = batchnorm_workspace(*self.rows)
        arena.need_scratch(self.scratch + (self.after.moments_floats if self.after else 0))
        return self.y

    def plan_backward(self, dy, arena, need_dx=True, onto=None):
        """Returns dx, or (dx, gradient of the residual) where there is one; the latter is worked out in dy's place."""
        self.dy = dy
        self.dx = arena.take(dy.shape) if self.residual else dy
        self.give_y(arena)
        return (self.dx, self.dy) if self.residual else self.dx

    def _flat(self, buffer):
        return None if buffer is None else buffer.array.reshape(self.rows)

    def _affine(self):
        return (self.gamma.w, self.beta.w) if self.affine else (None, None)

    def forward(self, run):
        x, y, residual = self._flat(self.x), self._flat(self.y), self._flat(self.residual)
        gamma, beta = self._affine()
        if run.train:
            scratch = self.arena.workspace[: self.scratch]
            mean, var = self.mean.batch, self.var.batch
            told = (self.after.moments, self.after.kernel.moments_counts) if self.after else (None, None)
            batchnorm_forward(x, gamma, beta, self.eps, y, mean, var, scratch, residual, self.relu, *told)
        else:
            mean, var = self.mean.running, self.var.running
            batchnorm_inference(x, gamma, beta, mean, var, self.eps, y, residual=residual, relu=self.relu)

    def backward(self, ready):
        dgamma, dbeta = (self.gamma.dw, self.beta.dw) if self.affine else (None, None)
        dy = self._flat(self.dy)
        y, dresidual = (self._flat(self.y), dy) if self.residual else (None, None)
        batchnorm_backward(
            self._flat(self.x), y, dy, *self._affine(), self.mean.batch, self.var.batch, self.eps, self._flat(self.dx),
            dgamma, dbeta, self.arena.workspace[: self.scratch], self.relu, dresidual,
        )  # fmt: skip
        for parameter in self.own_parameters():
            ready(parameter)

    def own_parameters(self):
        return [self.gamma, self.beta] if self.affine else []


class LocalResponseNorm(Layer):
    """y = x * (k + alpha/n * sum of x^2 over n neighbouring channels)^-beta (Krizhevsky et al. 2012; as in Caffe)."""

    def __init__(self, name, n=5, alpha=1e-4, beta=0.75, k=1.0):
        super().__init__(name)
        self.n, self.alpha, self.beta, self.k = n, alpha, beta, k

    def plan(self, x, parameters, arena):
        self.x, self.y, self.scale = x, arena.take(x.shape), arena.take(x.shape)
        return self.y

    def plan_backward(self, dy, arena, need_dx=True, onto=None):
        self.dy, self.dx = dy, arena.take(dy.shape)
        arena.give(dy)
        arena.give(self.scale)
        self.give_y(arena)
        return self.dx

    def forward(self, run):
        lrn_forward(self.x.array, self.n, self.alpha, self.beta, self.k, self.y.array, self.scale.array)

    def backward(self, ready):
        x, y, scale = self.x.array, self.y.array, self.scale.array
        lrn_backward(x, y, scale, self.dy.array, self.n, self.alpha, self.beta, self.dx.array)
