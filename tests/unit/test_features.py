"""`FeatureStore`: it gives what would be computed, within its bounds, and after a restart."""

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
    """Numbers that follow from image and box."""
    seeds = [int(box[0]) * 1000 + sum(image.encode()) for box in at]
    rows = [torch.randn(DIM, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows) if rows else torch.empty(0, DIM)


def asked(image: str, at: NDArray[np.float64], log: list[int]) -> Compute:
    """A computation that notes how many rows it was asked for."""

    def compute(new: NDArray[np.int64]) -> Tensor:
        log.append(len(new))
        return true_features(image, at[new])

    return compute


def close(found: Tensor, exact: Tensor) -> None:
    """Half-precision numbers have 11 significant bits."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=2.0**-11, atol=1e-7)


def test_rows_are_those_computed_and_each_once() -> None:
    store, log = FeatureStore(None), list[int]()
    first, second = boxes(5), boxes(6, begin=3)
    close(store.rows("a", first, asked("a", first, log)), true_features("a", first))
    close(store.rows("a", second, asked("a", second, log)), true_features("a", second))
    mixed = second[[4, 0, 4, 2]]
    close(store.rows("a", mixed, asked("a", mixed, log)), true_features("a", mixed))
    assert log == [5, 4], "boxes 3 and 4 were known, then all were"


def test_images_do_not_share_rows() -> None:
    store, log, at = FeatureStore(None), list[int](), boxes(2)
    for image in ("a", "b"):
        close(store.rows(image, at, asked(image, at, log)), true_features(image, at))
    assert log == [2, 2]


def test_a_box_that_is_asked_for_twice_at_once_is_one() -> None:
    store, log = FeatureStore(None), list[int]()
    at, more = boxes(3)[[0, 1, 1, 2]], boxes(3, begin=2)
    for wanted in (at, more, at):
        close(store.rows("a", wanted, asked("a", wanted, log)), true_features("a", wanted))
    assert log == [3, 2]


def test_numbers_beyond_half_precision_are_cut_not_infinite() -> None:
    store = FeatureStore(None)
    (found,) = store.once("a", lambda: [torch.tensor([1e6, -1e6, 1.0])])
    assert found.tolist() == [65504.0, -65504.0, 1.0]


def test_memory_is_bound_and_disk_holds_the_rest(tmp_path: Path) -> None:
    at, log = boxes(10), list[int]()
    one = 10 * DIM * 2
    store = FeatureStore(tmp_path / "kept", memory_bytes=3 * one)
    for image in "abcdefgh":
        store.rows(image, at, asked(image, at, log))
        held = sum(entry.n_bytes for entry in store._entries.values())
        assert held <= 3 * one
    assert len(list((tmp_path / "kept").iterdir())) == 5, "three of eight are in memory"
    for image in "abcdefgh":
        close(store.rows(image, at, asked(image, at, log)), true_features(image, at))
    assert log == [10] * 8, "nothing was computed twice"


def test_disk_is_bound_and_the_rest_is_computed_again(tmp_path: Path) -> None:
    at, log = boxes(10), list[int]()
    one = 10 * DIM * 2
    folder = tmp_path / "kept"
    store = FeatureStore(folder, memory_bytes=one, disk_bytes=int(2.5 * one))
    for image in "abcdef":
        close(store.rows(image, at, asked(image, at, log)), true_features(image, at))
    assert len(list(folder.iterdir())) == 2
    log.clear()
    for image in "abcdef":
        close(store.rows(image, at, asked(image, at, log)), true_features(image, at))
    assert len(log) == 4, "all but the two that lie on disk"
    assert len(list(folder.iterdir())) == 2


def test_without_a_folder_what_does_not_fit_is_computed_again() -> None:
    at, log = boxes(10), list[int]()
    store = FeatureStore(None, memory_bytes=1)
    for image in "aabba":
        close(store.rows(image, at, asked(image, at, log)), true_features(image, at))
    assert log == [10, 10, 10]


@pytest.mark.parametrize("kind", ["rows", "once", "both"])
def test_a_new_store_reads_what_the_last_one_wrote(kind: str, tmp_path: Path) -> None:
    at, log = boxes(4), list[int]()
    maps = [torch.randn(1, 3, 5, 7), torch.randn(1, 6, 3, 4), torch.randn(1, 9)]

    def fill(store: FeatureStore) -> None:
        if kind != "once":
            found = store.rows("a", at, asked("a", at, log))
            close(found, true_features("a", at))
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
        store.rows(image, at, asked(image, at, []))
    store.save()
    written = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    more = boxes(1, begin=9)
    store.rows("a", more, asked("a", more, []))
    store.save()
    changed = [p for p, before in written.items() if p.stat().st_mtime_ns != before]
    assert (len(written), len(changed)) == (2, 1)


@pytest.mark.parametrize("left", ["half", "nothing", "noise", "another file"])
def test_a_damaged_file_is_computed_again(left: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    at, log = boxes(4), list[int]()
    store = FeatureStore(tmp_path)
    store.rows("a", at, asked("a", at, log))
    store.save()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if left == "another file":
        save_file({"weight": torch.zeros(3)}, path)
    else:
        cut = {"half": whole[: len(whole) // 2], "nothing": b"", "noise": whole[::-1]}[left]
        path.write_bytes(cut)
    again = FeatureStore(tmp_path)
    close(again.rows("a", at, asked("a", at, log)), true_features("a", at))
    assert log == [4, 4]
    again.save()
    FeatureStore(tmp_path).rows("a", at, asked("a", at, log))
    assert log == [4, 4], "the damaged file was replaced"


def test_an_encoder_s_features_are_those_of_direct_computation(
    tiny_cohort: Path, tmp_path: Path
) -> None:
    """Of glimpses and of patches, the first time, from memory, and from disk."""
    view = View(spacing_um=1.0, patch_px=64, glimpse_spacing_um=8.0)
    torch.manual_seed(0)
    encoder = Lite0Encoder().eval()
    loader = CaseLoader(view)
    try:
        items = [loader.load(case) for case in read_cases(tiny_cohort).cases[:2]]
        given = {"view": view, "normalise": (encoder.mean, encoder.std), "pool": loader.crops}
        device = torch.device("cpu")
        plain = Batch(items, device=device, **given)
        patches = [plain.cover(i, (0.0, 0.0))[:5] for i in range(2)]
        with torch.no_grad():
            looks = plain.look(encoder)
            exact = encoder.features(encoder.maps(plain.crops(patches, augment=False)))
        store = FeatureStore(tmp_path)
        for _ in range(3):
            batch = Batch(items, device=device, store=store, augment="slide", **given)
            assert batch.frozen
            found = batch.frozen_features.features(encoder, patches, 3)
            torch.testing.assert_close(found, exact, rtol=2e-3, atol=2e-3)
            for kept, look in zip(batch.look(encoder), looks, strict=True):
                torch.testing.assert_close(kept.features, look.features, rtol=2e-3, atol=2e-3)
                for a, b in zip(kept.maps, look.maps, strict=True):
                    torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)
            store.save()
            store = FeatureStore(tmp_path)
    finally:
        loader.close()


def test_a_disk_that_takes_nothing_ends_no_training(tmp_path: Path) -> None:
    """The folder's place is taken by a file: nothing can be written there."""
    blocked = tmp_path / "features"
    blocked.write_text("in the way", encoding="utf-8")
    store = FeatureStore(blocked, memory_bytes=1)
    boxes = np.arange(6.0).reshape(2, 3)
    for image in ("a", "b", "a"):
        rows = store.rows(image, boxes, lambda new: torch.ones(len(new), 4))
        assert rows.shape == (2, 4)
    store.save()
