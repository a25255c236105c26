"""What the machine has: memory, how many files may be open, arithmetic of the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import resource
import sys
from pathlib import Path

_UNIT = 1024 if sys.platform != "darwin" else 1
_STATUS = Path("/proc/self/status")


def peak_rss_mib() -> float:
    """Highest resident memory of this process so far, MiB."""
    # On Linux ru_maxrss begins at what the parent held when this process was born.
    if _STATUS.is_file():
        words = _STATUS.read_text(encoding="ascii").split()
        if "VmHWM:" in words:
            return int(words[words.index("VmHWM:") + 1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT / 2**20


def peak_device_mib() -> float:
    """Highest memory that tensors took on the GPU so far, MiB; 0 without one."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def peak_memory_mib() -> float:
    """Of the device that computes: the GPU's when there is one, else the process's."""
    return peak_device_mib() or peak_rss_mib()


def use_huge_pages() -> None:
    """Let tensors lie on pages of 2 MiB where Linux has them; to be called before the first one.

    Large maps are new memory in every step, and clearing it in pages of 4 KiB took a quarter of
    the time of a streamed step. Reads a variable of PyTorch's, which the user may have set.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def wait_briefly() -> None:
    """Let threads that wait for each other sleep soon; to be called before PyTorch is loaded.

    OpenMP's threads spin for milliseconds before they sleep. Where another process wants the same
    cores, they keep from them the very thread they wait for: a training step beside busy programs
    took ten times as long, and less than half of that once they sleep after some microseconds. On
    idle cores it costs nothing that was measured. Reads variables that the user may have set.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def allow_more_files(wanted: int = 4096) -> None:
    """Raise this process's own limit of open files, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def give_back() -> None:
    """Return what was freed to the system, where it can be: a step must not live on leftovers."""
    gc.collect()
    trim()


def trim() -> None:
    """Return what the allocator keeps of what was freed."""
    with contextlib.suppress(AttributeError, OSError):
        _libc().malloc_trim(0)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@functools.cache
def computes_in_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers itself; without, they are slower than float32."""
    import torch

    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
