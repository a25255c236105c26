"""Query and set up the machine: memory, number of open files, threads, CPU arithmetic."""

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
    """Return the highest resident memory of this process so far, in MiB."""
    # On Linux ru_maxrss begins at what the parent held when this process was born.
    if _STATUS.is_file():
        words = _STATUS.read_text(encoding="ascii").split()
        if "VmHWM:" in words:
            return int(words[words.index("VmHWM:") + 1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT / 2**20


def peak_device_mib() -> float:
    """Return the highest memory of tensors on the GPU so far, in MiB; 0 without a GPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def peak_memory_mib() -> float:
    """Return the peak memory in MiB: of the GPU where there is one, else of the process."""
    return peak_device_mib() or peak_rss_mib()


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_huge_pages() -> None:
    """Let tensors use pages of 2 MiB where Linux has them; call it before the first tensor.

    Large maps are new memory in every step, and clearing it in pages of 4 KiB took a quarter of
    the time of a streamed step. Reads a variable of PyTorch's, which the user may have set.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def wait_briefly() -> None:
    """Let OpenMP's threads sleep soon when they wait; call it before PyTorch is loaded.

    By default they spin for milliseconds before they sleep. Where another process wants the same
    cores, they thereby block the thread that they wait for. ``benchmarks/threads.py`` measures what
    fewer spins gain beside busy programs and cost on idle cores. Respects the variables that the
    user may have set.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def allow_more_files(wanted: int = 4096) -> None:
    """Raise this process's limit of open files to `wanted`, or as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def release_memory() -> None:
    """Collect garbage and return freed memory to the system, so that peaks are measured alone."""
    gc.collect()
    trim()


def trim() -> None:
    """Return the memory that the C library's allocator keeps to the system."""
    with contextlib.suppress(AttributeError, OSError):
        _libc().malloc_trim(0)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@functools.cache
def computes_in_bf16() -> bool:
    """Return whether the CPU has instructions for bfloat16; without, float32 is faster."""
    import torch

    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


@functools.cache
def computes_in_tiles() -> bool:
    """Return whether the CPU multiplies tiles of bfloat16 matrices (AMX), which is fastest."""
    import torch

    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
