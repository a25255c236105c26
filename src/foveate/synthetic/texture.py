"""Make seamless textures: stroma with fibres, and nodules that differ only at full resolution.

The textures of nodules come in pairs, benign and deciding, with the same share of nuclei, the same
colours, and the same mean in each aligned block of `BLOCK_PX0` pixels.
"""

from __future__ import annotations

import functools

import numpy as np

from foveate.synthetic.spec import (
    BENIGN_NUCLEUS_PX0,
    DECIDING_NUCLEUS_PX0,
    STROMA_PX0,
    TEXTURE_PX0,
    Bank,
    Bytes,
    Floats,
    Paint,
)

BLOCK_PX0 = 16
"""Side of the aligned blocks whose means are the same in both textures of a pair."""

N_VARIANTS = 4
"""Pairs of nodule textures in the bank; a slide uses two of them."""

_SEED = 20240229
_GLASS = np.array([243.0, 241.0, 244.0], np.float32)
_STROMA = np.array([229.0, 172.0, 200.0], np.float32)
_FIBRE = np.array([203.0, 128.0, 172.0], np.float32)
_CLEFT = np.array([243.0, 214.0, 228.0], np.float32)
_STROMA_NUCLEUS = np.array([112.0, 76.0, 148.0], np.float32)
_CYTOPLASM = np.array([184.0, 140.0, 190.0], np.float32)
_NUCLEUS = np.array([92.0, 58.0, 134.0], np.float32)

# 24 nuclei a side at radius 7.5 cover as much as 36 at radius 5.
_NUCLEI_A_SIDE = {BENIGN_NUCLEUS_PX0: 36, DECIDING_NUCLEUS_PX0: 24}

# The distance, in steps of the lattice, below which nuclei repel each other.
_APART = 0.95


@functools.cache
def make_bank() -> Bank:
    """Make the textures that all slides share, once per process and always the same."""
    rng = np.random.default_rng(_SEED)
    wobble = 5.0 * _noise(rng, STROMA_PX0, 14) + 1.2 * _noise(rng, STROMA_PX0, 3)
    stroma = np.moveaxis(_stroma(rng) - _GLASS, -1, 0)
    pairs = np.stack([_nodule_pair(rng) - _GLASS for _ in range(N_VARIANTS)])
    nodules = np.moveaxis(pairs, -1, 2)
    return Bank(np.ascontiguousarray(stroma), np.ascontiguousarray(nodules), wobble)


def stain(bank: Bank, rng: np.random.Generator) -> Paint:
    """Draw the stain of one slide: its strength and hue, and two variants of nodules.

    The change is linear in the difference from glass, so that equal means stay equal.

    Args:
        bank: the textures that all slides share.
        rng: the generator to draw from.
    """
    strength = rng.uniform(0.88, 1.08) * (1 + rng.normal(0, 0.03, 3))
    hue = np.eye(3) + rng.normal(0, 0.015, (3, 3))
    matrix = (strength[:, None] * hue).astype(np.float32)
    glass = np.rint(_GLASS + rng.uniform(-3, 3)).astype(np.float32)
    nodules = []
    for variant in rng.choice(N_VARIANTS, 2, replace=False):
        pair = bank.nodules[variant]
        if rng.random() < 0.5:
            pair = pair.transpose(0, 1, 3, 2)
        pair = pair[..., :: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
        benign, deciding = (np.tile(_stain(t, matrix, glass), (2, 2, 1)) for t in pair)
        nodules.append((benign, deciding))
    wobble = np.pad(bank.wobble, (0, TEXTURE_PX0), mode="wrap")
    return Paint(glass.astype(np.uint8), _stain(bank.stroma, matrix, glass), tuple(nodules), wobble)


def _stain(texture: Floats, matrix: Floats, glass: Floats) -> Bytes:
    """Convert differences from glass ``(3, y, x)`` to colours ``(y, x, 3)``."""
    out = np.empty((*texture.shape[1:], 3), np.uint8)
    # Without a matrix product, whose threads would compete with those that write other slides.
    for c, weights in enumerate(matrix):
        colour = sum(w * plane for w, plane in zip(weights, texture, strict=True))
        out[..., c] = np.clip(colour + (glass[c] + np.float32(0.5)), 0, 255)
    return out


# -- noise and nuclei -----------------------------------------------------------------------------


def _noise(
    rng: np.random.Generator, n: int, sigma: float, across: float | None = None, angle: float = 0
) -> Floats:
    """Draw toroidal Gaussian noise ``(n, n)`` of unit variance, smoothed along and across an angle.

    Args:
        rng: the generator to draw from.
        n: side of the result.
        sigma: standard deviation of the smoothing along the angle, in pixels.
        across: standard deviation of the smoothing across it; `sigma` by default.
        angle: the angle, in radians.
    """
    fy, fx = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :]
    u, v = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    across = sigma if across is None else across
    gain = np.exp(-2 * np.pi**2 * ((u * sigma) ** 2 + (v * across) ** 2))
    gain[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) * gain, (n, n))
    return np.asarray(field / field.std(), np.float32)


