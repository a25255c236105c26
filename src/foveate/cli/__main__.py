"""Entry point of ``python -m foveate.cli``."""

from foveate.cli import main

main()
