"""Mutation fuzz: small files of every readable kind with bytes flipped, cut and spliced.

    python benchmarks/fuzz.py [--inputs 20000] [--seed 0] [--kinds images,tables,configs,models]
        [--keep FOLDER] [--seeds FOLDER ...]

Every image is opened by `foveate.readers.open_image`, looked at as a glimpse, and read at two
corners of each level; tables are read as `train` and `predict` do, configurations parsed, model
folders loaded; all in child processes with limits. Each has to end well or as an error of
`foveate.errors` of one line; of images and tables it names the file. The exit code is 1 if one did
not.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _fuzz_kinds as kinds
import imagecodecs
import nibabel
import numpy as np
import openslide
import PIL
import tifffile
import torch
from PIL import Image

from foveate.errors import FoveateError
from foveate.geometry import Box, Frame
from foveate.images.image import AbstractImage
from foveate.images.respaced import RespacedImage
from foveate.readers import open_image

SECONDS_EACH = 20
"""Limit of CPU seconds per input; the limit of the clock is six times as long."""
MEMORY_BYTES = 2 << 30
_ADDRESS_BYTES = 6 << 30
_RENEW_BYTES = 1 << 30
_MAX_LETTERS = 2000
_NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
_PYTHON = re.compile(r"\b[A-Z]\w*(Error|Exception|Warning)\b|Traceback|object at 0x|Errno")

# -- seeds ---------------------------------------------------------------------------------------


def picture(height: int, width: int, samples: int = 3, top: int = 255) -> np.ndarray:
    """Return waves with some noise, ``(y, x, samples)``."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / (9 + s)) * np.cos(x / (11 + s)) for s in range(samples)]
    noise = np.random.default_rng(0).normal(0, 0.02, (height, width, 1))
    values = np.clip(np.stack(waves, -1) * 0.4 + 0.5 + noise, 0, 1) * top
    return values.astype(np.uint8 if top < 256 else np.uint16)


def write_seeds(folder: Path) -> None:
    """Write a few small files of every kind that is read."""
    rgb, grey = picture(120, 150), picture(120, 150, 1)[..., 0]
    um: dict[str, Any] = {
        "resolution": (2e4, 2e4),
        "resolutionunit": "CENTIMETER",
        "metadata": None,
    }
    for codec in ("none", "lzw", "zlib", "zstd", "packbits", "jpeg", "webp", "jpeg2000"):
        tifffile.imwrite(
            folder / f"tiles_{codec}.tif", rgb, photometric="rgb", tile=(64, 64),
            compression=codec, **um,
        )  # fmt: skip
    for codec in ("none", "lzw", "zlib", "packbits", "jpeg"):
        tifffile.imwrite(
            folder / f"strips_{codec}.tif", rgb, photometric="rgb", rowsperstrip=16,
            compression=codec, predictor=codec in ("lzw", "zlib"), **um,
        )  # fmt: skip
    tifffile.imwrite(folder / "grey16.tif", picture(90, 70, 1, 4095)[..., 0], tile=(32, 32))
    tifffile.imwrite(folder / "big_endian.tif", grey, byteorder=">", bigtiff=True, rowsperstrip=9)
    alpha = np.dstack([rgb, grey])
    tifffile.imwrite(
        folder / "alpha.tif", alpha, photometric="rgb", extrasamples=["unassalpha"],
        compression="packbits", rowsperstrip=8,
    )  # fmt: skip
    table = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16)
    tifffile.imwrite(folder / "palette.tif", grey, photometric="palette", colormap=table)
    tifffile.imwrite(
        folder / "planes.tif", np.moveaxis(rgb, -1, 0), photometric="rgb",
        planarconfig="separate", tile=(64, 64),
    )  # fmt: skip
    _write_pyramids(folder, picture(256, 384), um)
    _write_pictures(folder, rgb, grey)
    volume = np.random.default_rng(0).integers(-900, 2000, (12, 11, 10), np.int16)
    image = nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 2.0, 1.0]))
    for name in ("volume.nii", "volume.nii.gz"):
        nibabel.save(image, folder / name)
    nibabel.save(nibabel.Nifti2Image(volume.astype(np.float64), np.eye(4)), folder / "second.nii")


def _write_pyramids(folder: Path, rgb: np.ndarray, um: dict[str, Any]) -> None:
    """Write the pyramidal TIFF seeds."""
    aperio = "Aperio Image Library v11\r\n384x256 (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(folder / "aperio.svs") as file:
        tiles: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "compression": "jpeg"}
        tiles["metadata"] = None
        file.write(rgb, description=aperio, **tiles)
        file.write(rgb[::4, ::4], description=aperio, **tiles)
    with tifffile.TiffWriter(folder / "pyramid.ome.tif", ome=True) as file:
        tiles = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
        size = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        file.write(rgb, subifds=1, metadata=size, **tiles)
        file.write(rgb[::2, ::2], subfiletype=1, **tiles)
    trestle = "Background Color=E6E6E6;White Balance=0;Objective Power=10;"
    with tifffile.TiffWriter(folder / "trestle.tif") as file:
        file.write(
            rgb, description=trestle, software="MedScan 1.0", tile=(64, 64), photometric="rgb",
            compression="jpeg", **um,
        )  # fmt: skip
    with tifffile.TiffWriter(folder / "absent.tif") as file:
        tile = np.full((64, 64, 3), 90, np.uint8)
        file.write(
            (tile if i in (0, 9) else None for i in range(64)), shape=(512, 512, 3),
            dtype=np.uint8, tile=(64, 64), photometric="rgb", compression="zlib", **um,
        )  # fmt: skip
    jp2 = imagecodecs.jpeg2k_encode(rgb[:64, :64], level=0, codecformat="j2k")
    (folder / "bare.j2k").write_bytes(jp2)


