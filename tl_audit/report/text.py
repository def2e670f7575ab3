"""Outside text made visible: control, bidirectional and other unseen characters become escapes before a reader meets them."""

from __future__ import annotations

import unicodedata

__all__ = ["shorten", "visible"]

# Zero-width joiner and non-joiner stay: several scripts cannot be written without them.
_UNSEEN = frozenset(
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028\u2029\u2060\u2061\u2062\u2063\u2064\u3164\ufeff\uffa0"
)


def _hidden(char: str) -> bool:
    if char in "\n\t":
        return False
    point = ord(char)
    if char in _UNSEEN or point in range(0x202A, 0x202F) or point in range(0x2066, 0x2070) or point & 0xFFFE == 0xFFFE:
        return True
    return unicodedata.category(char) in ("Cc", "Cs") or point in range(0xFFF9, 0xFFFC) or point in range(0xE0000, 0xE0080)


def visible(text: str) -> str:
    r"""The text with unseen characters as ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``. Line feeds and tabs stay.

    Examples
    --------
    >>> visible("a\u202eb")
    'a\\u202eb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char.encode("unicode_escape", "surrogatepass").decode("ascii") if _hidden(char) else char for char in text)


def shorten(text: str, most: int) -> str:
    """The text on one line, cut at a word end where there is one near, with an ellipsis where it was cut."""
    flat = " ".join(visible(text).split())
    if len(flat) <= most:
        return flat
    cut = flat[: most - 1]
    space = cut.rfind(" ")
    return (cut[:space] if space > most * 0.6 else cut).rstrip(" ,;:–-") + "…"