def _stamp(
    canvas: Floats, y: float, x: float, axes: tuple[float, float], angle: float, dark: float
) -> None:
    """Draw one nucleus with a soft edge and a darker rim into a toroidal canvas, in place.

    Args:
        canvas: opacities, ``(n, n)``.
        y: row of the centre.
        x: column of the centre.
        axes: radii of the ellipse in pixels.
        angle: angle of the first radius, in radians.
        dark: the largest opacity.
    """
    reach = int(max(axes)) + 3
    rows = np.arange(int(y) - reach, int(y) + reach + 1)
    columns = np.arange(int(x) - reach, int(x) + reach + 1)
    dy, dx = rows[:, None] + 0.5 - y, columns[None, :] + 0.5 - x
    sin, cos = np.sin(angle), np.cos(angle)
    rho = np.hypot((cos * dx + sin * dy) / axes[0], (cos * dy - sin * dx) / axes[1])
    inside = np.clip((1 - rho) * min(axes) / 1.4 + 0.5, 0, 1)
    opacity = inside * dark * (0.82 + 0.22 * np.clip(rho, 0, 1) ** 3)
    place = np.ix_(rows % len(canvas), columns % len(canvas))
    canvas[place] = np.maximum(canvas[place], opacity)


def _stroma(rng: np.random.Generator) -> Floats:
    """Draw the texture of stroma, ``(STROMA_PX0, STROMA_PX0, 3)``."""
    n = STROMA_PX0
    bend = 0.5 * np.arctan2(_noise(rng, n, 110), _noise(rng, n, 110))
    fibres, weights = np.zeros((n, n), np.float32), np.zeros((n, n), np.float32)
    for angle in np.arange(8) * np.pi / 8:
        weight = np.exp(5 * np.cos(2 * (bend - angle)))
        fibres += weight * _noise(rng, n, 30, 2.2, angle)
        weights += weight**2
    fibres = fibres / np.sqrt(weights) + 0.35 * _noise(rng, n, 1.2)
    fibre = 1 / (1 + np.exp(-2.2 * (fibres - 0.3)))[..., None]
    cleft = 1 / (1 + np.exp(6 * (fibres + 1.7)))[..., None]
    colour = _STROMA + fibre * (_FIBRE - _STROMA)
    colour += cleft * (_CLEFT - colour)
    nuclei = np.zeros((n, n), np.float32)
    for y, x in rng.uniform(0, n, (300, 2)):
        angle = float(bend[int(y), int(x)]) + rng.normal(0, 0.2)
        axes = (rng.uniform(5, 9), rng.uniform(2, 3.2))
        _stamp(nuclei, y, x, axes, angle, rng.uniform(0.7, 1))
    colour += nuclei[..., None] * (_STROMA_NUCLEUS - colour)
    return np.asarray(colour + 2 * _noise(rng, n, 0.8)[..., None], np.float32)


