"""Put names and texts into words for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_PUNCTUATION = " \t;:!?*#_'\"`´‘’‚‛“”„‟«»‹›()[]{}¿¡…"


def printable_name(name: str) -> str:
    """Convert a file's name to valid text: bytes that are no UTF-8 become hexadecimal escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def one_line(text: str, *, max_letters: int = 500) -> str:
    """Remove line breaks, tabs and control characters from a text, and shorten it.

    Args:
        text: any text, such as the message of another library's error.
        max_letters: the number of letters after which it is cut.
    """
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split())[:max_letters]


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest allowed name, or the list of what is allowed.

    Capitals do not count, and a name that begins like one allowed name alone means it.

    Args:
        name: name that is not allowed.
        allowed: names that are.
    """
    choices = sorted(set(allowed))
    by_small = {choice.casefold(): choice for choice in choices}
    begun = [small for small in by_small if name and small.startswith(name.casefold())]
    near = difflib.get_close_matches(name.casefold(), by_small, n=1, cutoff=0.5)
    if len(begun) == 1 or near:
        return f" Did you mean '{by_small[(begun if len(begun) == 1 else near)[0]]}'?"
    return f" Allowed: {', '.join(choices)}." if choices else " There is none; leave it out."


def strip_marks(text: str) -> str:
    """Return a text without punctuation before and after it; the text itself if nothing is left.

    Signs that change the meaning, such as plus, minus and the point before decimals, stay.
    """
    return text.rstrip(f"{_PUNCTUATION}.,").lstrip(_PUNCTUATION) or text


def several(words: list[str], limit: int = 3) -> str:
    """Return ``a, b, c and 4 more``.

    Args:
        words: words to list.
        limit: number of words that are written out.
    """
    more = len(words) - limit
    return ", ".join(words[:limit]) + (f" and {more} more" if more > 0 else "")
