"""What a plug-in may change of `glimpse`, and a program of the loader: answers and foreground."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.batch import Batch, LoadedImage, View
from foveate.encoders.small import SmallEncoder
from foveate.images.image import AbstractImage
from foveate.loading.loader import CaseLoader
from foveate.nn.heads import Head
from foveate.parts import add_plugin_folder, find
from foveate.table import Case, read_cases

VIEW = View(spacing_um=1.0, patch_px=32, glimpse_spacing_um=16.0)
METHOD = '''
"""`glimpse` whose patches answer alone."""
from foveate.methods.glimpse import Glimpse


class Voting(Glimpse):
    """Answer with the mean of the patches' own answers; what was pooled is learnt beside it."""

    summary = "glimpse by votes"

    def combine_answers(self, alone, pooled):
        """Take the answers of single patches."""
        return alone, {"pooled": pooled}
'''


def read_upper_half(case: Case, image: AbstractImage, view: View) -> LoadedImage:
    """Read a glimpse whose foreground is its upper half."""
    glimpse = image.glimpse(view.glimpse_spacing_um)
    contrast = np.zeros(glimpse.shape[:-1], np.uint8)
    contrast[: len(contrast) // 2] = 255
    return LoadedImage(case.image_id, image, glimpse, contrast)


@pytest.fixture
def upper_half() -> Iterator[CaseLoader]:
    """Open a loader for which the lower half of an image is background."""
    loader = CaseLoader(VIEW, read=read_upper_half)
    yield loader
    loader.close()


def make_batch(loader: CaseLoader, table: Path) -> Batch:
    items = [loader.load(case) for case in read_cases(table).cases[:2]]
    normalise = ((0.5,) * 3, (0.25,) * 3)
    return Batch(
        items, view=VIEW, normalise=normalise, device=torch.device("cpu"), pool=loader.threads
    )


def test_a_loader_reads_glimpses_with_the_function_that_it_is_given(
    tiny_cohort: Path, upper_half: CaseLoader
) -> None:
    batch = make_batch(upper_half, tiny_cohort)
    for i, item in enumerate(batch.items):
        centres = batch.cover(i, (0.0, 0.0)).centre_um
        assert len(centres) > 4
        assert centres[:, 0].max() < 0.6 * item.image.box_um.size[0]


def test_a_plug_in_combines_the_answers_of_glimpse(
    tiny_cohort: Path, tmp_path: Path, loader: CaseLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.parts._folders", [])
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "voting.py").write_text(METHOD, encoding="utf-8")
    add_plugin_folder(tmp_path)
    torch.manual_seed(0)
    heads = (Head("most", 3, True, "sum"),)
    method = find("methods", "voting")(
        encoder=SmallEncoder(width=8, dim=16), heads=heads, patches=3, eval_patches=4
    )
    alone: list[torch.Tensor] = []
    method.head_instance.register_forward_hook(lambda _, __, answer: alone.append(answer))
    batch = make_batch(loader, tiny_cohort)
    with torch.inference_mode():
        torch.testing.assert_close(method.eval()(batch).logits, alone[0])
    further = method.train()(batch).further
    assert set(further) >= {"instance", "pooled", "expected", "spread"}
    assert further["pooled"].logits.shape == (2, 3)
