"""Several labels of an image: lists and columns, missing values, thresholds, and refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from foveate.errors import TableError
from foveate.metrics import score_label, score_labels
from foveate.table import read_cases
from foveate.tasks import build_task
from foveate.tasks.multilabel import MultilabelTask
from unit.test_survival_tables import labels_of, read
from unit.test_tables import read_labels

TASK = MultilabelTask(classes=["a", "b", "c"], none="none", smoothing=0.0)
NAN = math.nan


# -- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a|b", [1, 1, 0]),
        ("b | a", [1, 1, 0]),
        ("a;c", [1, 0, 1]),
        ("c", [0, 0, 1]),
        ("none", [0, 0, 0]),
        ("a=1|b=0|c=?", [1, 0, NAN]),
        ("b=1|a=0", [0, 1, NAN]),
    ],
)
def test_texts_of_labels(text: str, values: list[float]) -> None:
    np.testing.assert_array_equal(TASK.parse(text), values)


@pytest.mark.parametrize("text", ["a|d", "", "|", "d", "a=1|d=0", "a=2|b=0"])
def test_texts_with_other_labels_have_no_target(text: str) -> None:
    with pytest.raises(TableError, match="names no known labels"):
        TASK.parse(text)


@pytest.mark.parametrize("mark", ["|", ";", " | "])
def test_lists_are_recognised(tmp_path: Path, mark: str) -> None:
    labels = [f"b{mark}a", "a", "c", "No Finding"] * 3
    table = read_cases(read_labels(tmp_path, labels))
    task = build_task("auto", [str(label) for label in labels_of(table)], {})
    assert task.settled == {"classes": ["a", "b", "c"], "none": "No Finding"}
    assert "'No Finding' for none of them" in task.describe()
    assert task.targets(["No Finding", f"a{mark}c"]).tolist() == [[0, 0, 0], [1, 0, 1]]


def test_columns_are_joined_and_empty_cells_are_not_known(tmp_path: Path) -> None:
    columns = {"a": ["1", "0", "", "NA"], "b": ["no", "yes", "yes", ""], "c": list("0101")}
    table = read(tmp_path, columns, "a,b,c")
    assert table.task == "multilabel"
    expected = ["a=1|b=0|c=0", "a=0|b=1|c=1", "a=?|b=1|c=0", "a=?|b=?|c=1"]
    assert labels_of(table) == expected
    assert any("'a' 1 of 2 rows, 'b' 2 of 3 rows, 'c' 2 of 4 rows" in n for n in table.notes)
    task = build_task(table.task, expected, {})
    assert task.settled == {"classes": ["a", "b", "c"], "none": "none"}
    np.testing.assert_array_equal(task.parse(expected[3]), [NAN, NAN, 1])


def test_rows_without_any_value_are_left_out(tmp_path: Path) -> None:
    table = read(tmp_path, {"a": ["1", "0", ""], "b": ["0", "1", ""]}, "a,b")
    assert len(table.cases) == 2


@pytest.mark.parametrize("values", ["2121", "2323"])
def test_columns_with_other_values_are_no_labels(tmp_path: Path, values: str) -> None:
    columns = {"a": values, "b": "0110"}
    with pytest.raises(TableError, match="'a' and 'b' are no label together"):
        read(tmp_path, columns, "a,b")
    with pytest.raises(TableError, match=r"neither 1 \(present\) nor 0 \(absent\)"):
        read(tmp_path, columns, "a,b", task="multilabel")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"], "no several labels of an image"),
        (["a|b", "a", "a|c"], "holds 'a' for every image"),
        (["a=0|b=1", "a=0|b=0", "a=?|b=1"], "holds 'a' for no image"),
        (["a|Edema", "edema", "b"], "in several ways"),
        (["a|b;c", "a", "b", "d"], r"both '\|' and ';'"),
        (["a|b", "a", "b", "normal", "none"], "several words for none of the labels"),
    ],
)
def test_labels_from_which_nothing_can_be_learnt(labels: list[str], message: str) -> None:
    with pytest.raises(TableError, match=message):
        MultilabelTask.settle(labels)


def test_strata_are_the_rarest_frequent_labels() -> None:
    labels = ["a"] * 30 + ["a|b"] * 12 + ["none"] * 20 + ["c"] * 3
    patients = [f"p{i}" for i in range(len(labels))]
    strata = TASK.strata(labels, patients)
    assert len({*strata}) == 3
    assert strata[0] != strata[30] != strata[50]
    assert strata[-1] == strata[50], "a label of three patients is no stratum"
    assert TASK.tally(labels) == {"a": "42", "b": "12", "c": "3"}


# -- training --------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_known_labels() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
    target = TASK.targets(["a=1|b=0|c=?", "a=?|b=?|c=1"])
    p = logits.sigmoid()
    expected = [-(p[0, 0].log() + (1 - p[0, 1]).log()) / 2, -p[1, 2].log()]
    torch.testing.assert_close(TASK.each_loss(logits, target), torch.stack(expected))
    logits.requires_grad_()
    TASK.loss(logits, target).backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[True, True, False], [False, False, True]]
    assert torch.isfinite(logits.grad).all()


def test_thresholds_are_those_of_each_label() -> None:
    logits = torch.tensor([[-2.0, 1.0, 0], [-1.0, 3.0, 0], [1.0, 2.0, 0], [2.0, 4.0, 0]])
    target = TASK.targets(["b=0|a=0|c=1", "a=0|b=1|c=1", "a=1|b=0|c=1", "a=1|b=1|c=1"])
    point = TASK.calibrate(logits, target)
    values = TASK.decode(logits, point).tolist()
    assert [TASK.predict(v, point) for v in values] == ["c", "b|c", "a|c", "a|b|c"]
    assert point["threshold_c"] == 0.5, "one value only"
    pooled = TASK.pool([point, point | {"threshold_a": None}])
    assert pooled["threshold_a"] == point["threshold_a"]
    assert TASK.predict([0.1, 0.1, 0.1], {}) == "none"


# -- scores ----------------------------------------------------------------------------------------


def draw(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw probabilities and truth of three labels, a quarter of which is not known."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (n, 3)).astype(np.float64)
    prob = 1 / (1 + np.exp(-(truth - 0.5 + rng.normal(size=(n, 3)))))
    truth[rng.uniform(size=(n, 3)) < 0.25] = NAN
    return prob, truth


def test_scores_are_means_over_labels_of_known_values() -> None:
    prob, truth = draw(60)
    patients, folds = [f"p{i}" for i in range(60)], [""] * 60
    scores = score_labels(prob, truth, patients, folds)
    known = ~np.isnan(truth)
    pairs = [(truth[known[:, c], c], prob[known[:, c], c]) for c in range(3)]
    areas = [roc_auc_score(*pair) for pair in pairs]
    assert scores["auroc"].score.value == pytest.approx(np.mean(areas))
    precisions = [average_precision_score(*pair) for pair in pairs]
    assert scores["auprc"].score.value == pytest.approx(np.mean(precisions))
    errors = [np.mean((prob[i, known[i]] - truth[i, known[i]]) ** 2) for i in range(60)
              if known[i].any()]  # fmt: skip
    if known.any(1).all():
        assert scores["brier"].score.value == pytest.approx(np.mean(errors))
    one = score_label(prob[:, 1], truth[:, 1], patients, folds)
    assert one["auroc"].value == pytest.approx(areas[1])
    for measured in scores.values():
        assert measured.score.lo < measured.score.value < measured.score.hi


def test_labels_are_ranked_within_folds() -> None:
    prob, truth = draw(80, 1)
    fold = np.arange(80) % 2
    shifted = 0.5 * prob + 0.5 * fold[:, None]
    patients = [f"p{i}" for i in range(80)]
    a, b = (score_labels(p, truth, patients, [str(f) for f in fold]) for p in (prob, shifted))
    assert a["auroc"].score.value == pytest.approx(b["auroc"].score.value)


def test_the_verdict_names_wrong_labels() -> None:
    entry = {"label": "a=1|b=0|c=?", "predicted": "b|c", "probs": {"a": 0.2, "b": 0.7, "c": 0.9}}
    verdict = TASK.verdict(entry, {})
    assert verdict.kind == "wrong"
    assert verdict.word == "2 of 3 wrong: a, b"
    assert TASK.verdict(entry | {"predicted": "a"}, {}).kind == "right"
    assert TASK.verdict(entry | {"label": ""}, {}).kind == "unlabelled"
