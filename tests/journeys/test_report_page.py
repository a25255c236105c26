"""The report in a real browser: all is visible, nothing overflows or is fetched."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.reports import write_report
from unit.test_report import handmade_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
    *("--hide-scrollbars", "--allow-file-access-from-files"),
)
# A frame of a given width around the page, which reports how the browser rendered it.
FRAME = """<!DOCTYPE html><body style="margin:0">
<iframe id="f" src="report.html" style="width:{width}px;height:900px;border:0"></iframe>
<pre id="told"></pre><script>
addEventListener('load', () => {{
  const page = document.getElementById('f').contentDocument;
  const pictures = [...page.images];
  pictures.forEach(i => i.loading = 'eager');
  const wait = setInterval(() => {{
    if (!pictures.every(i => i.complete)) return;
    clearInterval(wait);
    document.getElementById('told').textContent = 'TOLD' + JSON.stringify({{
      width: page.documentElement.scrollWidth,
      pictures: pictures.length,
      broken: pictures.filter(i => !i.naturalWidth).length,
      fetched: page.defaultView.performance.getEntriesByType('resource')
        .map(r => r.name).filter(n => !n.startsWith('data:')),
      sections: [...page.querySelectorAll('section')].filter(s => s.offsetHeight > 40).length,
      scripts: page.querySelectorAll('script').length,
    }}) + 'END';
  }}, 50);
}});
</script></body>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to look at the page")


def browse(tmp_path: Path, *words: str) -> str:
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(CHROMIUM), *FLAGS, profile, "--virtual-time-budget=10000", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return result.stdout


@pytest.mark.parametrize("width", [1200, 390, 320])
def test_page_fits_and_shows_everything(width, tmp_path):
    run = handmade_run(tmp_path / "Lauf")
    write_report(run)
    (run / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    out = browse(tmp_path, "--dump-dom", (run / "frame.html").as_uri())
    match = re.search("TOLD(.*)END</pre>", out, re.DOTALL)
    assert match, out[-500:]
    measured = json.loads(unescape(match[1]))
    assert measured["width"] <= width
    assert (measured["pictures"], measured["broken"], measured["fetched"]) == (13, 0, [])
    assert measured["sections"] == 12
    assert measured["scripts"] == 1


def test_page_is_not_blank(tmp_path):
    run = handmade_run(tmp_path / "Lauf")
    page = write_report(run)
    shot = tmp_path / "shot.png"
    browse(tmp_path, "--window-size=1200,3000", f"--screenshot={shot}", page.as_uri())
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape == (3000, 1200)
    for band in np.array_split(pixels, 8):
        assert band.std() > 5
