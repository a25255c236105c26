"""The limit --max-failed: numbers, shares, refusals, and runs that may change it."""

from __future__ import annotations

from pathlib import Path

import pytest

import foveate
from foveate.errors import CheckpointError, OptionError, TooManyFailed
from foveate.files.run_layout import RunLayout
from foveate.runs.config import build_config, dump_yaml
from foveate.runs.folder import claim_folder
from foveate.runs.max_failed import check_failed, count_allowed
from foveate.yamltext import read_yaml


@pytest.mark.parametrize(
    ("text", "allowed"),
    [("0", 0), ("5", 5), ("0.1", 4), ("10%", 4), ("12.5 %", 5), (".5", 20), ("0%", 0), ("1%", 0)],
)
def test_numbers_and_shares_are_read(text: str, allowed: int) -> None:
    assert count_allowed(text, 40) == allowed


@pytest.mark.parametrize("text", ["", "-1", "1.5", "100%", "many", "1e3", "nan", "0,1"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="--max-failed: got"):
        count_allowed(text, 40)
    with pytest.raises(OptionError, match="--max-failed: got"):
        foveate.PredictOptions(max_failed=text)
    with pytest.raises(OptionError, match="--max-failed: got"):
        build_config({"table": {"path": "t.csv"}, "max_failed": text})


def test_more_failures_than_allowed_end_the_command() -> None:
    table = Path("out/quarantine.csv")
    check_failed(None, 40, 40, table)
    check_failed("10%", 4, 40, table)
    with pytest.raises(TooManyFailed, match="5 of 40 images failed, more than the 4 that") as told:
        check_failed("10%", 5, 40, table)
    assert "out/quarantine.csv" in str(told.value)


def test_a_run_may_be_continued_with_another_limit(tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "run")

    def claim(**options: object) -> None:
        config = build_config({"table": {"path": "t.csv"}, **options})
        claim_folder(run.folder, config.as_dict(), dump_yaml(config))

    claim(max_failed="3")
    run.plan.write_text("{}")
    claim(max_failed="10%")
    assert read_yaml(run.config)["max_failed"] == "10%"
    claim()
    assert read_yaml(run.config)["max_failed"] is None
    with pytest.raises(CheckpointError, match="method was"):
        claim(method="abmil")
