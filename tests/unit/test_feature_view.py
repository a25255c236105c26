"""Files of features in a run: one recipe, found in tables and folders, taken by bag methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.encoders.stored import StoredEncoder
from foveate.errors import ArrayError, OptionError, TableError, UnsupportedFormat
from foveate.images.likeness import ImageFacts, PatchFacts
from foveate.images.stored import Recipe
from foveate.loading.gather import gather_cases
from foveate.loading.loader import CaseLoader
from foveate.loading.scan import ViewOptions, choose_view, open_case, scan_cases
from foveate.methods.base import further_loss
from foveate.parts import find, names
from foveate.runs.view_words import describe_view
from foveate.table import Case, read_cases
from foveate.tasks import build_task
from helpers.batches import load_batch
from helpers.feature_files import SIDE_PX0, write_stamp, write_trident

RECIPE = Recipe("uni_v1", 8)
FACTS = ImageFacts(
    (9000, 9000), (0.25, 0.25), "um", "features", "r", patches=PatchFacts(RECIPE, 128.0, 256)
)
METHODS = [name for name in names("methods") if not find("methods", name).needs_pixels]


def facts_with(recipe: Recipe, side_um: float = 128.0) -> ImageFacts:
    return replace(FACTS, patches=PatchFacts(recipe, side_um, 256))


def test_the_view_is_that_of_the_files() -> None:
    view = choose_view([FACTS, facts_with(RECIPE, 120.0), FACTS], ViewOptions())
    assert (view.spacing_um, view.patch_px, view.recipe) == (0.5, 256, RECIPE)
    assert describe_view(view, []) == (
        "files of features: 8 numbers of 'uni_v1' for each patch of 256 px at 0.5 um per pixel"
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (facts_with(replace(RECIPE, dim=16)), "1 of 3 files of features hold vectors of length"),
        (
            facts_with(replace(RECIPE, encoder="")),
            "vectors of encoder an unknown name, not 'uni_v1'",
        ),
        (facts_with(replace(RECIPE, revision="b")), "hold vectors of encoder revision 'b', not an"),
        (facts_with(replace(RECIPE, transform="b")), "hold vectors of pixels prepared as 'b', not"),
        (facts_with(RECIPE, 256.0), "have patches of 128 to 256 um a side: an encoder saw them"),
        (replace(FACTS, patches=None), "2 files of features and 1 images are mixed: a model reads"),
        (replace(FACTS, unit="px"), "some images state micrometres per pixel and some do not"),
    ],
)
def test_vectors_of_two_recipes_are_refused(other: ImageFacts, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        choose_view([FACTS, other, FACTS], ViewOptions())


def test_the_table_gives_a_spacing_unless_places_are_micrometres(tmp_path: Path) -> None:
    vectors = np.ones((3, 8), np.float32)
    path = write_trident(tmp_path / "a.h5", vectors)
    with open_case(Case("a", "a", path, spacing_um=(0.25,))) as image:
        assert image.known_spacing_um == (0.25, 0.25)
        assert image.stored is not None
    path = write_stamp(tmp_path / "b.h5", vectors, np.arange(3)[:, None] * [256.0, 0.0])
    with open_case(Case("b", "b", path, spacing_um=(0.25,))) as image:
        assert image.known_spacing_um[0] == pytest.approx(256 / 224)


def test_a_folder_of_features_stands_in_for_images(tmp_path: Path) -> None:
    vectors, folder = np.ones((3, 8), np.float32), tmp_path / "h5"
    folder.mkdir()
    for name in ("TCGA-1.F6", "S2"):
        write_trident(folder / f"{name}.h5", vectors)
    (folder / "notes.txt").write_text("x")
    table = tmp_path / "labels.csv"
    table.write_text("slide_id,label\nTCGA-1.F6,a\nS2.svs,b\nS3,a\n")
    read = read_cases(table, images=folder)
    assert [case.path.name for case in read.cases] == ["TCGA-1.F6.h5", "S2.h5"]
    assert [row.image_id for row in read.set_aside] == ["S3"]
    found = gather_cases([folder])
    assert sorted(case.image_id for case in found.cases) == ["S2", "TCGA-1.F6"]
    # Beside images, features accompany them and stand in for none.
    (folder / "S9.svs").write_bytes(b"x")
    assert [case.path.name for case in gather_cases([folder]).cases] == ["S9.svs"]
    with pytest.raises(TableError, match=r"no file|none of"):
        read_cases(table, images=folder)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Case], CaseLoader]]:
    """Two files of features of 5 and 9 patches, and a loader for them."""
    folder, rng = tmp_path_factory.mktemp("stored"), np.random.default_rng(0)
    cases = []
    for name, n in (("a", 5), ("b", 9)):
        path = write_trident(folder / f"{name}.h5", rng.normal(size=(n, 8)), mpp=0.25)
        cases.append(Case(name, name, path))
    loader = CaseLoader(choose_view(scan_cases(cases, ViewOptions()).facts.values(), ViewOptions()))
    yield cases, loader
    loader.close()


@pytest.mark.parametrize("name", METHODS)
def test_every_bag_method_learns_from_stored_vectors(name, stored, pool) -> None:
    cases, loader = stored
    task = build_task("multiclass", ["x", "y", "z"], {}, "label")
    torch.manual_seed(0)
    encoder = StoredEncoder(stored_dim=8, dim=16)
    method = find("methods", name)(encoder=encoder, heads=task.heads)
    batch = load_batch(cases, loader, pool)
    assert batch.frozen
    prediction = method.train()(batch)
    target = task.targets(["x", "y"])
    loss = task.loss(prediction.logits, target) + further_loss(task, prediction, target)
    loss.backward()
    gradient = encoder.mixed.linear.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        prediction = method.eval()(load_batch(cases, loader, pool))
    assert [len(evidence) for evidence in prediction.evidence] == [5, 9]
    evidence = prediction.evidence[1]
    assert evidence.size_um[0].tolist() == [SIDE_PX0 * 0.25] * 2
    assert {tuple(o) for o in evidence.origin_um.tolist()} == {
        (i // 4 * 128.0, i % 4 * 128.0) for i in range(9)
    }
    assert evidence.weight.sum() == pytest.approx(1, abs=1e-4)


def test_images_of_another_kind_are_refused(stored, tmp_path: Path) -> None:
    _, loader = stored
    wide = write_trident(tmp_path / "wide.h5", np.ones((3, 8)), mpp=0.5)
    with pytest.raises(UnsupportedFormat, match="patches of 256 um a side, but the model was trai"):
        loader.load(Case("wide", "wide", wide))


def test_pixels_cannot_be_encoded() -> None:
    with pytest.raises(ArrayError, match="encoder 'stored' has no network for them; give files"):
        StoredEncoder(stored_dim=3)(torch.zeros(1, 3, 4, 4))
