"""What a file says about a network beside its weights: its classes, what is done to a picture, and how to build it.

Three texts, each JSON: `classes`, a list of names; `preprocessing`, for whoever uses the network elsewhere; `knltrain`,
the facts from which it is built again here. They go into the metadata of safetensors and ONNX.
"""

import json
from collections.abc import Mapping

from ..claims.keys import LONGEST, shown


def tell(facts: dict, preprocessing: dict) -> dict[str, str]:
    """The texts for a network's facts (`experiment.network_facts`) and what is done to a picture."""
    own = {name: value for name, value in facts.items() if name != "data.classes"}
    texts = {"classes": facts["data.classes"], "preprocessing": preprocessing, "knltrain": own}
    return {name: json.dumps(value) for name, value in texts.items()}


def heard(about: Mapping[str, str]) -> dict:
    """The facts that the texts of a file claim, {} of a foreign one: the caller checks them as a recipe's.

    Raises ValueError for texts that are not as `tell` writes them.
    """
    facts = _json(about, "knltrain", dict)
    facts.pop("data.classes", None)
    names = _json(about, "classes", list)
    return facts | ({"data.classes": checked_names(names)} if names else {})


def _json(about, name, kind):
    try:
        value = json.loads(about.get(name, "[]" if kind is list else "{}"))
    except (ValueError, RecursionError):
        value = None
    if type(value) is not kind:
        raise ValueError(f"found {name} {shown(about[name])}, expected a {kind.__name__} as JSON")
    return value


def checked_names(names: list) -> list[str]:
    """Names of classes, if they are: texts, none empty, none twice. Raises ValueError."""
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST:
            raise ValueError(f"found class {shown(name)}, expected a name")
    if len(set(names)) != len(names):
        raise ValueError(f"found {len(names)} names of classes, {len(set(names))} different: expected each once")
    return names
