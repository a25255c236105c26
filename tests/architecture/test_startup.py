"""Importing foveate and asking for help load nothing heavy."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "torch",
    "numpy",
    "pandas",
    "timm",
    "lightning_fabric",
    "openslide",
    "tifffile",
    "matplotlib",
)


def _modules_loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_importing_the_package_is_light() -> None:
    assert not _modules_loaded_by("import foveate") & set(HEAVY)


def test_help_is_light() -> None:
    code = (
        "import contextlib, io\nfrom foveate.cli import main\nsys.argv = ['foveate', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main()"
    )
    assert not _modules_loaded_by(code) & set(HEAVY)
