"""The contract that every export keeps; exports are found in the package, not listed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conftest import picture
from foveate.exports import DEFAULT, About, AbstractExport, build_exports
from foveate.images.evidence import Evidence, mean_evidence
from foveate.images.respaced import RespacedImage
from foveate.parts import names
from foveate.readers import open_image

EXPORTS = names("exports")


@pytest.fixture(params=EXPORTS)
def export(request: pytest.FixtureRequest) -> AbstractExport:
    return build_exports([request.param])[request.param]


def evidence(n: int, *, k: int = 2, remainder: float = 0.25) -> Evidence:
    rng = np.random.default_rng(n)
    weights = rng.random((n, k))
    return Evidence(
        rng.random((n, 2)) * 64,
        np.full((n, 2), 32.0),
        weights.sum(1) / max(weights.sum(), 1e-12),
        extent_um=np.array([96.0, 96.0]),
        by_output=weights,
        remainder=remainder,
    )


@pytest.mark.parametrize("n", [0, 1, 9])
def test_an_export_renders_any_evidence(export: AbstractExport, n: int, tmp_path: Path) -> None:
    about = About("x <b>", "label a\npredicted b", {"label": "a", "predicted": "b"})
    with open_image(picture(tmp_path / "in.png", 1)) as image:
        content = export.render(RespacedImage(image, (1.0, 1.0), unit="px"), evidence(n), about)
    assert isinstance(content, bytes)
    assert len(content) > 20
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"], "nothing is written beside it"


def test_names_and_suffixes_are_unique() -> None:
    assert set(DEFAULT) <= set(EXPORTS)
    suffixes = [export.suffix for export in build_exports(EXPORTS).values()]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix.startswith(".") and suffix != ".npz" for suffix in suffixes)


# -- evidence --------------------------------------------------------------------------------------


def test_every_field_of_evidence_is_stored(tmp_path: Path) -> None:
    original = evidence(5)
    original.save(tmp_path / "e.npz")
    loaded = Evidence.load(tmp_path / "e.npz")
    for name in ("origin_um", "size_um", "weight", "extent_um", "by_output"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(original, name))
    assert loaded.remainder == 0.25
    bare = Evidence(original.origin_um, original.size_um, original.weight)
    bare.save(tmp_path / "bare.npz")
    assert Evidence.load(tmp_path / "bare.npz").by_output is None
    some = original.pick(original.weight > np.median(original.weight))
    assert len(some) == len(some.by_output) == 2
    assert (some.remainder, some.extent_um is original.extent_um) == (0.25, True)


def test_mean_evidence_keeps_fields_that_all_models_have() -> None:
    one, other = evidence(4), evidence(3, remainder=0.75)
    both = mean_evidence([one, other])
    assert both.remainder == pytest.approx(0.5)
    assert both.by_output is not None
    assert both.by_output.sum() == pytest.approx((one.by_output.sum() + other.by_output.sum()) / 2)
    assert both.weight.sum() == pytest.approx(1)
    bare = Evidence(other.origin_um, other.size_um, other.weight)
    assert mean_evidence([one, bare]).by_output is None


@pytest.mark.parametrize(
    "changed",
    [
        {"extent_um": np.zeros(3)},
        {"by_output": np.zeros((3, 2))},
        {"remainder": 1.5},
        {"remainder": float("nan")},
    ],
)
def test_inconsistent_evidence_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected|rows of weights|in an image"):
        Evidence(np.zeros((2, 2)), np.ones((2, 2)), np.ones(2), **changed)  # type: ignore[arg-type]
