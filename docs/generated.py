"""What the site takes from the program itself: its commands, the keys of a recipe, and docstrings made fit to print."""

import argparse
import dataclasses
import json
import math
import re
import textwrap

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

from knltrain.arguments import parser
from knltrain.claims.keys import LARGEST, REQUIRED
from knltrain.recipe.config import SECTIONS, rules

REMARKS = re.compile(r"\n\s*((?:Raises|Returns|Cost|Twin|Threads): )")
CODE = re.compile(r"`+([^`]+)`+")
SECTION = re.compile(r"^(Parameters|Returns|Raises|Yields|Notes|Attributes)\n-+$", re.MULTILINE)


def as_restructured(app, what, name, obj, options, lines):
    """Docstrings are plain text: here nothing of it is markup but `code`, and what is laid out stays as it is.

    Sections such as Parameters are left to napoleon, which knows their layout.
    """
    text = "\n".join(lines)
    begin = SECTION.search(text)
    head, tail = (text[: begin.start()], text[begin.start() :]) if begin else (text, "")
    paragraphs = [_paragraph(part) for part in re.split(r"\n\s*\n", head.rstrip()) if part.strip()]
    tail = "\n".join(line if set(line) == {"-"} else _escaped(line) for line in tail.splitlines())
    tail = REMARKS.sub(r"\n\nNotes\n-----\n\1", tail, count=1)  # else they would be taken for a parameter
    lines[:] = "\n\n".join([*paragraphs, tail]).splitlines()


def _paragraph(text):
    """Running text, or where spaces lay it out a literal block, under its first line where that ends in a colon."""
    if not re.search(r"\n |\S {2,}\S|^ ", text):
        return "\n".join(map(_escaped, text.splitlines()))
    first, _, rest = text.partition("\n")
    intro, block = (_escaped(first), rest) if first.endswith(":") and rest else ("", text)
    return intro + "\n\n::\n\n" + textwrap.indent(textwrap.dedent(block), "    ")


def _escaped(line):
    """Code between double backticks, and nothing else that could be markup."""
    parts = CODE.split(line)
    for at in range(0, len(parts), 2):
        parts[at] = re.sub(r"([\\*|`]|_(?!\w))", r"\\\1", parts[at])
        parts[at] = re.sub(r"^(\s*)([-+])(?=\s)", r"\1\\\2", parts[at]) if at == 0 else parts[at]
    for at in range(1, len(parts), 2):
        parts[at] = f"``{parts[at].strip()}``"
        if parts[at + 1][:1].isalnum():
            parts[at] += "\\ "
        if parts[at - 1][-1:].isalnum():
            parts[at] = "\\ " + parts[at]
    return "".join(parts)


class Commands(Directive):
    """A section with the help of every command."""

    def run(self):
        def sections(commands, prefix):
            for action in commands._actions:
                if isinstance(action, argparse._SubParsersAction):
                    for name, sub in action.choices.items():
                        yield from one(sub, f"{prefix} {name}")

        def one(sub, name):
            section = nodes.section(ids=[name.replace(" ", "-")])
            section += nodes.title(text=name)
            sub.formatter_class = lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100)
            section += nodes.literal_block(text=sub.format_help(), language="text")
            yield section
            yield from sections(sub, name)

        return list(sections(parser(), "knltrain"))


class RecipeKeys(Directive):
    """A table a section of the recipe: key and default, meaning, what is allowed."""

    def run(self):
        lines = []
        for section, kind in SECTIONS.items():
            lines += [f"**[{section}]**", "", "| key and default | meaning | allowed |", "| --- | --- | --- |"]
            defaults = {field.name: field.default for field in dataclasses.fields(kind)}
            for name, rule in rules().items():
                part, _, key = name.partition(".")
                if part == section:
                    default = defaults[key]
                    said = key if default is REQUIRED else f"{key} = {toml(default)}"
                    meaning = rule.help.replace("|", "\\|").replace("<", "\\<")
                    lines.append(f"| `{said}` | {meaning} | {allowed(rule, default)} |")
            lines.append("")
        node = nodes.Element()
        self.state.nested_parse(StringList(lines, "knltrain/recipe/config.py"), 0, node)
        return node.children


def toml(value):
    """As a recipe has it."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def allowed(rule, default):
    """The bounds of a key in words."""
    found = []
    if rule.one_of:
        found.append(", ".join(f"`{one}`" for one in rule.one_of))
    elif type(default) in (int, float, tuple):
        found += [f"above {rule.above:g}"] if math.isfinite(rule.above) else []
        found += [f"from {rule.least:g}"] if rule.least and not math.isfinite(rule.above) else []
        found += [f"below {rule.below:g}"] if math.isfinite(rule.below) else []
        found += [f"to {rule.most:,}"] if rule.most != LARGEST and not math.isfinite(rule.below) else []
    return "; ".join([" ".join(found)] * bool(found) + ["free"] * rule.free)
