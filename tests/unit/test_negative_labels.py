"""The positive class is the one whose counterpart is a common word for a negative finding."""

from __future__ import annotations

import pytest

from foveate.tasks.binary import BinaryTask


@pytest.mark.parametrize(
    ("negative", "positive"),
    [("-", "+"), ("non-neoplastic", "HPV"), ("normal", "abnormal"), ("0", "1")],
)
def test_the_negative_word_comes_first(negative: str, positive: str) -> None:
    for classes in ((negative, positive), (positive, negative)):
        assert list(BinaryTask(classes=classes).classes) == [negative, positive]
