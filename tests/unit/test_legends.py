"""Legends of the report's figures lie beside the data, whatever the data are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from foveate.reports.figures import _STYLE, plot_training
from foveate.reports.run_files import read_run
from foveate.reports.sections import answers_by_frozen_start
from foveate.runs.folder import write_json
from foveate.tasks.classes.curves import LabelledAnswers
from foveate.tasks.classes.figures import (
    plot_calibration,
    plot_distribution,
    plot_precision_recall,
    plot_roc,
)
from foveate.tasks.regression import _draw_answers

sys.path.insert(0, str(Path(__file__).parent))
from test_report import handmade_run, page_of


def draw(figure_size, function, *args):
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=figure_size, dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        function(figure, *args)
        figure.canvas.draw()
    return figure


def random_answers(k, folds, seed=0):
    rng = np.random.default_rng(seed)
    target = np.arange(60) % k
    prob = rng.dirichlet(np.ones(k), 60)
    return LabelledAnswers(
        [f"class number {i}" for i in range(k)], prob, target, [str(i % folds) for i in range(60)]
    )


def figures(tmp_path, folds):
    bins = [{"mean_prob": p, "fraction": 1 - p, "n": 3} for p in np.linspace(0.05, 0.95, 10)]
    run = read_run(handmade_run(tmp_path / f"run{folds}", folds=folds))
    small = (5.2, 4.0)
    yield draw((10.6, 6.2), plot_training, run.folds)
    yield draw(small, plot_calibration, bins, [])
    yield draw(small, plot_calibration, bins, bins[::2])
    yield draw(small, _draw_answers, np.random.default_rng(0).normal(size=(30, 2)))
    for k in (2, 3, 8):
        answers = random_answers(k, folds)
        yield draw(small, plot_roc, answers, {"fold 1": 0.5})
        yield draw(small, plot_precision_recall, answers, {})
        yield draw(small, plot_distribution, answers, [0.5] * folds)


@pytest.mark.parametrize("folds", [1, 3, 10])
def test_legends_are_outside_the_axes_and_inside_the_figure(tmp_path, folds):
    n_legends = 0
    for figure in figures(tmp_path, folds):
        renderer = figure.canvas.get_renderer()
        for axes in figure.axes:
            legend = axes.get_legend()
            if legend is None:
                continue
            n_legends += 1
            box = legend.get_window_extent(renderer)
            label = axes.xaxis.label.get_window_extent(renderer)
            assert box.y1 <= label.y0 + 1, "the legend covers the label of its axis"
            assert axes.get_window_extent(renderer).height > 90, "the axes are squeezed"
            assert box.y0 >= 0, "the legend is cut off below"
            assert box.x0 >= 0, "the legend is cut off at the left"
            assert box.x1 <= figure.bbox.x1, "the legend is cut off at the right"
    assert n_legends >= 13


def test_a_kept_frozen_start_is_stated_instead_of_changes_of_zero(tmp_path):
    run = handmade_run(tmp_path / "run", folds=2)
    assert not answers_by_frozen_start(read_run(run))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    metrics["gain"] = {name: {"value": 0.0, "lo": 0.0, "hi": 0.0} for name in metrics["gain"]}
    write_json(run / "metrics.json", metrics)
    text = page_of(run).visible_text()
    assert "The frozen start was kept: no answer" in text
    assert "+0.000" not in text
