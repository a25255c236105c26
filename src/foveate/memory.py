"""Peak memory of this process and of the device."""

from __future__ import annotations

import resource
import sys

_UNIT = 1024 if sys.platform != "darwin" else 1


def peak_rss_mib() -> float:
    """Highest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT / 2**20


def peak_device_mib() -> float:
    """Highest memory that tensors took on the GPU so far, MiB; 0 without one."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def peak_memory_mib() -> float:
    """Of the device that computes: the GPU's when there is one, else the process's."""
    return peak_device_mib() or peak_rss_mib()
