"""Options that a method leaves to the images: its own numbers, and those of a plug-in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from foveate.errors import OptionError
from foveate.images.likeness import ImageFacts
from foveate.loading.scan import ViewOptions, choose_view
from foveate.methods.glimpse import Glimpse
from foveate.methods.glimpse_zoom import GlimpseZoom
from foveate.methods.mil_mean import MilMean
from foveate.parts import add_plugin_folder
from foveate.runs.config import build_config
from foveate.runs.plan import make_plan

OPEN = {"patches": 0, "eval_patches": 0, "survey": 0}


def facts(
    *shape: int, spacing: float, unit: Literal["um", "px"] = "um", kind: str = "slide"
) -> ImageFacts:
    return ImageFacts(shape, (spacing,) * len(shape), unit, kind, "reader")


SLIDES = (facts(80_000, 100_000, spacing=0.5), facts(60_000, 70_000, spacing=0.25))
RADIOGRAPHS = (facts(3000, 2500, spacing=1.0, unit="px", kind="picture"),) * 3
THUMBNAILS = tuple(facts(side, 128, spacing=1.0, unit="px", kind="picture") for side in (96, 128))
BIOPSIES = (facts(1500, 1200, spacing=0.5),)
SCANS = tuple(
    facts(slices, 512, 512, spacing=um, kind="volume")
    for slices, um in ((300, 800.0), (120, 700.0))
)
CUBES = (facts(28, 28, 28, spacing=1000.0, kind="volume"),)


@pytest.mark.parametrize(
    ("images", "patch_px", "numbers"),
    [
        (SLIDES, 0, (11, 23, 119)),
        (SLIDES, 512, (2, 4, 22)),
        (SLIDES, 64, (32, 64, 256)),
        (RADIOGRAPHS, 0, (11, 23, 119)),
        (BIOPSIES, 0, (11, 23, 84)),
        (THUMBNAILS, 0, (1, 1, 1)),
        (SCANS, 0, (18, 36, 183)),
        (CUBES, 0, (1, 1, 1)),
    ],
)
def test_glimpse_chooses_as_many_patches_as_are_worth_their_time(
    images: Sequence[ImageFacts], patch_px: int, numbers: tuple[int, int, int]
) -> None:
    view = choose_view(images, ViewOptions(patch_px=patch_px or None))
    chosen = Glimpse.choose_options({**OPEN, "explore": 0.0}, view, images)
    assert chosen == dict(zip(OPEN, numbers, strict=True))


def test_numbers_that_the_user_gives_are_left_alone() -> None:
    view = choose_view(SLIDES, ViewOptions())
    options = {"patches": 5, "eval_patches": 0, "looks": 8}
    assert GlimpseZoom.choose_options(options, view, SLIDES) == {"eval_patches": 23}
    assert MilMean.choose_options({"chunk": 0}, view, SLIDES) == {}


METHOD = '''
"""A method whose window follows from the images."""
from torch import nn

from foveate.methods.base import AbstractMethod, Prediction


class Windowed(AbstractMethod):
    """Answer from the glimpse.

    Args:
        window: side of a window; 0 lets the images decide.
    """

    reads = frozenset({"glimpse"})
    summary = "a window"

    def __init__(self, *, encoder, heads, window: int = 0):
        super().__init__()
        self.encoder, self.window = encoder, window
        self.head = nn.Linear(encoder.dim, sum(head.size for head in heads))

    @classmethod
    def choose_options(cls, options, view, images):
        """Take the number of images and axes."""
        return {"OPTION": VALUE} if options["window"] == 0 else {}

    def forward(self, batch):
        """Answer."""
        return Prediction(self.head(self.encoder(batch.glimpses()[0])))
'''


def plan_with(
    option: str, value: str, table: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **own: Any
) -> tuple[dict[str, Any], list[str]]:
    """Make the plan of a run with a plug-in from a scratch folder; return options and lines."""
    monkeypatch.setattr("foveate.parts._folders", [])
    plugin = folder / "plug-ins" / "methods" / f"windowed_{option}.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(METHOD.replace("OPTION", option).replace("VALUE", value), encoding="utf-8")
    add_plugin_folder(folder / "plug-ins")
    lines: list[str] = []

    class Listening:
        def say(self, text: str) -> None:
            lines.append(text)

        def bar(self, title: str, done: float, total: int, note: str = "") -> None:
            pass

    run = folder / "run"
    run.mkdir()
    config = build_config(
        {
            "table": {"path": str(table)},
            "method": f"windowed_{option}",
            "method_options": own,
            "encoder": "small",
            "encoder_options": {"width": 8, "dim": 16},
        }
    )
    plan = make_plan(config, run, Listening())
    assert make_plan(config, run, Listening()).config == plan.config, "read from the folder"
    stored = json.loads((run / "plan.json").read_text(encoding="utf-8"))["method_options"]
    assert stored.items() <= plan.config.method_options.items()
    return plan.config.method_options, lines


def test_a_plug_in_chooses_its_options_from_the_images(
    tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = "1000 * len(images) + view.axes"
    options, lines = plan_with("window", value, tiny_cohort, tmp_path / "a", monkeypatch)
    assert options == {"window": 24_002}
    assert "from the images: window 24002" in lines
    fixed, lines = plan_with("window", value, tiny_cohort, tmp_path / "b", monkeypatch, window=3)
    assert fixed == {"window": 3}
    assert not [line for line in lines if line.startswith("from the images")]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("windw", "1", "no option 'method.windw'. Did you mean 'window'"),
        ("window", "'wide'", "method.window: got 'wide', expected a whole number"),
    ],
)
def test_an_option_that_the_method_lacks_is_refused(
    option: str,
    value: str,
    message: str,
    tiny_cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(OptionError, match=message):
        plan_with(option, value, tiny_cohort, tmp_path, monkeypatch)
    assert not (tmp_path / "run" / "plan.json").exists()
