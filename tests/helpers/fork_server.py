"""A process that has imported ``foveate`` once, and forks for each command of the tests.

Starting Python and importing PyTorch takes some five seconds of computing, a fork a few
milliseconds. The server never computes: before its first fork it has a single thread, so that a
command begins as in a fresh interpreter. `helpers.commands` sends the requests, each a JSON object
with the files for output, errors and the exit code.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("torchvision", "timm", "lightning_fabric", "safetensors.torch", "sklearn.metrics"),
    *("sklearn.model_selection", "scipy.stats", "jinja2", "PIL.Image"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    *("tifffile", "imagecodecs", "openslide", "h5py", "nibabel", "openpyxl", "rich.console"),
)
"""What commands import when they first need it."""

MAX_REQUEST_BYTES = 1 << 20


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; return the request in the new process, None when there are no more."""
    import_all()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork loses all threads but one"
    gc.freeze()  # else the first collection in a command copies all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watching processes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, files, _, _ = socket.recv_fds(channel, MAX_REQUEST_BYTES, 3)
        if not message:
            return None
        if os.fork() == 0:
            if start_and_watch(channel, files):
                return dict(json.loads(message))
            os._exit(0)
        for file in files:
            os.close(file)


def import_all() -> None:
    """Import all modules of ``foveate``, and the libraries that it imports later."""
    package = importlib.import_module("foveate")
    for module in pkgutil.walk_packages(package.__path__, "foveate."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in LIBRARIES:
        importlib.import_module(name)


def start_and_watch(channel: socket.socket, files: list[int]) -> bool:
    """Fork the process of a command; write its number and, when it has ended, its exit code.

    Args:
        channel: the socket of the requests, which is closed.
        files: open files for the output, the errors, and the two numbers.

    Returns:
        True in the process of the command, False in the one that watched it.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output, errors, status = files
    child = os.fork()
    if child:
        os.write(status, b"%d\n" % child)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(status, b"%d\n" % code)
        return False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for file, number in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (errors, 2)):
        os.dup2(file, number)
    channel.detach()
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return True


def run(request: dict[str, Any]) -> None:
    """Run a command in this process: its words, environment, folder and limit of a resource."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if request["limit"] is not None:
        kind, limit = request["limit"]
        resource.setrlimit(kind, (limit, limit))
    sys.argv[1:] = request["words"]
    runpy.run_module("foveate", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    received = serve(socket.socket(fileno=int(sys.argv[1])))
    if received is not None:
        run(received)
