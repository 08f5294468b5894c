"""knltrain: synchronous large-batch training of convolutional networks on many CPU ranks.

`import knltrain as kt` loads nothing else; the names of the Python API (`kt.network`, `kt.Trainer`, …) are loaded when
they are first used. Environment variables that Numba and OpenMP read must be set before that.
"""

import importlib
import sys
import types

__version__ = "0.1.0"

API = (
    "Lars", "Network", "Prediction", "Sgd", "Trainer", "arrays", "constant", "cosine", "data", "evaluate", "export",
    "import_weights", "load", "network", "poly",
)  # fmt: skip
PORTABLE = ("export", "import_weights")  # in a module of their own


def __getattr__(name: str):
    if name in API:
        module = ".tools.portable" if name in PORTABLE else ".api"
        return getattr(importlib.import_module(module, __name__), name)
    if name == "layers":
        return importlib.import_module(".layers", __name__)
    raise AttributeError(f"module 'knltrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *API, "layers"])


class _Package(types.ModuleType):
    """`kt.data` and `kt.evaluate` are functions, although modules of these names are a part of the package."""

    data = property(lambda self: __getattr__("data"), lambda self, module: None)
    evaluate = property(lambda self: __getattr__("evaluate"), lambda self, module: None)


sys.modules[__name__].__class__ = _Package
