"""HTML as a tree, so that nothing from outside is ever pasted into text: what is put in as text comes out as text."""

from xml.etree.ElementTree import Element, tostring

from ..claims.text import visible


def h(tag: str, *children, **attributes) -> Element:
    """An element. children: elements, text, numbers, lists of these, or None for nothing.

    Attributes by their names; `class_` is class, `data_x` is data-x; None leaves one out.
    """
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None}
    node = Element(tag, {name: visible(str(value)) for name, value in given.items()})
    _fill(node, children)
    return node


def _fill(node, children):
    for child in children:
        if isinstance(child, Element):
            node.append(child)
        elif isinstance(child, (list, tuple)):
            _fill(node, child)
        elif child is not None:
            text = visible(str(child))
            if len(node):
                node[-1].tail = (node[-1].tail or "") + text
            else:
                node.text = (node.text or "") + text


def table(head: list, rows: list[list]) -> Element:
    """A table that scrolls where the page is narrow. Columns whose name begins with # are numbers, and stand right."""
    sides = ["number" if str(name).startswith("#") else None for name in head]
    names = [name.removeprefix("#") if isinstance(name, str) else name for name in head]
    top = h("thead", h("tr", [h("th", name, class_=side) for name, side in zip(names, sides, strict=True)]))
    body = [h("tr", [h("td", cell, class_=side) for cell, side in zip(row, sides, strict=True)]) for row in rows]
    return h("div", h("table", top if any(names) else None, h("tbody", body)), class_="scroll")


def document(title: str, style: str, script: str, policy: str, body: list) -> str:
    """A whole page. style and script are ours, and are not escaped."""
    head = [
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("meta", http_equiv="Content-Security-Policy", content=policy),
        h("title", title),
    ]
    sheet, code = Element("style"), Element("script")
    sheet.text, code.text = style, script
    page = h("html", h("head", head, sheet), h("body", body, code), lang="en")
    return "<!DOCTYPE html>\n" + tostring(page, encoding="unicode", method="html") + "\n"
