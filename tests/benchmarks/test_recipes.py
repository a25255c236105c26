"""The benchmark recipes: tables match the pixels, and the digit pools never mix."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.canvas import read_canvas, render
from benchmarks.mnist import base, megapixel_mnist, needle_mnist, spatial_bag, ultra_mnist
from benchmarks.mnist.base import Mnist, Pool
from benchmarks.mnist.idx import FILES, load_mnist, read_idx
from foveate.errors import ImageNotFound, OptionError, UnreadableImage
from foveate.readers import open_image
from helpers.files import encode_idx

MNIST = Path(__file__).resolve().parents[2] / "../shared/data/mnist"


def made_pool(n, seed, parity):
    """Return distinct digits with odd grey values in one pool and even ones in the other.

    The margin is black, as MNIST's is.
    """
    rng = np.random.default_rng(seed)
    images = np.zeros((n, 28, 28), np.uint8)
    images[:, 4:24, 5:22] = 2 * rng.integers(1, 127, (n, 20, 17)) + parity
    images[:, 4:24, 5:22] *= rng.random((n, 20, 17)) < 0.4
    labels = np.concatenate([np.arange(10), rng.integers(0, 10, n - 10)]).astype(np.uint8)
    return images, labels


@pytest.fixture(scope="module")
def mnist():
    return Mnist(*made_pool(300, 0, 1), *made_pool(200, 1, 0))


def read_table(table):
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def truths(table):
    """Return for each row of the table the pool rows and the boxes of its digits."""
    with np.load(table.with_name("digits.npz"), allow_pickle=False) as arrays:
        ends = np.cumsum(arrays["counts"])
        sources, boxes = np.split(arrays["sources"], ends), np.split(arrays["boxes_px0"], ends)
    assert len(ends) == len(read_table(table))
    return list(zip(sources[:-1], boxes[:-1], strict=True))


def cases(table, mnist):
    """Yield for each canvas its row, the canvas, and the digits' images, labels and boxes."""
    for row, (sources, boxes) in zip(read_table(table), truths(table), strict=True):
        train = row["split"] == "train"
        images = mnist.train_images if train else mnist.test_images
        labels = mnist.train_labels if train else mnist.test_labels
        canvas = read_canvas(table.parent / row["path"])
        yield row, canvas, images[sources], labels[sources].astype(int), boxes


RECIPES = {
    "ips": lambda *a, **k: megapixel_mnist.write(*a, side=400, noise=20, **k),
    "ats": lambda *a, **k: megapixel_mnist.write(*a, variant="ats", side=400, noise=20, **k),
    "ats_small": lambda *a, **k: megapixel_mnist.write(*a, variant="ats", side=500, noise=0, **k),
    "ultra": lambda *a, **k: ultra_mnist.write(*a, **k),
    "ultra_512": lambda *a, **k: ultra_mnist.write(*a, side=512, **k),
    "needle": lambda *a, **k: needle_mnist.write(*a, side=256, **k),
    "bag_a": lambda *a, **k: spatial_bag.write(*a, task="A", side=1024, **k),
    "bag_b": lambda *a, **k: spatial_bag.write(*a, task="B", side=1024, **k),
    "bag_c": lambda *a, **k: spatial_bag.write(*a, task="C", side=1024, **k),
}
NUMBERS = {"n_train": 14, "n_test": 6, "seed": 3}


@pytest.fixture(scope="module")
def written(tmp_path_factory, mnist):
    folder = tmp_path_factory.mktemp("recipes")
    return {name: write(folder / name, mnist, **NUMBERS) for name, write in RECIPES.items()}


# -- what every recipe promises -------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_canvas_is_listed_once_and_opens(written, name):
    rows = read_table(written[name])
    assert [row["split"] for row in rows] == ["train"] * 14 + ["test"] * 6
    files = sorted(p.relative_to(written[name].parent) for p in written[name].parent.rglob("*.sp*"))
    assert sorted(Path(row["path"]) for row in rows) == files
    assert list(rows[0])[:2] == ["path", "split"]
    with open_image(written[name].parent / rows[0]["path"]) as image:
        assert image.reader == "foveate sparse canvas 1"
        assert image.background.tolist() == [0]


