"""Batch norm forward and backward, kernel after kernel, as an unfused program runs them."""

import numpy as np

from knltrain.kernels import (
    batchnorm_backward,
    batchnorm_factors,
    batchnorm_moments,
    batchnorm_normalize,
    batchnorm_plan,
    batchnorm_statistics,
    batchnorm_sums,
)


def scratch(shape):
    """Nothing may depend on what was there."""
    return np.full(shape, np.nan, np.float32)


def forward(x, gamma, beta, eps, y, mean, var, residual=None, relu=False, residual_table=None):
    """Writes y, mean and var; returns the table."""
    plan = batchnorm_plan(x.size // x.shape[-1], x.shape[-1])
    moments, table = scratch(plan.moments_shape), scratch(plan.table_shape)
    batchnorm_moments(x, moments)
    batchnorm_statistics(moments, plan.moments_counts, x.size // x.shape[-1], gamma, beta, eps, mean, var, table)
    batchnorm_normalize(x, table, y, residual, relu, residual_table)
    return table


def backward(x, y, dy, gamma, var, eps, table, dx, dgamma, dbeta, relu=False, dresidual=None):
    """Writes dx, dgamma, dbeta and dresidual; y: None where there is no residual."""
    plan = batchnorm_plan(x.size // x.shape[-1], x.shape[-1])
    sums, factors = scratch(plan.moments_shape), scratch(plan.table_shape)
    batchnorm_sums(x, y, dy, table, sums, relu, dresidual)
    batchnorm_factors(sums, x.size // x.shape[-1], gamma, var, eps, factors, dgamma, dbeta)
    passed = dy if dresidual is None else dresidual
    batchnorm_backward(x, passed, table, factors, dx, relu and dresidual is None)