def _packing(rng: np.random.Generator, side: int) -> Floats:
    """Draw points ``(side², 2)`` on a unit torus that are spread evenly, but not regularly.

    They begin near a lattice and repel each other.
    """
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    points = np.stack([rows, columns + 0.5 * (rows % 2)], -1)
    points += rng.uniform(-0.45, 0.45, points.shape).astype(np.float32)
    near = [o for o in np.ndindex(5, 5) if o != (2, 2)]
    for _ in range(12):
        push = np.zeros_like(points)
        for y, x in near:
            apart = points - np.roll(points, (y - 2, x - 2), (0, 1))
            apart -= side * np.rint(apart / side)
            distance = np.hypot(*np.moveaxis(apart, -1, 0))[..., None]
            push += apart / (distance + 1e-6) * np.maximum(0, _APART - distance) / 2
        points += push
    return np.asarray(points.reshape(-1, 2) / side, np.float32)


def _nodule_texture(rng: np.random.Generator, radius_px0: float) -> Floats:
    """Draw round nuclei, packed so that they cover about the same share everywhere: (n, n, 3)."""
    n = TEXTURE_PX0
    nuclei = np.zeros((n, n), np.float32)
    for y, x in n * _packing(rng, _NUCLEI_A_SIDE[radius_px0]):
        radius = radius_px0 * rng.uniform(0.94, 1.06)
        squeeze = rng.uniform(0.94, 1.06)
        axes = (radius * squeeze, radius / squeeze)
        _stamp(nuclei, y, x, axes, rng.uniform(0, np.pi), rng.uniform(0.85, 1))
    chromatin = (10 * nuclei + 4) * _noise(rng, n, 0.9)
    colour = _CYTOPLASM + 5 * _noise(rng, n, 4)[..., None] + chromatin[..., None]
    return np.asarray(colour + nuclei[..., None] * (_NUCLEUS - _CYTOPLASM), np.float32)


def _nodule_pair(rng: np.random.Generator) -> Floats:
    """Draw a benign and a deciding texture with the same means over blocks: ``(2, n, n, 3)``."""
    pair = np.stack([_nodule_texture(rng, r) for r in (BENIGN_NUCLEUS_PX0, DECIDING_NUCLEUS_PX0)])
    # Both are corrected towards their mean, so that neither gets all of the correction.
    wanted = _block_means(pair).mean(0)
    for _ in range(8):
        pair += _enlarge(wanted - _block_means(pair))
    rest = wanted - _block_means(pair)
    return np.asarray(pair + rest.repeat(BLOCK_PX0, 1).repeat(BLOCK_PX0, 2), np.float32)


def _block_means(pair: Floats) -> Floats:
    """Average textures ``(2, n, n, 3)`` over aligned blocks of `BLOCK_PX0` pixels."""
    b, y, x, c = pair.shape
    rows = pair.reshape(b, y // BLOCK_PX0, BLOCK_PX0, x * c).mean(2)
    blocks = rows.reshape(b, y // BLOCK_PX0, x // BLOCK_PX0, BLOCK_PX0, c).mean(3)
    return np.asarray(blocks, np.float32)


def _enlarge(blocks: Floats) -> Floats:
    """Enlarge ``(2, m, m, 3)`` by `BLOCK_PX0`, bilinearly and toroidally, so that no edges show."""
    for axis in (1, 2):
        n = blocks.shape[axis]
        place = (np.arange(n * BLOCK_PX0) + 0.5) / BLOCK_PX0 - 0.5
        low = np.floor(place).astype(int)
        share = np.expand_dims((place - low).astype(np.float32), [i for i in range(4) if i != axis])
        near, far = blocks.take(low % n, axis), blocks.take((low + 1) % n, axis)
        blocks = near + share * (far - near)
    return blocks