@pytest.mark.parametrize("name", RECIPES)
def test_digits_come_from_the_pool_of_their_split(written, mnist, name):
    """Each stamp has the pixels of its digit and the parity of its pool."""
    noise = 0 if name not in ("ips", "ats") else 20
    for row, canvas, images, _, boxes in cases(written[name], mnist):
        parity = row["split"] == "train"
        assert len(canvas.origins) == len(boxes) + noise
        pasted = {tuple(o): i for i, o in enumerate(canvas.origins.tolist())}
        for image, (y, x, height, width) in zip(images, boxes.tolist(), strict=True):
            i = pasted[y, x]
            begin, shape = canvas.offsets[canvas.stamp_ids[i]], canvas.stamp_sizes
            h, w = shape[canvas.stamp_ids[i]]
            stamp = canvas.stamp_pixels[begin : begin + h * w].reshape(h, w)
            assert (height, width) == (h * canvas.scales[i], w * canvas.scales[i])
            if name == "needle":
                rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
                image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            np.testing.assert_array_equal(stamp, image[::2, ::2] if h == 14 else image)
            assert (stamp[stamp > 0] % 2 == parity).all()


@pytest.mark.parametrize("name", RECIPES)
def test_the_seed_determines_the_data_set(tmp_path, written, mnist, name):
    repeated = RECIPES[name](tmp_path / "again", mnist, **NUMBERS)
    other = RECIPES[name](tmp_path / "other", mnist, **{**NUMBERS, "seed": 4})
    files = sorted(
        p.relative_to(repeated.parent) for p in repeated.parent.rglob("*") if p.is_file()
    )
    for file in files:
        assert (repeated.parent / file).read_bytes() == (written[name].parent / file).read_bytes()
    first = read_table(repeated)[0]["path"]
    assert (repeated.parent / first).read_bytes() != (other.parent / first).read_bytes()


# -- each recipe ----------------------------------------------------------------------------------


def crop(canvas, y, x, side=28):
    return render(canvas, (int(y), int(x)), (side, side))[:, :, 0]


def do_not_overlap(boxes):
    """Whether no two boxes share a pixel."""
    return all(
        y + h <= b or b + g <= y or x + w <= a or a + v <= x
        for (y, x, h, w), (b, a, g, v) in itertools.combinations(boxes.tolist(), 2)
    )


@pytest.mark.parametrize("name", ["ips", "ats", "ats_small"])
def test_megapixel_labels_match_the_digits_in_the_picture(written, mnist, name):
    for row, canvas, images, digits, boxes in cases(written[name], mnist):
        values, counts = np.unique(digits, return_counts=True)
        assert counts.max() == 3
        assert int(row["majority"]) == values[counts.argmax()]
        assert do_not_overlap(boxes)
        if name == "ips":
            assert int(row["max"]) == digits.max()
            assert int(row["top"]) == digits[boxes[:, 0].argmin()]
            assert list(map(int, row["multi"].split())) == values.tolist()
            for image, (y, x, *_) in zip(images, boxes, strict=True):
                np.testing.assert_array_equal(crop(canvas, y, x), image)
        else:
            assert list(row) == ["path", "split", "majority"]


def test_noise_covers_digits_in_one_variant_only(mnist):
    pool = mnist.pool("train")
    share = {}
    for variant in ("ips", "ats"):
        rng = np.random.default_rng(0)
        damaged = [
            (crop(example.canvas, y, x) != pool.images[source]).any()
            for example in megapixel_mnist._draw(
                pool, 300, rng, variant=variant, side=1500, noise=50
            )
            for source, (y, x) in zip(
                example.sources, example.canvas.origins[example.digits], strict=True
            )
        ]
        assert len(damaged) == 1500
        share[variant] = np.mean(damaged)
    assert share["ips"] == 0
    assert 0.05 < share["ats"] < 0.085


