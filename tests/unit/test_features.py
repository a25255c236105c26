"""`FeatureStore` returns computed features, within its limits and after a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.batch import Batch, View
from foveate.batch.features import FeatureStore
from foveate.encoders.lite0 import Lite0Encoder
from foveate.loading.loader import CaseLoader
from foveate.table import read_cases

DIM = 64
Compute = Callable[[NDArray[np.int64]], Tensor]


def boxes(n: int, begin: int = 0) -> NDArray[np.float64]:
    return np.arange(begin, begin + n, dtype=np.float64)[:, None] * [1.0, 2.0, 3.0]


def true_features(image: str, at: NDArray[np.float64]) -> Tensor:
    """Compute numbers from the image and the boxes."""
    seeds = [int(box[0]) * 1000 + sum(image.encode()) for box in at]
    rows = [torch.randn(DIM, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows) if rows else torch.empty(0, DIM)


def counting_computation(image: str, at: NDArray[np.float64], log: list[int]) -> Compute:
    """Return a computation that records how many rows were requested."""

    def compute(new: NDArray[np.int64]) -> Tensor:
        log.append(len(new))
        return true_features(image, at[new])

    return compute


def assert_equal_in_half_precision(actual: Tensor, expected: Tensor) -> None:
    """Compare within half precision, which has 11 significant bits."""
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=2.0**-11, atol=1e-7)


def test_each_row_is_computed_once() -> None:
    store, log = FeatureStore(None), list[int]()
    first, second = boxes(5), boxes(6, begin=3)
    assert_equal_in_half_precision(
        store.rows("a", first, counting_computation("a", first, log)), true_features("a", first)
    )
    assert_equal_in_half_precision(
        store.rows("a", second, counting_computation("a", second, log)), true_features("a", second)
    )
    mixed = second[[4, 0, 4, 2]]
    assert_equal_in_half_precision(
        store.rows("a", mixed, counting_computation("a", mixed, log)), true_features("a", mixed)
    )
    assert log == [5, 4], "boxes 3 and 4 were known, then all were"


def test_images_do_not_share_rows() -> None:
    store, log, at = FeatureStore(None), list[int](), boxes(2)
    for image in ("a", "b"):
        assert_equal_in_half_precision(
            store.rows(image, at, counting_computation(image, at, log)), true_features(image, at)
        )
    assert log == [2, 2]


def test_a_box_requested_twice_is_computed_once() -> None:
    store, log = FeatureStore(None), list[int]()
    at, more = boxes(3)[[0, 1, 1, 2]], boxes(3, begin=2)
    for requested in (at, more, at):
        assert_equal_in_half_precision(
            store.rows("a", requested, counting_computation("a", requested, log)),
            true_features("a", requested),
        )
    assert log == [3, 2]


def test_numbers_beyond_half_precision_are_clipped() -> None:
    store = FeatureStore(None)
    (stored,) = store.once("a", lambda: [torch.tensor([1e6, -1e6, 1.0])])
    assert stored.tolist() == [65504.0, -65504.0, 1.0]


def test_memory_is_limited_and_disk_holds_the_rest(tmp_path: Path) -> None:
    at, log = boxes(10), list[int]()
    one = 10 * DIM * 2
    store = FeatureStore(tmp_path / "kept", memory_bytes=3 * one)
    for image in "abcdefgh":
        store.rows(image, at, counting_computation(image, at, log))
        n_bytes = sum(entry.n_bytes for entry in store._entries.values())
        assert n_bytes <= 3 * one
    assert len(list((tmp_path / "kept").iterdir())) == 5, "three of eight are in memory"
    for image in "abcdefgh":
        assert_equal_in_half_precision(
            store.rows(image, at, counting_computation(image, at, log)), true_features(image, at)
        )
    assert log == [10] * 8, "nothing was computed twice"


def test_disk_is_limited_and_the_rest_is_recomputed(tmp_path: Path) -> None:
    at, log = boxes(10), list[int]()
    one = 10 * DIM * 2
    folder = tmp_path / "kept"
    store = FeatureStore(folder, memory_bytes=one, disk_bytes=int(2.5 * one))
    for image in "abcdef":
        assert_equal_in_half_precision(
            store.rows(image, at, counting_computation(image, at, log)), true_features(image, at)
        )
    assert len(list(folder.iterdir())) == 2
    log.clear()
    for image in "abcdef":
        assert_equal_in_half_precision(
            store.rows(image, at, counting_computation(image, at, log)), true_features(image, at)
        )
    assert len(log) == 4, "all but the two that lie on disk"
    assert len(list(folder.iterdir())) == 2


def test_without_a_folder_evicted_rows_are_recomputed() -> None:
    at, log = boxes(10), list[int]()
    store = FeatureStore(None, memory_bytes=1)
    for image in "aabba":
        assert_equal_in_half_precision(
            store.rows(image, at, counting_computation(image, at, log)), true_features(image, at)
        )
    assert log == [10, 10, 10]


@pytest.mark.parametrize("kind", ["rows", "once", "both"])
def test_a_new_store_reads_the_files_of_the_last(kind: str, tmp_path: Path) -> None:
    at, log = boxes(4), list[int]()
    maps = [torch.randn(1, 3, 5, 7), torch.randn(1, 6, 3, 4), torch.randn(1, 9)]

    def fill(store: FeatureStore) -> None:
        if kind != "once":
            rows = store.rows("a", at, counting_computation("a", at, log))
            assert_equal_in_half_precision(rows, true_features("a", at))
        if kind != "rows":
            for one, exact in zip(store.once("a", once), maps, strict=True):
                torch.testing.assert_close(one, exact, rtol=2.0**-11, atol=1e-7)

    def once() -> list[Tensor]:
        log.append(-1)
        return maps

    store = FeatureStore(tmp_path)
    fill(store)
    store.save()
    n = len(log)
    fill(FeatureStore(tmp_path))
    assert len(log) == n


def test_saving_writes_only_what_has_changed(tmp_path: Path) -> None:
    at = boxes(4)
    store = FeatureStore(tmp_path)
    for image in "ab":
        store.rows(image, at, counting_computation(image, at, []))
    store.save()
    written = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    more = boxes(1, begin=9)
    store.rows("a", more, counting_computation("a", more, []))
    store.save()
    changed = [p for p, before in written.items() if p.stat().st_mtime_ns != before]
    assert (len(written), len(changed)) == (2, 1)


@pytest.mark.parametrize("damaged", ["half", "nothing", "noise", "another file"])
def test_a_damaged_file_is_recomputed(damaged: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    at, log = boxes(4), list[int]()
    store = FeatureStore(tmp_path)
    store.rows("a", at, counting_computation("a", at, log))
    store.save()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damaged == "another file":
        save_file({"weight": torch.zeros(3)}, path)
    else:
        cut = {"half": content[: len(content) // 2], "nothing": b"", "noise": content[::-1]}[
            damaged
        ]
        path.write_bytes(cut)
    again = FeatureStore(tmp_path)
    assert_equal_in_half_precision(
        again.rows("a", at, counting_computation("a", at, log)), true_features("a", at)
    )
    assert log == [4, 4]
    again.save()
    FeatureStore(tmp_path).rows("a", at, counting_computation("a", at, log))
    assert log == [4, 4], "the damaged file was replaced"


def test_stored_features_match_direct_computation(tiny_cohort: Path, tmp_path: Path) -> None:
    """Glimpse and patch features agree when computed, from memory and from disk."""
    view = View(spacing_um=1.0, patch_px=64, glimpse_spacing_um=8.0)
    torch.manual_seed(0)
    encoder = Lite0Encoder().eval()
    loader = CaseLoader(view)
    try:
        items = [loader.load(case) for case in read_cases(tiny_cohort).cases[:2]]
        options = {"view": view, "normalise": (encoder.mean, encoder.std), "pool": loader.threads}
        device = torch.device("cpu")
        plain = Batch(items, device=device, **options)
        patches = [plain.cover(i, (0.0, 0.0))[:5] for i in range(2)]
        with torch.no_grad():
            looks = plain.look(encoder)
            exact = encoder.features(encoder.maps(plain.read_patches(patches, augment=False)))
        store = FeatureStore(tmp_path)
        for _ in range(3):
            batch = Batch(items, device=device, store=store, augment="slide", **options)
            assert batch.frozen
            features = batch.frozen_features.features(encoder, patches, 3)
            torch.testing.assert_close(features, exact, rtol=2e-3, atol=2e-3)
            for stored, look in zip(batch.look(encoder), looks, strict=True):
                torch.testing.assert_close(stored.features, look.features, rtol=2e-3, atol=2e-3)
                for a, b in zip(stored.maps, look.maps, strict=True):
                    torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)
            store.save()
            store = FeatureStore(tmp_path)
    finally:
        loader.close()


def test_an_unwritable_disk_does_not_stop_training(tmp_path: Path) -> None:
    """A file stands in place of the folder, so that nothing can be written."""
    blocked = tmp_path / "features"
    blocked.write_text("in the way", encoding="utf-8")
    store = FeatureStore(blocked, memory_bytes=1)
    boxes = np.arange(6.0).reshape(2, 3)
    for image in ("a", "b", "a"):
        rows = store.rows(image, boxes, lambda new: torch.ones(len(new), 4))
        assert rows.shape == (2, 4)
    store.save()
