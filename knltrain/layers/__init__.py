"""Layers declare tensors and ops; a program of them is fused, gets its memory, and runs."""

from .base import Layer, Residual, Sequential
from .conv import Conv2d, Linear, Whitening
from .dense import DenseGradient, dense_ops, is_dense
from .fusion import fuse
from .loss import SoftmaxCrossEntropy
from .memory import ALIGN, Memory
from .norm import BatchNorm, LocalResponseNorm
from .pointwise import Dropout, ReLU
from .pool import AvgPool, GlobalAvgPool, MaxPool
from .program import CONVOLUTION, KINDS, UPDATE, Field, Observer, Op, Pass, Program, Tensor, execute, run
from .sharded import ShardedDense, shard_dense

__all__ = [
    "ALIGN", "AvgPool", "BatchNorm", "CONVOLUTION", "Conv2d", "DenseGradient", "Dropout", "Field", "GlobalAvgPool",
    "KINDS", "Layer", "Linear", "LocalResponseNorm", "MaxPool", "Memory", "Observer", "Op", "Pass", "Program",
    "ReLU", "Residual", "Sequential", "ShardedDense", "SoftmaxCrossEntropy", "Tensor", "UPDATE", "Whitening",
    "dense_ops", "execute", "fuse", "is_dense", "run", "shard_dense",
]  # fmt: skip