def test_noise_consists_of_bright_strokes_inside_the_picture():
    patterns = megapixel_mnist._patterns(np.random.default_rng(0), 400)
    assert patterns.shape == (400, 28, 28)
    lit = patterns > 0
    assert patterns[lit].min() >= 204
    assert patterns[lit].max() <= 255
    assert patterns[lit].mean() == pytest.approx(0.9 * 255, abs=1)
    assert 28 < lit.sum((1, 2)).mean() < 70
    corners = lit[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(0)
    # A line begins in the first corner unless it is the mirrored one.
    assert corners[0] == 1
    assert 0.2 < corners[1:3].mean() < 0.4
    pool = Pool(*made_pool(100, 0, 1))
    drawn = megapixel_mnist._draw(
        pool, 40, np.random.default_rng(1), variant="ips", side=400, noise=50
    )
    places = np.concatenate([e.canvas.origins[:50] for e in drawn])
    assert places.min() >= 28
    assert places.max() < 400 - 28
    assert places.max() > 360


@pytest.mark.parametrize(("name", "most"), [("ultra", 27), ("ultra_512", 9)])
def test_ultra_labels_are_sums_of_non_overlapping_digits(written, mnist, name, most):
    seen = []
    for row, canvas, _, digits, boxes in cases(written[name], mnist):
        assert 3 <= len(digits) <= 5
        assert int(row["label"]) == digits.sum() <= most
        assert do_not_overlap(boxes)
        assert canvas.blend == "add"
        assert canvas.scales.max() <= {27: 75, 9: 9}[most]
        seen.append(int(row["label"]))
    assert max(np.bincount(seen[:14])) <= -(-14 // (most + 1))


def test_size_factors_follow_the_published_distribution():
    rng = np.random.default_rng(0)
    sides = np.array([ultra_mnist._squares(rng, 1, 4000, 75)[0][2] for _ in range(20_000)])
    halved = (sides == 14).sum() / ((sides == 14) | (sides == 28)).sum()
    assert halved == pytest.approx(0.5, abs=0.06)
    counts = np.bincount(np.maximum(sides // 28, 1), minlength=76)[1:]
    assert len(counts) == 75
    expected = np.abs(np.arange(1, 76) - 38) + 0.5
    expected *= 20_000 / expected.sum()
    thirds = [slice(0, 25), slice(25, 50), slice(50, 75)]
    for third in thirds:
        assert counts[third].sum() == pytest.approx(expected[third].sum(), rel=0.06)
    assert counts[0] > 10 * counts[37]


def test_digit_sets_with_a_sum_are_listed_once():
    slow = {tuple(sorted(d)) for n in (3, 4, 5) for d in np.ndindex(*(10,) * n) if sum(d) == 5}
    assert set(ultra_mnist._sets(5)) == slow
    assert len(ultra_mnist._sets(5)) == len(slow)
    assert ultra_mnist._sets(0) == ((0,) * 3, (0,) * 4, (0,) * 5)


def test_needles_are_threes_used_twice_and_sums_saturate(written, mnist):
    for split in ("train", "test"):
        used = []
        rows = read_table(written["needle"])
        for row, (sources, _) in zip(rows, truths(written["needle"]), strict=True):
            if row["split"] != split:
                continue
            labels = mnist.train_labels if split == "train" else mnist.test_labels
            threes = sources[labels[sources] == 3]
            assert len(threes) == (row["label"] == "present")
            assert len(sources) == 25 + 1
            used += threes.tolist()
        n = 14 if split == "train" else 6
        assert len(used) == n // 2
        assert np.bincount(used).max() == 2
        assert len(set(used)) == (len(used) + 1) // 2


def test_a_needle_canvas_is_the_saturated_sum_of_whole_pictures(mnist):
    pool = mnist.pool("train")
    corners = np.random.default_rng(0).integers(0, 100 - 27, (60, 2))
    sources = np.random.default_rng(1).integers(0, len(pool.labels), 60)
    expected = np.zeros((100, 100), int)
    for (y, x), source in zip(corners, sources, strict=True):
        expected[y : y + 28, x : x + 28] += pool.images[source]
    assert (expected > 255).any()
    canvas = needle_mnist._sum_digits(pool.images, sources, corners, 100)
    np.testing.assert_array_equal(
        render(canvas, (0, 0), (100, 100))[:, :, 0], np.minimum(expected, 255)
    )


def auc(positive, negative):
    positive, negative = np.asarray(positive)[:, None], np.asarray(negative)[None]
    return float(((positive > negative) + 0.5 * (positive == negative)).mean())


def test_task_a_bags_are_positive_if_they_contain_a_nine(written, mnist):
    for row, _, _, digits, _ in cases(written["bag_a"], mnist):
        assert len(digits) == 50
        assert (digits == 9).sum() == (row["label"] == "positive")


def test_task_b_bags_differ_in_layout_alone(mnist):
    drawn = list(
        spatial_bag._draw(mnist.pool("train"), 400, np.random.default_rng(0), task="B", side=4096)
    )
    spread = {"positive": [], "negative": []}
    index = {"positive": [], "negative": []}
    near = {"positive": [], "negative": []}
    for example in drawn:
        digits = mnist.train_labels[example.sources]
        counts = np.bincount(digits, minlength=10)
        assert counts.tolist() == [9, 1] * 5
        np.testing.assert_array_equal(example.places_px0, example.canvas.origins + 14)
        label, odd = example.labels["label"], digits % 2 == 1
        places = example.places_px0 / 4096
        spread[label].append(np.mean([np.hypot(*(p - q)) for p, q in _pairs(places[odd])]))
        near[label].append((np.hypot(*(places[~odd] - places[odd].mean(0)).T) < 0.1).sum())
        index[label].append(np.flatnonzero(odd).mean())
    assert len(spread["positive"]) == len(spread["negative"]) == 200
    assert auc(spread["negative"], spread["positive"]) >= 0.999
    assert np.mean(spread["positive"]) == pytest.approx(0.05 * np.pi**0.5, rel=0.05)
    assert np.mean(spread["negative"]) == pytest.approx(0.521, rel=0.05)
    # The even ones lie where chance takes them, and the order of the list says nothing.
    for counts in near.values():
        assert np.mean(counts) == pytest.approx(45 * np.pi * 0.1**2, abs=0.3)
    assert auc(index["negative"], index["positive"]) == pytest.approx(0.5, abs=0.09)
    assert np.mean(index["positive"]) == pytest.approx(24.5, abs=1.5)


def densest_group(places):
    """Return the places within 0.1 of the densest one, by distance, for places ``(50, 2)``."""
    away = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    densest = (away < 0.1).sum(1).argmax()
    order = away[densest].argsort()
    return order[: (away[densest] < 0.1).sum()]


def drawn_bags(mnist, n, task):
    """Draw bags of places in the unit square and digits, by label."""
    bags = {"positive": [], "negative": []}
    rng = np.random.default_rng(0)
    for example in spatial_bag._draw(mnist.pool("train"), n, rng, task=task, side=4096):
        places, digits = example.places_px0 / 4096, mnist.train_labels[example.sources]
        bags[example.labels["label"]].append((places, digits))
    assert len(bags["positive"]) == len(bags["negative"]) == n // 2
    return bags["positive"], bags["negative"]


def test_places_predict_the_label_in_task_b_and_not_in_task_c(mnist):
    areas = {}
    for task, n in (("B", 300), ("C", 1200)):
        bags = drawn_bags(mnist, n, task)
        for name, statistic in (
            ("most within a tenth", lambda p: len(densest_group(p))),
            ("nearest neighbour", lambda p: -_nearest(p).mean()),
            ("fifth nearest at the densest", lambda p: -_nearest(p, 5).min()),
            ("spread of all", lambda p: p.std()),
        ):
            areas[task, name] = auc(*([statistic(places) for places, _ in half] for half in bags))
    assert areas["B", "most within a tenth"] > 0.75
    assert areas["B", "fifth nearest at the densest"] > 0.75
    for (task, name), value in areas.items():
        if task == "C":
            assert value == pytest.approx(0.5, abs=0.05), name


def _nearest(places, k=1):
    away = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    return np.sort(away, 1)[:, k]


def test_task_c_labels_depend_on_which_digits_lie_together(mnist):
    bags = drawn_bags(mnist, 300, "C")
    spread, share, first = [], [], []
    for half in bags:
        for _, digits in half:
            assert np.bincount(digits, minlength=10).tolist() == [9, 1] * 5
        odd = [(places[digits % 2 == 1], digits) for places, digits in half]
        spread.append([np.mean([np.hypot(*(p - q)) for p, q in _pairs(o)]) for o, _ in odd])
        share.append([(digits[densest_group(places)] % 2).mean() for places, digits in half])
        first.append([np.flatnonzero(digits % 2).mean() for _, digits in half])
    assert auc(spread[1], spread[0]) >= 0.999
    assert np.mean(spread[0]) == pytest.approx(0.05 * np.pi**0.5, rel=0.05)
    assert np.mean(spread[1]) == pytest.approx(0.521, rel=0.05)
    assert np.mean(share[0]) > 0.4 > 0.15 > np.mean(share[1])
    assert auc(*first) == pytest.approx(0.5, abs=0.09), "the order of the list says nothing"


def test_negative_task_c_groups_contain_each_even_digit(mnist):
    """Without shuffling, the first five digits of the draw lie close together."""

    class UnshuffledGenerator:
        def __init__(self):
            self.own = np.random.default_rng(1)

        def __getattr__(self, name):
            return getattr(self.own, name)

        def permutation(self, x):
            return np.arange(x) if isinstance(x, int) else x

    kinds = {}
    for example in spatial_bag._draw(
        mnist.pool("train"), 20, UnshuffledGenerator(), task="C", side=4096
    ):
        places = example.places_px0[:5] / 4096
        assert max(np.hypot(*(p - q)) for p, q in _pairs(places)) < 0.5
        digits = sorted(mnist.train_labels[example.sources[:5]].tolist())
        assert kinds.setdefault(example.labels["label"], digits) == digits
    assert kinds == {"positive": [1, 3, 5, 7, 9], "negative": [0, 2, 4, 6, 8]}


def _pairs(points):
    return itertools.combinations(points, 2)


@pytest.mark.parametrize("name", ["bag_b", "bag_c"])
def test_places_are_centres_of_whole_digits(written, mnist, name):
    table = written[name]
    for row, canvas, images, _, boxes in cases(table, mnist):
        places = np.load(table.parent / row["places"], allow_pickle=False)
        np.testing.assert_array_equal(places, boxes[:, :2] + 14)
        for (y, x), image in zip(places - 14, images, strict=True):
            np.testing.assert_array_equal(crop(canvas, y, x), image)


# -- a folder is written once ----------------------------------------------------------------------


def small(folder, mnist, **changed):
    options = {"n_train": 3, "n_test": 2, "seed": 0, "side": 300, "noise": 4, **changed}
    return megapixel_mnist.write(folder, mnist, **options)


def test_a_finished_folder_is_reused_and_a_damaged_one_repaired(tmp_path, mnist):
    table = small(tmp_path / "set", mnist)
    files = {p: p.read_bytes() for p in table.parent.rglob("*") if p.is_file()}
    times = {p: p.stat().st_mtime_ns for p in files}
    assert small(tmp_path / "set", mnist) == table
    assert {p: p.stat().st_mtime_ns for p in files} == times
    for lost in ("train/00001.sparse", "labels.csv", "digits.npz"):
        (table.parent / lost).unlink()
        small(tmp_path / "set", mnist)
        assert {p: p.read_bytes() for p in table.parent.rglob("*") if p.is_file()} == files


def test_a_killed_run_resumes_to_the_same_files(tmp_path, mnist, monkeypatch):
    table = small(tmp_path / "whole", mnist)
    calls = itertools.count()

    def killed(path, canvas):
        if next(calls) == 3:
            raise KeyboardInterrupt
        base_write(path, canvas)

    base_write = base.write_canvas
    monkeypatch.setattr(base, "write_canvas", killed)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "cut", mnist)
    assert not (tmp_path / "cut" / "labels.csv").exists()
    monkeypatch.undo()
    mended = small(tmp_path / "cut", mnist)
    for file in (p for p in table.parent.rglob("*") if p.is_file()):
        other = mended.parent / file.relative_to(table.parent)
        assert other.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"seed": 1}, "seed"), ({"variant": "ats"}, "variant"), ({"n_test": 3}, "n_test")],
)
def test_changed_settings_are_refused_by_name(tmp_path, mnist, changed, named):
    small(tmp_path / "set", mnist)
    with pytest.raises(OptionError, match=named):
        small(tmp_path / "set", mnist, **changed)


