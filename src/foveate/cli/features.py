"""The command features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli.flags import option_flags, plugins_flag
from foveate.cli.results import print_set_aside
from foveate.cli.words import Sectioned, take_sections
from foveate.files.run_layout import FeaturesLayout
from foveate.workflows.feature_options import FeatureOptions

_HELP = """Embed all patches of the images of a TABLE or FOLDER, one HDF5 file each.

The patches are those with foreground, on the lattice of the methods that read all patches. Other
programs read the files (TRIDENT, CLAM, STAMP), and so does foveate: train on OUT/features.csv. The
same command continues where it was stopped. Options of the encoder and of readers are flags, too:

\b
  --encoder vit_large_patch16_224 --encoder.weights uni.safetensors
"""


@click.command(
    cls=Sectioned,
    help=_HELP,
    short_help="Embed all patches of a TABLE or FOLDER, and write files of features.",
)
@click.argument("source", metavar="TABLE|FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the results."
)
@option_flags(FeatureOptions, without=("encoder_options", "reader_options"))
@plugins_flag
@click.pass_context
def features(ctx: click.Context, /, source: Path, out: Path, **options: Any) -> int:
    """Embed all patches of images, and write files of features."""
    import foveate
    from foveate.cli.terminal import Terminal

    sections = take_sections(ctx, "encoder_options", "reader_options")
    with Terminal() as terminal:
        chosen = FeatureOptions(**options, **sections)
        result = foveate.extract_features(source, out, chosen, on_progress=terminal)
    files = FeaturesLayout(out)
    click.echo(f"{result!r}\nwritten: {files.table}, one file for each image in {files.files}")
    return print_set_aside(len(result.failed), out)
