"""A few lines of YAML cannot unfold to more than memory holds."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from foveate.errors import CheckpointError, FoveateError, OptionError
from foveate.runs.config import load_yaml
from foveate.yamltext import parse_yaml, read_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)
)
MERGES = "m0: &m0 {x: 1, y: 2}\n" + "".join(
    f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    "text", [LAUGHS, "a: &a [*a]", "- " * 5000, "[" * 5000, "a: " + "b" * 300_000]
)
def test_what_unfolds_is_refused_at_once(text: str, tmp_path: Path) -> None:
    path, begun = tmp_path / "c.yaml", time.process_time()
    path.write_text(text)
    with pytest.raises(OptionError, match="not YAML"):
        load_yaml(path)
    with pytest.raises(CheckpointError, match="not YAML"):
        read_yaml(path)
    assert time.process_time() - begun < 20


def test_merged_keys_do_not_double_for_ever(tmp_path: Path) -> None:
    path, begun = tmp_path / "c.yaml", time.process_time()
    path.write_text(MERGES)
    with contextlib.suppress(OptionError):  # later versions of PyYAML merge equal keys at once
        load_yaml(path)
    assert time.process_time() - begun < 20


def test_aliases_of_a_usual_kind_are_read() -> None:
    text = "split: &s {folds: 3, seed: 1}\ntrain: {<<: *s, lr: 1}\n"
    assert parse_yaml(text)["train"] == {"folds": 3, "seed": 1, "lr": 1}


def test_a_long_message_keeps_its_beginning_and_its_remedy() -> None:
    long = OptionError(f"train.lr: got '{'a' * 100_000}', expected a number")
    assert len(str(long)) < 1300
    assert str(long).startswith("train.lr: got 'aaa")
    assert str(long).endswith("aaa', expected a number")
    assert str(FoveateError("short")) == "short"
