"""Entry point of ``foveate`` and of ``python -m foveate``."""

import os
import signal


def main() -> None:
    """Run the command line in a process of its own, which signals end without a trace."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            # Until a command handles signals, and after it has ended, nothing is to be lost.
            signal.signal(number, lambda n, _: os._exit(128 + n))
    from foveate.cli import main as run

    run()


if __name__ == "__main__":
    main()