def test_folders_of_other_data_are_refused(tmp_path, mnist):
    small(tmp_path / "set", mnist)
    images = mnist.train_images.copy()
    images[0, 0, 0] ^= 1
    other = Mnist(images, mnist.train_labels, mnist.test_images, mnist.test_labels)
    with pytest.raises(OptionError, match="mnist"):
        small(tmp_path / "set", other)
    with pytest.raises(OptionError, match="recipe"):
        ultra_mnist.write(tmp_path / "set", mnist, n_train=3, n_test=2, seed=0, side=512)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "labels.csv").write_text("my own work\n")
    with pytest.raises(OptionError, match="mine"):
        small(mine, mnist)
    assert (mine / "labels.csv").read_text() == "my own work\n"
    (mine / "recipe.json").write_text("{")
    with pytest.raises(OptionError, match="damaged"):
        small(mine, mnist)


def test_all_settings_are_stored(written):
    noted = json.loads(written["ips"].with_name("recipe.json").read_text())
    assert noted.pop("mnist")
    assert noted == {
        "version": 1,
        "recipe": "megapixel_mnist",
        "variant": "ips",
        "side": 400,
        "noise": 20,
        **NUMBERS,
    }


@pytest.mark.parametrize(
    "call",
    [
        lambda f, m: megapixel_mnist.write(f, m, variant="dps"),
        lambda f, m: megapixel_mnist.write(f, m, side=100),
        lambda f, m: megapixel_mnist.write(f, m, noise=-1),
        lambda f, m: megapixel_mnist.write(f, m, n_train=0, n_test=0),
        lambda f, m: megapixel_mnist.write(f, m, n_train=-1),
        lambda f, m: megapixel_mnist.write(f, m, seed=-1),
        lambda f, m: ultra_mnist.write(f, m, side=1000),
        lambda f, m: needle_mnist.write(f, m, n_train=4, n_test=2, side=1000),
        lambda f, m: needle_mnist.write(f, m, n_train=4000, n_test=2),
        lambda f, m: spatial_bag.write(f, m, n_train=4, n_test=2, task="D"),
        lambda f, m: spatial_bag.write(f, m, n_train=4, n_test=2, side=100),
    ],
)
def test_impossible_values_are_refused_before_writing(tmp_path, mnist, call):
    with pytest.raises(OptionError):
        call(tmp_path / "set", mnist)
    assert not (tmp_path / "set").exists()


