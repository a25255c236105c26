"""Common words for a negative finding."""

from __future__ import annotations

import re

_NEGATIVE = (
    *("0", "no", "false", "negative", "neg", "normal", "benign", "control", "healthy", "wild"),
    *(
        "-",
        "\u2212",
        "\u2013",
        "wt",
        "absent",
        "low",
        "non_neoplastic",
        "no_finding",
        "none",
        "wildtype",
    ),
)


def is_negative(word: str) -> bool:
    """Return whether a label is a common word for a negative finding."""
    small = word.lower()
    return small in _NEGATIVE or re.sub(r"[ -]", "_", small) in _NEGATIVE
