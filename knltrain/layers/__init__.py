"""Layers: arrays become tensors with owners, kernels become steps of a plan."""

from .base import Layer, Pass, Residual, Sequential
from .conv import Conv2d, Linear
from .loss import SoftmaxCrossEntropy
from .norm import BatchNorm, LocalResponseNorm
from .pointwise import Dropout, ReLU
from .pool import AvgPool, GlobalAvgPool, MaxPool

__all__ = [
    "AvgPool",
    "BatchNorm",
    "Conv2d",
    "Dropout",
    "GlobalAvgPool",
    "LocalResponseNorm",
    "Layer",
    "Linear",
    "MaxPool",
    "Pass",
    "ReLU",
    "Residual",
    "Sequential",
    "SoftmaxCrossEntropy",
]
