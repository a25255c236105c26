"""The Python surface: a classifier in the manner of scikit-learn, commands as functions."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

import foveate as fv
from foveate.cli import cli
from foveate.errors import OptionError, TableError, UnknownName, UnreadableImage
from foveate.runs.folder import read_rows
from helpers.commands import Completed

OPTIONS = {
    **{"encoder": "small", "encoder__width": 8, "encoder__dim": 16, "epochs": 1, "heatmaps": 2},
    **{"view__patch_px": 32},
}


@pytest.fixture(scope="module")
def updates() -> list[fv.ProgressUpdate]:
    return []


@pytest.fixture(scope="module")
def fitted(
    picture_table: Path, tmp_path_factory: pytest.TempPathFactory, updates: list[fv.ProgressUpdate]
) -> fv.Classifier:
    out = tmp_path_factory.mktemp("python") / "run"
    classifier = fv.Classifier("mil_mean", out=out, on_progress=updates.append, **OPTIONS)
    frame = pd.read_csv(picture_table)
    paths = [picture_table.parent / path for path in frame["path"]]
    assert classifier.fit(paths, list(frame["label"])) is classifier
    return classifier


def images(table: Path, n: int) -> list[Path]:
    return [table.parent / path for path in pd.read_csv(table)["path"][:n]]


# -- fitted ---------------------------------------------------------------------------------------


def test_a_fitted_classifier_behaves_like_scikit_learn(
    fitted: fv.Classifier, picture_table: Path, updates: list[fv.ProgressUpdate]
) -> None:
    check_is_fitted(fitted)
    assert is_classifier(fitted)
    assert fitted.classes_.tolist() == ["dark", "plain"]
    assert 0 <= fitted.metrics_["auroc"]["lo"] <= fitted.metrics_["auroc"]["value"] <= 1
    assert (Path(fitted.run_) / "report.html").is_file()
    assert {"training: training"} & {p.title for p in updates} or updates[-1].done == updates[
        -1
    ].total
    paths = images(picture_table, 4)
    shares = fitted.predict_proba(paths)
    assert shares.shape == (4, 2)
    assert shares.dtype == np.float64
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_array_equal(fitted.predict_proba([str(path) for path in paths]), shares)
    np.testing.assert_array_equal(fitted.predict_proba(str(paths[1])), shares[1:2])
    np.testing.assert_array_equal(fitted.predict_proba([paths[0], paths[0]]), shares[[0, 0]])
    labels = fitted.predict(picture_table)
    assert labels.shape == (24,)
    assert set(labels) <= {"dark", "plain"}
    truth = pd.read_csv(picture_table)["label"]
    assert fitted.score(picture_table, truth) == np.mean(labels == truth)
    assert fitted.predict_proba([]).shape == (0, 2)


def test_an_explanation_is_a_picture_and_a_file_for_qupath(
    fitted: fv.Classifier, picture_table: Path, tmp_path: Path
) -> None:
    path = images(picture_table, 2)[1]
    explanation = fitted.explain(path)
    assert explanation.predicted == fitted.predict([path])[0]
    assert list(explanation.values.values()) == fitted.predict_proba([path])[0].tolist()
    collection = explanation.to_geojson(tmp_path / "one.geojson")
    assert json.loads((tmp_path / "one.geojson").read_text()) == collection
    assert len(collection["features"]) == len(explanation.evidence) == 9
    png = explanation.to_png(str(tmp_path / "one.png"))
    assert png.startswith(b"\x89PNG")
    assert (tmp_path / "one.png").read_bytes() == png
    frame = explanation.to_frame()
    assert list(frame.columns) == ["y_px0", "x_px0", "size_y_px0", "size_x_px0", "weight"]
    assert frame["weight"].is_monotonic_decreasing
    assert repr(explanation).startswith(f"P01.png: {explanation.predicted} (prob_dark 0.")
    assert "evidence in 9 regions" in repr(explanation)


def test_a_classifier_can_be_pickled(fitted: fv.Classifier, picture_table: Path) -> None:
    paths = images(picture_table, 3)
    plain = clone(fitted).set_params(out=fitted.out, on_progress=None)
    assert not hasattr(plain, "run_")
    fitted.set_params(on_progress=None)
    again = pickle.loads(pickle.dumps(fitted))
    loaded = fv.Classifier.from_run(str(fitted.run_))
    for other in (again, loaded):
        np.testing.assert_array_equal(other.predict_proba(paths), fitted.predict_proba(paths))
    assert loaded.metrics_ == fitted.metrics_


def test_predict_one_is_a_pure_function(fitted: fv.Classifier, picture_table: Path) -> None:
    model = fv.load_model(fitted.run_)
    assert (
        repr(model)
        == "one model: method mil_mean, encoder small, classes dark, plain (in this order)"
    )
    path = images(picture_table, 1)[0]
    answer = fv.predict_one(model, path)
    assert fitted.predict_proba([path])[0].tolist() == list(answer.values)
    assert pickle.loads(pickle.dumps(answer)).values == answer.values
    with pytest.raises(fv.FoveateError, match=r"nowhere\.png"):
        fv.predict_one(model, "nowhere.png")


# -- parameters and errors ------------------------------------------------------------------------


def test_parameters_follow_scikit_learn() -> None:
    classifier = fv.Classifier("abmil", folds=5, hidden=64, train__lr=1e-4)
    params = classifier.get_params()
    assert (params["method"], params["folds"], params["hidden"]) == ("abmil", 5, 64)
    assert params["train__lr"] == 1e-4
    copy = clone(classifier)
    assert copy.get_params() == params
    assert copy.set_params(folds=2, hidden=8, view__patch_px=64) is copy
    assert copy.get_params()["view__patch_px"] == 64
    assert classifier.get_params() == params
    text = repr(classifier)
    assert "Classifier(" in text
    assert "folds=5" in text
    assert "hidden=64" in text
    assert "device" not in text, "defaults are not shown"


def test_errors_say_what_to_do(picture_table: Path, tmp_path: Path) -> None:
    with pytest.raises(fv.NotFitted, match=r"call fit\(table\) first"):
        fv.Classifier().predict(["a.png"])
    assert issubclass(fv.NotFitted, NotFittedError)
    assert issubclass(fv.NotFitted, fv.FoveateError)
    with pytest.raises(UnknownName, match="Did you mean 'glimpse'"):
        fv.Classifier("glimps").fit(picture_table)
    with pytest.raises(OptionError, match="Did you mean 'patches'"):
        fv.Classifier(patche=3).fit(picture_table)
    with pytest.raises(OptionError, match=r"train\.lrr.*Did you mean 'lr'"):
        fv.Classifier(train__lrr=3).fit(picture_table)
    with pytest.raises(OptionError, match="sections are table, view"):
        fv.Classifier(trian__lr=3).fit(picture_table)
    with pytest.raises(OptionError, match=r"fit\(paths, labels\)"):
        fv.Classifier().fit(["a.png", "b.png"])
    with pytest.raises(OptionError, match="one label"):
        fv.Classifier().fit(["a.png", "b.png"], ["x"])
    with pytest.raises(TableError):
        fv.Classifier().fit(tmp_path / "no.csv")


def test_an_image_that_cannot_be_read_is_named(fitted: fv.Classifier, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UnreadableImage, match=r"cut\.png"):
        fitted.predict([tmp_path / "cut.png"])


# -- commands -------------------------------------------------------------------------------------


def test_functions_match_the_commands(
    fitted: fv.Classifier,
    picture_table: Path,
    tmp_path: Path,
    foveate: Callable[..., Completed],
) -> None:
    folder = picture_table.parent / "in"
    ours = fv.predict(str(fitted.run_), folder, tmp_path / "ours", fv.PredictOptions(heatmaps=1))
    result = foveate("predict", fitted.run_, folder, "--out", tmp_path / "theirs", "--heatmaps", 1)
    assert result.returncode == 0, result.stderr
    rows = [read_rows(tmp_path / name / "predictions.csv") for name in ("ours", "theirs")]
    for one, other in zip(*rows, strict=True):
        assert one | {"seconds": ""} == other | {"seconds": ""}
    frame = ours.to_frame()
    assert frame["prob_dark"].dtype == np.float64
    assert list(frame["image_id"]) == [row["image_id"] for row in rows[0]]
    assert repr(ours).startswith("24 images predicted (")
    assert "0 failed" in repr(ours)

    scores = fv.evaluate(fitted.run_, picture_table, tmp_path / "scored")
    assert repr(scores).startswith("24 images of 24 patients, 18 of which training saw")
    assert scores.metrics["metrics"]["auroc"]["n"] == 24
    again = fv.train(None, fitted.run_, config=Path(fitted.run_) / "config.yaml")
    assert repr(again).startswith(f"Run {fitted.run_}: 6 images of 6 patients that training never")
    assert again.metrics["metrics"] == fitted.metrics_


def test_every_command_has_a_function() -> None:
    names = {"methods": "list_methods", "features": "extract_features"}
    commands = set(cli.commands) - {"bench"}
    assert {names.get(name, name) for name in commands} <= set(fv.__all__)
    assert fv.list_methods()["glimpse"]


def test_public_names_are_documented_with_an_example() -> None:
    assert set(fv.__all__) <= set(dir(fv))
    for name in fv.__all__:
        value = getattr(fv, name)
        text = inspect.getdoc(value) or ""
        assert len(text.split()) > 5, name
        if inspect.isfunction(value) or name == "Classifier":
            assert "Example:" in text, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fv.nothing  # noqa: B018