def test_a_single_split_can_be_written(tmp_path, mnist):
    rows = read_table(small(tmp_path / "set", mnist, n_train=0))
    assert [row["split"] for row in rows] == ["test"] * 2


def test_a_canvas_too_small_for_its_digits_is_an_error():
    with pytest.raises(OptionError, match="room"):
        base.place([(0, 0, 28)], lambda: (5, 5, 28), 100)
    with pytest.raises(OptionError, match="room"):
        base.place([], lambda: (80, 5, 28), 100)
    assert base.place([(0, 0, 28)], lambda: (28, 0, 28), 100) == (28, 0, 28)


# -- MNIST's own files -----------------------------------------------------------------------------


def put_mnist(folder, mnist, *, packed):
    folder.mkdir()
    arrays = (mnist.train_images, mnist.train_labels, mnist.test_images, mnist.test_labels)
    for i, (name, array) in enumerate(zip(FILES, arrays, strict=True)):
        data = encode_idx(array)
        as_gzip = i in packed
        path = folder / (f"{name}.gz" if as_gzip else name)
        path.write_bytes(gzip.compress(data) if as_gzip else data)


def test_idx_files_are_read_with_and_without_gzip(tmp_path, mnist):
    put_mnist(tmp_path / "set", mnist, packed=(0, 3))
    loaded = load_mnist(tmp_path / "set")
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(mnist, name))
    assert loaded.digest == mnist.digest


