"""The examples run unchanged on pictures, in seconds."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foveate import parts
from foveate.runs.folder import read_json
from foveate.runs.models import find_models

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL: dict[str, Any] = {
    **{"encoder": "small", "encoder__width": 8, "encoder__dim": 16, "epochs": 1, "heatmaps": 1},
    **{"view__patch_px": 32},
}


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs an example; the parts that it adds are removed afterwards."""
    monkeypatch.setattr(parts, "_folders", list(parts.plugin_folders()))

    def run(name: str, *words: Path, **options: Any) -> None:
        runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](*words, **options)

    return run


def test_quickstart(
    main: Callable[..., None],
    picture_table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main("quickstart", picture_table, tmp_path, patches=4, **SMALL)
    output = capsys.readouterr().out
    assert output.startswith("AUROC ")
    assert "['dark' 'plain'] [[0." in output
    assert "P00.png: " in output
    collection = read_json(tmp_path / "first.geojson")
    assert len(collection["features"]) > 0
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")


def test_own_method(
    main: Callable[..., None],
    picture_table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main("own_method", picture_table, tmp_path, **SMALL)
    assert "patches on an even grid, and their mean" in capsys.readouterr().out
    (member,) = find_models(tmp_path / "run").members
    assert member.method.side == 2
    (picture,) = [e for e in read_json(tmp_path / "run/heatmaps/index.json") if e["png"]]
    assert (tmp_path / "run" / "heatmaps" / picture["png"]).is_file()


def test_own_task(main: Callable[..., None], picture_table: Path, tmp_path: Path) -> None:
    main("own_task", picture_table, tmp_path, method="mil_mean", **SMALL)
    (member,) = find_models(tmp_path / "run").members
    assert member.task.focus == 1.0
    assert "auroc" in read_json(tmp_path / "run" / "metrics.json")["metrics"]


def test_own_reader(
    main: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main("own_reader", tmp_path)
    assert capsys.readouterr().out.splitlines() == ["netpbm (64, 96) 3", "(32, 32, 3) uint8"]


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
