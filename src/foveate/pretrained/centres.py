"""Measure where the cells of a network's maps lie in its input."""

from __future__ import annotations

import copy

import torch
from torch import nn


def measure_centres(net: nn.Module, strides: tuple[int, ...]) -> tuple[float, ...]:
    """Compute the centre of cell 0 of each map, from the receptive field of a middle cell.

    Kernels with odd sides put it at 0.5, patchifying stems at half a stride. Where the field covers
    the complete probe (global layers), half a stride is assumed.

    Args:
        net: the network.
        strides: input pixels per cell of each map.
    """
    probe = copy.deepcopy(net).eval().requires_grad_(False)
    for module in probe.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
                setattr(module, name, nn.Identity())
            if isinstance(child, nn.MaxPool2d):
                # A maximum of equal values depends on the first only, a mean on all of them.
                sides = (child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, nn.AvgPool2d(*sides))
    side = 512
    x = torch.ones(1, 3, side, 64, requires_grad=True)
    centres = []
    for i, stride in enumerate(strides):
        try:
            map_ = probe(x)[i]
            row = map_.shape[-2] // 2
            (gradient,) = torch.autograd.grad(map_[:, :, row].sum(), x)
        except (RuntimeError, IndexError, AssertionError):
            centres.append(stride / 2)
            continue
        rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
        is_global = len(rows) == 0 or int(rows[0]) == 0 or int(rows[-1]) == side - 1
        middle = stride / 2 if is_global else (int(rows[0]) + int(rows[-1]) + 1) / 2 - row * stride
        centres.append(float(middle))
    return tuple(centres)