def test_a_missing_file_error_lists_the_expected_files(tmp_path, mnist):
    put_mnist(tmp_path / "set", mnist, packed=())
    (tmp_path / "set" / FILES[2]).unlink()
    with pytest.raises(ImageNotFound) as caught:
        load_mnist(tmp_path / "set")
    for word in (str(tmp_path / "set"), *FILES, "http"):
        assert word in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:6],
        lambda data: b"",
        lambda data: b"\0\0\x09" + data[3:],
        lambda data: b"\0\0\x08\x09" + data[4:],
        lambda data: data[:4] + b"\xff" * 12 + data[16:],
        lambda data: b"<html>not found</html>",
    ],
)
def test_a_damaged_idx_file_is_an_error_that_names_it(tmp_path, packed, damage):
    path = tmp_path / "damaged"
    data = damage(encode_idx(np.zeros((3, 28, 28), np.uint8)))
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UnreadableImage, match="damaged"):
        read_idx(path)


def test_a_truncated_gzip_file_is_an_error(tmp_path):
    path = tmp_path / "short.gz"
    path.write_bytes(gzip.compress(encode_idx(np.arange(100, dtype=np.uint8)))[:-9])
    with pytest.raises(UnreadableImage, match=r"short\.gz"):
        read_idx(path)
    with pytest.raises(ImageNotFound):
        read_idx(tmp_path / "absent")


