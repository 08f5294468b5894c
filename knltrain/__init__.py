"""knltrain: synchronous large-batch training of convolutional networks on many CPU ranks."""

__version__ = "0.1.0"