def _write_pictures(folder: Path, rgb: np.ndarray, grey: np.ndarray) -> None:
    """Write the picture seeds."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(rgb)
    image.save(folder / "a.png")
    image.save(folder / "a.jpg", exif=exif)
    image.save(folder / "progressive.jpg", progressive=True)
    image.save(folder / "a.bmp")
    image.save(folder / "a.webp")
    image.save(folder / "lossless.webp", lossless=True)
    image.convert("P").save(folder / "a.gif")
    Image.fromarray(np.dstack([rgb, grey])).save(folder / "alpha.png")
    Image.fromarray(picture(60, 50, 1, 65535)[..., 0]).save(folder / "grey16.png")
    image.convert("P").save(folder / "palette.png", transparency=3)


# -- mutations -----------------------------------------------------------------------------------


def mutate_seed(
    seeds: list[bytes], names: list[str], rng: np.random.Generator
) -> tuple[int, bytes]:
    """Return the number of a seed and its bytes after a few mutations, mostly one or two."""
    which = int(rng.integers(len(seeds)))
    data, n = bytearray(seeds[which]), min(6, int(rng.geometric(0.5)))
    is_text = names[which].endswith((".csv", ".tsv", ".yaml", ".json"))

    def mutate(content: bytearray, by_words: bool = is_text) -> None:
        for _ in range(n):
            if by_words and rng.integers(3):
                kinds.mutate_words(content, rng)
            else:
                _mutate(content, seeds, rng)
            content[:] = content or b"\0"

    if names[which].endswith(".xlsx") and rng.integers(4):
        kinds.mutate_member(data, rng, mutate)
    else:
        mutate(data)
    return which, bytes(data)


def _mutate(data: bytearray, seeds: list[bytes], rng: np.random.Generator) -> None:
    # Half of all changes hit the first or last kilobyte, where headers and directories lie.
    """Apply one random mutation to bytes in place."""
    n = len(data)
    near = min(n, 1024)
    at = int(rng.choice([rng.integers(n), rng.integers(near), n - 1 - rng.integers(near)]))
    kind = rng.integers(8)
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at] = int(rng.integers(256))
    elif kind in (2, 3):
        width, order = int(rng.choice([2, 4, 8])), rng.choice(["<", ">"])
        value = int(rng.choice(_NUMBERS)) & ((1 << 8 * width) - 1)
        code = {2: "H", 4: "I", 8: "Q"}[width]
        data[at : at + width] = struct.pack(f"{order}{code}", value)
    elif kind == 4:
        del data[at:]
    elif kind == 5:
        del data[at : at + int(rng.integers(1, 64))]
    elif kind == 6:
        other = seeds[int(rng.integers(len(seeds)))]
        start = int(rng.integers(len(other)))
        data[at : at + int(rng.integers(1, 64))] = other[start : start + int(rng.integers(1, 64))]
    else:
        start, many = int(rng.integers(n)), int(rng.integers(1, 256))
        data[at : at + many] = data[start : start + many]


# -- the child -----------------------------------------------------------------------------------


def visit(path: Path) -> dict[str, object]:
    """Use a file as a user would, and return the outcome."""
    kind = kinds.kind_of(path.name)
    try:
        if kind == "images":
            visit_image(path)
        elif kind == "tables":
            kinds.visit_table(path, path.parent / "images")
        elif kind == "configs":
            kinds.visit_config(path)
        else:
            kinds.visit_model(path, path.parent / "kept")
        return {"outcome": "read"}
    except FoveateError as error:
        text = str(error)
        # The command line puts what is quoted from a configuration or a card on one line.
        clear = kind in ("configs", "models") or ("\n" not in text and path.name in text)
        clear &= not _PYTHON.search(text) and len(text) <= _MAX_LETTERS
        return {"outcome": "refused" if clear else "unclear", "message": text[:_MAX_LETTERS]}
    except BaseException as error:  # noqa: BLE001 (this is what the fuzz looks for)
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        return {"outcome": "foreign", "message": message}


def visit_image(path: Path) -> None:
    """Open an image, read a glimpse and two corners of each level."""
    with open_image(path) as image:
        placed: AbstractImage = image
        if image.spacing_um is None:
            placed = RespacedImage(image, (1.0,) * image.ndim, unit="px")
        placed.glimpse(max(placed.box_um.size) / 128)
        for level, facts in list(enumerate(image.levels))[:8]:
            size = tuple(min(n, 70) for n in facts.shape)
            far = tuple(n - s for n, s in zip(facts.shape, size, strict=True))
            for origin in ((0,) * image.ndim, far):
                image.read(Box(origin, size, Frame.PX, level))


def child(inputs: Iterator[tuple[int, Path]], answers: int) -> None:
    """Visit inputs and write one JSON line for each, until they end or memory grows too large."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
    for i, path in inputs:
        signal.alarm(6 * SECONDS_EACH)
        signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
        os.write(answers, f'{{"begun": {i}}}\n'.encode())
        begun = time.process_time()
        outcome = visit(path)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        outcome |= {"index": i, "seconds": time.process_time() - begun, "peak": peak}
        os.write(answers, (json.dumps(outcome) + "\n").encode())
        if peak > _RENEW_BYTES:
            return


