"""Shards, the order of their rows, and batches made from them."""

from .arrays import Arrays
from .augment import Augment
from .dataset import DataSet
from .folder import PictureFolder
from .loader import Batches, EvalLoader, Loader
from .mean import read_mean_image
from .pack import pack
from .sampler import Order, eval_rows
from .shards import ShardError
from .synthetic import Synthetic

__all__ = [
    "Arrays", "Augment", "Batches", "DataSet", "EvalLoader", "Loader", "Order", "PictureFolder", "ShardError",
    "Synthetic", "eval_rows", "pack", "read_mean_image",
]  # fmt: skip
