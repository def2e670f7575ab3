"""Hostile strings, and a walk that puts one into every free string of a record."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from typing import Any

from tl_audit.records.base import Record

CORPUS = {
    "script": "</title></style></script><script>alert(1)</script>",
    "handler": '"><img src=x onerror=alert(1)>',
    "single quote": "' onmouseover='alert(1)",
    "refresh": '<meta http-equiv="refresh" content="0;url=https://example.org/">',
    "svg": "</text></svg><svg onload=alert(1)><style>*{display:none}</style>",
    "table": "</td></tr></table></details></figure></article></section></main>",
    "comment": "<!-- --><![CDATA[ x ]]>",
    "template": "{{ 7*7 }}{% for x in y %}${x}#{x}<%= 1 %>",
    "entity": "&lt;b&gt;&#x3C;&amp;&quot;",
    "link": "javascript:alert(1) data:text/html,<script>1</script>",
    "escape": "\x1b[31mred\x1b[0m\x07\x00\x7f",
    "bidi": "user\u202egnp.exe\u2066x\u2069\u200b\ufeff",
    "console": "[/oops][link=https://example.org]x[/link]",
    "formula": "=HYPERLINK('https://example.org') +1 -1 @x",
    "not xml": "\x0b\x0c\ufffe\uffff\x85\u2028",
    "path": "../../x\\..\\CON /etc/passwd",
    "order": "::error::x",
    "long": "w" * 2000,
    "right to left": "שלום عربى 中文 🐝",
    "blank": " \t\n ",
}

_FREE_KEYS = ("slice", "n", "clusters", "groups", "class_counts", "environment", "params")
_VOID = frozenset(["meta", "link", "br", "img", "wbr", "hr", "input"])


def replace_strings(record: Any, change: Callable[[str], str]) -> Any:
    """The record with every string changed that is not a literal, a pattern, or a picture. Found by the types of the fields."""
    if isinstance(record, Record):
        values = {}
        for name, info in type(record).model_fields.items():
            value = getattr(record, name)
            fixed = "Literal" in repr(info.annotation) or any("pattern" in repr(m) for m in info.metadata) or name == "png"
            if isinstance(value, Mapping):
                keys = name in _FREE_KEYS
                value = {(change(k) if keys else k): replace_strings(v, change) for k, v in value.items()}
            elif not (fixed and (value is None or isinstance(value, str))):
                value = replace_strings(value, change)
            values[name] = value
        return type(record)(**values)
    if isinstance(record, str):
        return change(record)
    if isinstance(record, Mapping):
        return {k: replace_strings(v, change) for k, v in record.items()}
    if isinstance(record, (list, tuple)):
        return type(record)(replace_strings(v, change) for v in record)
    return record


def harmless_twin(text: str) -> str:
    """Letters only, of the same length and with the same blanks."""
    return re.sub(r"\S", lambda m: "x" if ord(m.group()) < 0x2E80 else "草", text)


class Shape(HTMLParser):
    """Elements and attribute names in order; ``wbr`` left out, because it follows the underscores of a text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.items: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.text: list[str] = []
        self.declared = 0
        self.plain_text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "wbr":
            self.items.append(f"<{tag} {' '.join(sorted(k for k, _ in attrs))}>")
        if tag not in _VOID:
            self.open.append(tag)
            if self.declared or dict(attrs).get("data-origin") == "declared":
                self.declared += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.items.append(f"<{tag} {' '.join(sorted(k for k, _ in attrs))}/>")

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self.open[-3:]} at {self.getpos()}")
            return
        self.open.pop()
        self.declared = max(0, self.declared - 1)
        self.items.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if not self.declared and (not self.open or self.open[-1] not in ("style", "script")):
            self.plain_text.append(data)


def shape(html: str) -> Shape:
    parsed = Shape()
    parsed.feed(html)
    parsed.close()
    return parsed