# -- the parent ----------------------------------------------------------------------------------


def visit_in_children(
    todo: range, folder: Path, names: list[str], seeds: list[bytes], seed: int
) -> Iterator[dict[str, Any]]:
    """Yield the outcome of each input; the death of a child counts for its current input."""

    def inputs(start: int) -> Iterator[tuple[int, Path]]:
        for i in range(start, todo.stop):
            which, data = mutate_seed(seeds, names, np.random.default_rng((seed, i)))
            path = folder / f"{i}_{names[which]}"
            path.write_bytes(data)
            yield i, path
            path.unlink(missing_ok=True)

    start = todo.start
    while start < todo.stop:
        before = start
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 2)
            code = 1
            try:
                child(inputs(start), write_end)
                code = 0
            finally:
                os._exit(code)
        os.close(write_end)
        begun = start
        with os.fdopen(read_end) as answers:
            for line in answers:
                result = json.loads(line)
                if "begun" in result:
                    begun = result["begun"]
                else:
                    start = result["index"] + 1
                    yield result
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            outcome = "hang" if number in (signal.SIGALRM, signal.SIGPROF) else "signal"
            yield {"outcome": outcome, "index": begun, "message": signal.Signals(number).name}
            start = begun + 1
        elif start == before:
            raise SystemExit(f"the child ended before input {start}: exit code {status >> 8}")


def main() -> int:
    """Run the fuzz and print failures; returns the exit code."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--inputs", type=int, default=20_000)
    words.add_argument("--first", type=int, default=0)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--seeds", type=Path, action="append", default=[], help="further seed files")
    words.add_argument("--only", default="", help="seeds with this in their name alone")
    words.add_argument("--kinds", default=",".join(kinds.KINDS), help="of seeds, of these alone")
    words.add_argument("--keep", type=Path, help="where findings are written")
    options = words.parse_args()
    torch.set_num_threads(1)  # children are forked, and threads are not
    counts: collections.Counter[str] = collections.Counter()
    slowest: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "seeds"
        made.mkdir()
        write_seeds(made)
        for name in ("images", "kept"):
            (Path(scratch) / name).mkdir()
        kinds.write_images(Path(scratch) / "images")
        kinds.write_seeds(made, options.kinds.split(","))
        paths = sorted(made.iterdir())
        for folder in options.seeds:
            paths += sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
        paths = [path for path in paths if options.only in path.name]
        paths = [path for path in paths if kinds.kind_of(path.name) in options.kinds.split(",")]
        seeds, names = [p.read_bytes() for p in paths], [p.name for p in paths]
        begun, cpu = time.perf_counter(), os.times()
        todo = range(options.first, options.first + options.inputs)
        for result in visit_in_children(todo, Path(scratch), names, seeds, options.seed):
            outcome = str(result["outcome"])
            if float(result.get("peak", 0)) > MEMORY_BYTES:
                outcome = "memory"
            counts[outcome] += 1
            slowest = sorted([*slowest, (float(result.get("seconds", 0)), int(result["index"]))])[
                -5:
            ]
            if outcome in ("read", "refused"):
                continue
            index = int(result["index"])
            rng = np.random.default_rng((options.seed, index))
            which, data = mutate_seed(seeds, names, rng)
            print(
                f"{outcome}: input {index} of {names[which]}: {result.get('message')}", flush=True
            )
            if options.keep is not None:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{outcome}_{index}_{names[which]}").write_bytes(data)
        seconds, now = time.perf_counter() - begun, os.times()
    spent = sum(now[:4]) - sum(cpu[:4])
    print(
        f"{sum(counts.values())} inputs from {len(seeds)} seeds in {seconds:.0f} s "
        f"({spent:.0f} s of CPU): "
        + ", ".join(
            f"{counts[key]} {key}"
            for key in ("read", "refused", "unclear", "foreign", "hang", "signal", "memory")
        )
        + f"; slowest {', '.join(f'{s:.1f} s (input {i})' for s, i in reversed(slowest))}; "
        f"OpenSlide {openslide.__library_version__}, tifffile {tifffile.__version__}, "
        f"imagecodecs {imagecodecs.__version__}, Pillow {PIL.__version__}, "
        f"nibabel {nibabel.__version__}"
    )
    return int(any(counts[key] for key in counts if key not in ("read", "refused")))


if __name__ == "__main__":
    sys.exit(main())
