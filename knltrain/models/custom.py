"""Networks of the user's own: a function in a Python file, named in a recipe as `my_nets.py:tiny_vgg`."""

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path

from ..layers import Layer, Sequential


def is_custom(name: str) -> bool:
    """Whether a model's name is `FILE.py:FUNCTION`."""
    return ".py:" in name


def find(name: str) -> Callable:
    """The function that `FILE.py:FUNCTION` names. The file is run. Raises ValueError where there is none."""
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"model {name!r}: found no file {path}, expected FILE.py:FUNCTION, relative to the recipe")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(f"model {name!r}: {path} has no function {function!r}; it has {', '.join(names) or 'none'}")
    return found


def make(function: Callable, /, classes: int, input_size: int, **options) -> tuple[Layer, tuple]:
    """The network that `function(classes, ...)` returns, a layer or a list of layers, and its input shape (H, W, 3).

    input_size is passed where the function takes it. Raises ValueError for options that it does not take.
    """
    name = getattr(function, "__name__", "network")
    given = {"classes": classes, "input_size": input_size} | options
    taken = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        unknown = [name for name in options if name not in taken]
        if unknown:
            raise ValueError(f"{name}: unknown option {unknown[0]!r}; it takes {', '.join(taken)}")
        given = {name: value for name, value in given.items() if name in taken}
    layers = function(**given)
    layers = layers if isinstance(layers, Layer) else Sequential(name, *layers)
    return layers, (input_size, input_size, 3)
