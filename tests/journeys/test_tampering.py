"""A changed field of a stored file is refused in one line, or harmless."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import PICTURE_RUN
from foveate.errors import FoveateError
from foveate.runs.card import read_card
from foveate.runs.checkpoint import load_model
from foveate.runs.config import build_config, load_yaml
from foveate.runs.models import find_models
from foveate.runs.plan import make_plan
from foveate.workflows.trained_images import find_trained_images
from helpers.commands import Completed

Command = Callable[..., Completed]
MISSING = object()
VALUES: tuple[Any, ...] = (
    *(MISSING, None, -1, -3.5, 0, 100_000, 10**9, 10**400, 1e300, math.nan, math.inf, -math.inf),
    *("", "x", "../../etc/passwd", "a\nb", True, [], [None], [[1]], [math.nan], {}, {"a": -1}),
)


def field_paths(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of keys to every field and every section."""
    if at:
        yield at
    if isinstance(content, dict):
        for key in content:
            yield from field_paths(content[key], (*at, key))
    elif isinstance(content, list):
        for i in range(min(len(content), 2)):
            yield from field_paths(content[i], (*at, i))


def with_field(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(content)
    parent = changed
    for key in at[:-1]:
        parent = parent[key]
    if value is MISSING:
        del parent[at[-1]]
    else:
        parent[at[-1]] = value
    return changed


def tampered_contents(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield copies of the content with one field changed, and the name of the change."""
    for at in field_paths(content):
        for value in VALUES:
            value_text = "missing" if value is MISSING else repr(value)[:20]
            yield f"{'.'.join(map(str, at))} = {value_text}", with_field(content, at, value)


def read_complaint(act: Callable[[], object], about: str) -> str | None:
    """Return the one-line error of an action, or None if it succeeds; fail otherwise."""
    try:
        act()
    except FoveateError as error:
        text = " ".join(str(error).split())  # as the command line prints it
        for word in ("Error", "Traceback", "NoneType", "object has no"):
            assert word not in text, (about, text)
        return text
    except Exception as error:
        raise AssertionError(f"{about}: {type(error).__name__}: {error}") from error
    return None


@pytest.fixture
def run(picture_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(picture_run, tmp_path / "run")


REFUSED = (
    "provenance.threshold = nan",
    "provenance.threshold = inf",
    "provenance.threshold = -1",
    "provenance.threshold = 100000",
    "provenance.temperature = 0",
    "provenance.temperature = nan",
    "view.patch_px = 100000",
    "view.patch_px = -1",
    "view.spacing_um = -3.5",
    "view.spacing_um = inf",
    "view.glimpse_spacing_um = 0",
    "view.axes = 0",
    "method_options.chunk = -1",
    "method_options.dropout = nan",
    "method_options.chunk = 0",
    "encoder_options.width = -1",
    "encoder_options.width = 1000000000",
    "task_options.positive = []",
    "settled = {}",
    "settled.classes = []",
    "settled.classes.0 = ''",
    "trained_on.side = []",
    "trained_on.channels.0 = -1",
    "assume_spacing_um = -1",
    "sha256 = 'x'",
    "schema = 1000000000",
    "method = '../../etc/passwd'",
    "encoder = '../../etc/passwd'",
)


@pytest.mark.slow
def test_a_changed_model_field_is_refused_or_harmless(run: Path) -> None:
    folder = run / "fold_0" / "model"
    path = folder / "model.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    messages: dict[str, str | None] = {}
    for about, changed in tampered_contents(content):
        path.write_text(json.dumps(changed), encoding="utf-8")
        # The card first: it is cheap, and refuses nearly all before anything is built.
        messages[about] = read_complaint(lambda: read_card(path), about)
        if messages[about] is None:
            messages[about] = read_complaint(lambda: load_model(folder), about)
        message = messages[about]
        assert message is None or "model" in message
    assert len(messages) > 800
    for about in REFUSED:
        assert messages[about] is not None, about
        assert str(folder) in str(messages[about])


def test_a_model_file_that_is_no_json_is_refused(run: Path) -> None:
    path = run / "fold_0" / "model" / "model.json"
    for data in (b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"[" * 100_000, b'"x"'):
        path.write_bytes(data)
        message = read_complaint(lambda: find_models(run), repr(data[:10]))
        assert message is not None
        assert str(path) in message


def test_weights_of_another_model_are_refused(run: Path) -> None:
    folder = run / "fold_0" / "model"
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    card["encoder_options"]["dim"] = 32
    (folder / "model.json").write_text(json.dumps(card), encoding="utf-8")
    message = read_complaint(lambda: load_model(folder), "dim")
    assert message is not None
    assert "does not fit what model.json describes" in message
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    assert "its checksum is not the one" in str(
        read_complaint(lambda: load_model(folder), "weights")
    )


@pytest.mark.slow
def test_a_changed_configuration_key_is_refused_or_harmless(run: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "given.yaml"
    messages: dict[str, str | None] = {}
    for about, changed in tampered_contents(content):
        path.write_text(yaml.safe_dump(changed), encoding="utf-8")
        messages[about] = read_complaint(lambda: build_config(load_yaml(path)), about)
    for about in (
        "view.patch_px = 100000",
        "view.patch_px = -1",
        "view.spacing_um = -3.5",
        "view.spacing_um = nan",
        "method_options.chunk = -1",
        "method_options.dropout = inf",
        "train.lr = nan",
        "train.batch_size = 0",
        "train.epochs = -1",
        "split.folds = 0",
        "split.test_fraction = nan",
        "heatmaps = -1",
        "method = {}",
        "table.path = []",
    ):
        assert messages[about] is not None, about
    for data in (b"", b"- a", b"a: [", b"\xff\xfe\0", b"3", b"{" * 20_000, b"1: 2", b"? [a]\n: b"):
        path.write_bytes(data)
        assert read_complaint(lambda: build_config(load_yaml(path)), repr(data[:10])) is not None


class Quiet:
    """A display that shows nothing."""

    def say(self, text: str) -> None:
        pass

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        pass


@pytest.mark.slow
def test_a_changed_plan_field_is_refused_or_harmless(run: Path, picture_table: Path) -> None:
    config = build_config(load_yaml(run / "config.yaml"))
    path = run / "plan.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    original = path.read_bytes()
    refused = 0
    for about, changed in tampered_contents(content):
        path.write_text(json.dumps(changed), encoding="utf-8")
        refused += read_complaint(lambda: make_plan(config, run, Quiet()), about) is not None
    assert refused > 200
    path.write_bytes(original)
    assert read_complaint(lambda: make_plan(config, run, Quiet()), "whole") is None


def test_a_changed_split_field_is_refused_or_harmless(run: Path) -> None:
    models, path = find_models(run), run / "splits.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    refused = 0
    for about, changed in tampered_contents(content):
        path.write_text(json.dumps(changed), encoding="utf-8")
        refused += read_complaint(lambda: find_trained_images(models, []), about) is not None
    assert refused > 400


@pytest.mark.slow
@pytest.mark.parametrize("data", ["", "[]", "a: [", "3", "folds: 3", "refit: {}"])
def test_a_run_with_a_damaged_configuration_is_refused(
    data: str, run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    (run / "config.yaml").write_text(data, encoding="utf-8")
    images = picture_table.parent / "in"
    for words in (
        ("train", picture_table, "--out", run, *PICTURE_RUN),
        ("predict", run, images, "--out", tmp_path / f"out-{len(data)}"),
    ):
        result = foveate(*words)
        assert result.returncode in (0, 1), result.stderr
        assert "Traceback" not in result.stderr
        assert "fault of foveate" not in result.stderr, result.stderr
