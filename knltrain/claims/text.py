"""What comes from outside, names above all, made fit to be printed."""

LONGEST = 2000  # characters


def printable(text: str) -> str:
    """The text as one line: what is no visible character is escaped, as `\\n`, and the middle of a long one left out.

    A file may be called `bad\\nknltrain: all is well\\x1b[2A`, and a terminal would believe it.
    """
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return visible(text, "")


def visible(text: str, besides: str = "\n") -> str:
    """The text with every character escaped that is neither visible nor one of `besides`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in besides else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "shard"), counted(1200, "file")
    ('1 shard', '1,200 files')
    """
    return f"{number:,} {what}{'s' * (number != 1)}"


def between(numbers) -> str:
    """The least and the most of whole numbers, once where they are equal.

    >>> between([3, 1200]), between([7, 7])
    ('3 to 1,200', '7')
    """
    ends = dict.fromkeys((min(numbers), max(numbers)))
    return " to ".join(f"{end:,}" for end in ends)
