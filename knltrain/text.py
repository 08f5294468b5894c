"""What comes from outside, names above all, made fit to be printed."""


def printable(text: str) -> str:
    """The text as one line: whatever is no visible character stands there escaped, `\\n` or `\\x1b`.

    A file may be called `bad\\nknltrain: all is well\\x1b[2A`, and a terminal would believe it.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
