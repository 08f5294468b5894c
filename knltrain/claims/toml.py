"""Single keys and values of TOML: the text of a `--set` read, and what a run folder's recipe says written."""

import json
import re
import tomllib


def toml_value(text: str):
    """The TOML value that the text of a `--set` is, else the bare text."""
    text = text.strip()
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def toml_key(key: str) -> str:
    """A key as it stands before the `=`, in quotes where it needs them."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_text(key)


def toml_text(value) -> str:
    """What TOML reads as this value: text, number, true or false, or a list of them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_text, value)) + "]"
    return repr(value)
