"""Weights from the user's file, from the command line: trained, stored, used without the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from foveate.runs.folder import read_json
from helpers.commands import Completed

Command = Callable[..., Completed]

VIEW = ("--epochs", "1", "--heatmaps", "1", "--view.spacing-um", "2")


@pytest.mark.parametrize(
    ("method", "patch_px", "glimpse_um"),
    [
        pytest.param("glimpse", 40, "17", marks=pytest.mark.slow),
        pytest.param("abmil", 33, "40", marks=pytest.mark.slow),
        pytest.param("tnet", 32, "16", marks=pytest.mark.slow),
        ("downsampled", 33, "21"),
    ],
)
def test_a_vit_from_a_file(
    method: str,
    patch_px: int,
    glimpse_um: str,
    tiny_cohort: Path,
    tmp_path: Path,
    foveate: Command,
) -> None:
    """The sides of patches and glimpses are not multiples of the ViT's patch size."""
    torch.manual_seed(1)
    net = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=48, depth=2, num_heads=3, init_values=1e-5, reg_tokens=2
    )
    path, out = tmp_path / "vit.pth", tmp_path / "run"
    torch.save({"teacher": {f"backbone.{k}": v for k, v in net.state_dict().items()}}, path)
    words = ("--method", method, "--encoder", "vit_tiny_patch16_224", "--encoder.weights", path)
    words = (*words, "--encoder.model-args", "num_heads=3", "--encoder.dim", "16", *VIEW)
    words = (*words, "--view.patch-px", str(patch_px), "--view.glimpse-spacing-um", glimpse_um)
    result = foveate("train", tiny_cohort, "--out", out, *words)
    assert result.returncode == 0, result.stderr
    stored = read_json(out / "fold_0" / "model" / "model.json")["encoder_options"]
    assert len(stored["weights_sha256"]) == 12
    assert "depth=2" in stored["model_args"]
    path.unlink()
    result = foveate("evaluate", out, tiny_cohort, "--out", tmp_path / "again")
    assert result.returncode == 0, result.stderr
    again = read_json(tmp_path / "again" / "metrics.json")["metrics"]["auroc"]["value"]
    assert 0 <= again <= 1


def test_a_file_that_does_not_fit_stops_the_run_in_one_line(
    tiny_cohort: Path, tmp_path: Path, foveate: Command
) -> None:
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    words = ("train", tiny_cohort, *VIEW, "--view.patch-px", "32", "--encoder", "resnet18")
    result = foveate(*words, "--out", tmp_path / "one", "--encoder.weights", path)
    assert result.returncode == 1
    assert f"{path} does not fit encoder 'resnet18'" in result.stderr
    assert "Traceback" not in result.stderr
    result = foveate(*words, "--out", tmp_path / "two", "--encoder.weights", tmp_path / "no.pth")
    assert result.returncode == 1
    assert "no.pth: no such file" in result.stderr