@pytest.mark.parametrize(
    "changed",
    [
        {"train_labels": np.zeros(299, np.uint8)},
        {"train_images": np.zeros((300, 27, 28), np.uint8)},
        {"train_labels": np.full(300, 10, np.uint8)},
    ],
)
def test_images_and_labels_must_belong_together(tmp_path, mnist, changed):
    parts = {n: getattr(mnist, n) for n in ("train_images", "train_labels")} | changed
    other = Mnist(**parts, test_images=mnist.test_images, test_labels=mnist.test_labels)
    put_mnist(tmp_path / "set", other, packed=())
    with pytest.raises(UnreadableImage, match="train-images"):
        load_mnist(tmp_path / "set")


def test_a_pool_needs_every_digit():
    images, labels = made_pool(100, 0, 1)
    with pytest.raises(OptionError, match="every label"):
        Pool(images[labels != 4], labels[labels != 4])


def test_the_real_mnist_files(tmp_path):
    if not MNIST.is_dir():
        pytest.skip(f"MNIST is not here: {MNIST}")
    mnist = load_mnist(MNIST)
    assert mnist.train_images.shape == (60_000, 28, 28)
    assert mnist.test_images.shape == (10_000, 28, 28)
    assert np.bincount(mnist.train_labels)[3] == 6131
    table = megapixel_mnist.write(tmp_path / "set", mnist, n_train=4, n_test=4, seed=0)
    for row, canvas, images, digits, boxes in cases(table, mnist):
        assert canvas.shape == (1500, 1500)
        assert len(canvas.origins) == 55
        assert int(row["max"]) == digits.max()
        for image, (y, x, *_) in zip(images, boxes, strict=True):
            np.testing.assert_array_equal(crop(canvas, y, x), image)
