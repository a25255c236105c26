"""Compare spellings of column names, labels and patients that mean the same."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

from foveate.wording import strip_marks

_CYRILLIC = str.maketrans("АВЕКМНОРСТУХІЈЅаеорсухіјѕ", "ABEKMHOPCTYXIJSaeopcyxijs")
_GREEK = str.maketrans("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "ABEZHIKMNOPTYXo")
_LATIN = _CYRILLIC | _GREEK
"""Latin letters by Cyrillic and Greek letters that look the same."""
_LATIN_SMALL = {ord(chr(k).casefold()): chr(v).casefold() for k, v in _LATIN.items()}

_NO_DECIMALS = r"(?:\.0+|,(?!000$)0+)?"
"""Zeros that add nothing: those of ``1.0`` and ``1,00``, but not of ``1,000``."""
_WHOLE = re.compile(rf"([+-]?)0*(\d+){_NO_DECIMALS}")
_NUMBERED = re.compile(rf"([^\W\d_]*)[ _-]?0*(\d+){_NO_DECIMALS}")

_MINUS = "\u2212"
"""The minus sign, which is no dash for Unicode."""

_MISREAD_AS = ("cp1252", "mac_roman")
"""Encodings as which programs misread UTF-8, so that ``möglich`` becomes ``mÃ¶glich``."""
_MAX_MISREADINGS = 3


def clean(text: str) -> str:
    """Normalise a text: composed letters (NFC), single blanks, no invisible characters."""
    visible = (c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    return " ".join("".join(visible).split())


def plain_name(column: str) -> str:
    """Normalise a column's name: no capitals, and ``_`` for blanks, dots and dashes."""
    return "_".join(re.split(r"[\s._-]+", clean(column).lower().strip(" ._-")))


def label_key(label: str) -> str:
    """Return a key that is equal for spellings of one label: ``1``, ``1.0`` and ``01``; blanks.

    Letters of other alphabets that look like Latin ones are equal to these, and letters whose
    encoding was misread (``mÃ¶glich``) to those that they were.
    """
    text = _compatible(label).translate(_LATIN)
    number = _WHOLE.fullmatch(text)
    return f"{number[1].replace('+', '')}{number[2]}" if number else text


def patient_key(patient: str) -> str:
    """Return a key that is equal for spellings of one patient: ``P01``, ``p 01``; ``1``, ``01``.

    Letters of other alphabets that look like Latin ones are equal to these, and letters whose
    encoding was misread (``MÃ¼ller``) to those that they were.
    """
    text = _compatible(patient).casefold().translate(_LATIN_SMALL)
    number = _NUMBERED.fullmatch(text)
    return f"{number[1]}{number[2]}" if number else text.replace(" ", "")


def loose_key(label: str) -> str:
    """Return a key that is equal for labels that differ in capitals, blanks, dashes or marks only.

    Marks are punctuation before and after the label, as in ``tumor.`` or ``tumor (?)``.
    """
    return re.sub(r"(?<=\w)[ _-](?=\w)", "", strip_marks(label_key(label).casefold()))


def has_look_alikes(text: str) -> bool:
    """Return whether a text holds letters that only look like Latin ones."""
    return text.translate(_LATIN) != text


def _compatible(text: str) -> str:
    """Normalise a text so that wide letters become plain ones (NFKC), dashes and minus ``-``."""
    plain = unicodedata.normalize("NFKC", clean(_mend_encoding(text)))
    return clean(
        "".join("-" if c == _MINUS or unicodedata.category(c) == "Pd" else c for c in plain)
    )


def _mend_encoding(text: str) -> str:
    """Return the text that a program misread, once or several times, in a wrong encoding."""
    for _ in range(_MAX_MISREADINGS):
        mended = next(filter(None, (_read_as_utf8(text, wrong) for wrong in _MISREAD_AS)), text)
        if mended == text:
            break
        text = mended
    return text


def _read_as_utf8(text: str, wrong: str) -> str | None:
    """Return the text that is read as `wrong` where it is UTF-8; None where it is not."""
    try:
        if wrong == "cp1252":  # Windows shows bytes that cp1252 lacks as control characters.
            raw = b"".join(
                c.encode("latin-1") if "\x80" <= c <= "\x9f" else c.encode(wrong) for c in text
            )
        else:
            raw = text.encode(wrong)
        return raw.decode("utf-8")
    except UnicodeError:
        return None


def one_spelling(words: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """Choose one spelling for all words with the same key: the most frequent one.

    A word whose encoding was misread is chosen only where there is no other.

    Args:
        words: the words with repetitions; their order has no influence.
        key: returns a key that is equal for words that mean the same.

    Returns:
        the chosen spelling, after `clean`, by word.
    """
    counts = Counter(words)
    groups: dict[str, list[str]] = defaultdict(list)
    for word in counts:
        groups[key(word)].append(word)
    return {
        word: clean(min(group, key=lambda w: (_mend_encoding(w) != w, -counts[w], len(w), w)))
        for group in groups.values()
        for word in group
    }


def respelt_groups(spelling: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return the groups of different words that got one spelling, the chosen one first.

    Args:
        spelling: the result of `one_spelling`.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for word in sorted(spelling):
        groups[spelling[word]].append(word)
    return [
        (chosen, *(w for w in group if w != chosen))
        for chosen, group in sorted(groups.items())
        if len(group) > 1
    ]
