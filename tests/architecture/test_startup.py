"""Importing foveate and asking for help load nothing heavy."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "numpy", "pandas", "timm", "lightning", "openslide", "tifffile", "matplotlib")


def _loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_is_light() -> None:
    assert not _loaded("import foveate") & set(HEAVY)


def test_help_is_light() -> None:
    code = (
        "import contextlib, io\nfrom foveate.cli import main\nsys.argv = ['foveate', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main()"
    )
    assert not _loaded(code) & set(HEAVY)
