"""Networks in other programs' files: weights under torchvision's names, and the inference network as ONNX."""

from .about import checked_names, heard, tell
from .files import FORMATS, look, write
from .graph import write_onnx
from .names import Entry, entries, give, spelled, take

__all__ = [
    "Entry", "FORMATS", "checked_names", "entries", "give", "heard", "look", "spelled", "take", "tell", "write",
    "write_onnx",
]  # fmt: skip
