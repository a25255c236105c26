"""Opening of files: the content selects the reader, errors name the file, plug-ins work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.errors import ImageNotFound, UnsupportedFormat
from foveate.readers import open_image

DATA = Path(__file__).resolve().parents[2] / "../shared/data"


def test_files_that_are_no_images_are_refused_by_name(tmp_path):
    with pytest.raises(ImageNotFound, match=r"nothing\.svs"):
        open_image(tmp_path / "nothing.svs")
    with pytest.raises(UnsupportedFormat, match="folder"):
        open_image(tmp_path)
    for name, data in {"empty.svs": b"", "text.tif": b"not a slide\n" * 40}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnsupportedFormat, match=name):
            open_image(tmp_path / name)


def test_the_reader_is_chosen_by_content(tmp_path):
    odd = tmp_path / "picture.svs"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(odd, format="PNG")
    with open_image(str(odd)) as image:
        assert image.kind == "picture"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vendor_wsi/olympus/vsi-ets-test-jpg2k.vsi", "Olympus VSI"),
        ("vendor_wsi_emulated/region.czi", "CZI"),
    ],
)
def test_files_that_would_be_read_wrongly_are_refused(name, reason, tmp_path):
    path = next(iter(sorted(DATA.glob(name))), None)
    if path is None:
        pytest.skip(f"no sample files at {DATA}")
    with pytest.raises(UnsupportedFormat, match=reason):
        open_image(path)
    renamed = tmp_path / "renamed.tif"
    renamed.write_bytes(path.read_bytes())
    with pytest.raises(UnsupportedFormat):
        open_image(renamed)


def test_a_reader_in_a_plugin_folder_takes_part(tmp_path):
    folder = tmp_path / "readers"
    folder.mkdir()
    (folder / "plain.py").write_text(PLAIN_READER, encoding="utf-8")
    (tmp_path / "a.plain").write_bytes(b"PLAIN7")
    program = (
        "from pathlib import Path; from foveate import parts; from foveate.readers import "
        f"open_image; parts.add_plugin_folder(Path({str(tmp_path)!r})); "
        f"print(open_image({str(tmp_path / 'a.plain')!r}).glimpse(1.0).sum())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(7 * 16)


PLAIN_READER = '''
import numpy as np
from foveate.images.level import Level
from foveate.readers.base import AbstractReader


class PlainReader(AbstractReader):
    """One grey value."""

    priority = 99

    def __init__(self, path):
        super().__init__(path)
        self.kind, self.reader, self.spacing_um = "slide", "plain", (1.0, 1.0)
        self.levels = (Level((4, 4), (1.0, 1.0)),)
        self.channels, self.dtype = 1, np.dtype(np.uint8)

    @classmethod
    def recognises(cls, path, head):
        return head.startswith(b"PLAIN")

    def _read_level(self, level, origin_px, size_px):
        return np.full((*size_px, 1), 7, np.uint8)

    def close(self):
        pass
'''


def test_importing_the_readers_is_light():
    program = (
        "import sys, foveate.readers; from foveate import parts; "
        "[parts.find('readers', n) for n in parts.names('readers')]; "
        "heavy = ('tifffile', 'imagecodecs', 'openslide', 'PIL', 'torch'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


VENDORS = {
    "vendor_wsi/aperio/CMU-1-Small-Region.svs": "TiffReader",
    "vendor_wsi/dicom_cmu1_pyramid": "DicomSlideReader",
    "vendor_wsi/generic_tiff/boxes.tiff": "TiffReader",
    "vendor_wsi/generic_tiff/test.tif": "TiffReader",
    "vendor_wsi/hamamatsu/test3-DAPI-2-(387).ndpi": "OpenSlideReader",
    "vendor_wsi_emulated/aperio_jp2k_33005.svs": "TiffReader",
    "vendor_wsi_emulated/dicom": "DicomSlideReader",
    "vendor_wsi_emulated/flat.jpg": "PictureReader",
    "vendor_wsi_emulated/flat_rgba.png": "PictureReader",
    "vendor_wsi_emulated/flat_strips_deflate.tif": "TiffReader",
    "vendor_wsi_emulated/leica.scn": "OpenSlideReader",
    "vendor_wsi_emulated/philips.tiff": "OpenSlideReader",
    "vendor_wsi_emulated/pyramid.ome.tif": "TiffReader",
    "vendor_wsi_emulated/trestle.tif": "OpenSlideReader",
}


@pytest.mark.parametrize("name", VENDORS)
def test_each_vendors_file_has_its_reader(name: str, shared_data: Path) -> None:
    with open_image(shared_data / name) as image:
        assert type(image).__name__ == VENDORS[name]
