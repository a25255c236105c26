"""The layers of TransMIL: attention in linear time, and a convolution over positions of tokens.

Sources: Xiong et al., "Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention",
AAAI 2021; Shao et al., "TransMIL: Transformer Based Correlated Multiple Instance Learning for Whole
Slide Image Classification", NeurIPS 2021 (pyramid position encoding, PPEG).

No result depends on the order in which tokens are stored: landmarks are means over segments of a
space-filling curve through the tokens' positions, and the convolution finds neighbours by position.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from foveate.errors import OptionError
from foveate.nn.base import masked_softmax

# -- lattice ---------------------------------------------------------------------------------------


def lattice_cells(
    centre_patch: Float[Tensor, "b n ndim"], valid: Bool[Tensor, "b n"]
) -> Int[Tensor, "b n ndim"]:
    """Compute the cell of each token on the lattice that begins at the least coordinates.

    Cells are one patch wide. Tokens that lie on such a lattice get its cells, whatever its offset
    and its rounding to pixels; a token off the lattice gets the nearest cell.

    Args:
        centre_patch: centres of tokens in patches, ``(b, n, ndim)``.
        valid: False for padding, ``(b, n)`` bool; at least one token per row is valid.

    Returns:
        Cells ``(b, n, ndim)``, integers from 0; 0 for padding.
    """
    corner = centre_patch.masked_fill(~valid.unsqueeze(-1), torch.inf).amin(1, keepdim=True)
    return (centre_patch - corner).round().long().masked_fill(~valid.unsqueeze(-1), 0)


def spatial_rank(
    cells: Int[Tensor, "b n ndim"],
    centre_patch: Float[Tensor, "b n ndim"],
    valid: Bool[Tensor, "b n"],
) -> Int[Tensor, "b n"]:
    """Rank tokens along a Z-order curve through their cells.

    Tokens of one cell are ranked by their centres, so that the order of storage never counts.

    Args:
        cells: cells of tokens, ``(b, n, ndim)`` integers from 0.
        centre_patch: centres of tokens in patches, ``(b, n, ndim)``.
        valid: False for padding, ``(b, n)`` bool.

    Returns:
        Ranks ``(b, n)`` from 0, padding last.
    """
    ndim = cells.shape[-1]
    key = torch.zeros_like(cells[..., 0])
    for bit in range(int(cells.max()).bit_length()):
        for axis in range(ndim):
            key |= ((cells[..., axis] >> bit) & 1) << (bit * ndim + axis)
    key = key.masked_fill(~valid, torch.iinfo(key.dtype).max)
    order = torch.arange(key.shape[1], device=key.device).expand_as(key)
    for value in (*centre_patch.unbind(-1), key):
        order = order.gather(1, value.gather(1, order).argsort(dim=1, stable=True))
    return order.argsort(1)


# -- attention -------------------------------------------------------------------------------------


def nystrom_attention(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads n d"],
    v: Float[Tensor, "b heads n d"],
    valid: Bool[Tensor, "b n"],
    rank: Int[Tensor, "b n"],
    *,
    landmarks: int,
    iterations: int = 6,
) -> Float[Tensor, "b heads n d"]:
    """Approximate ``softmax(q k' / sqrt(d)) v`` through landmarks: ``F pinv(A) (B v)``.

    Landmarks are means of queries and keys over segments of equal length along `rank`. Padding is
    in no landmark; an image with fewer tokens than landmarks has one per token. Neither of the
    matrices between tokens and landmarks (F, B) is stored. All is computed in float32 at least.

    Args:
        q: queries, ``(b, heads, n, d)``.
        k: keys, ``(b, heads, n, d)``.
        v: values, ``(b, heads, n, d)``.
        valid: False for padding, ``(b, n)`` bool; at least one token per row is valid.
        rank: order of tokens along which segments are cut, ``(b, n)``; valid tokens come first.
        landmarks: number of landmarks.
        iterations: number of iterations of the pseudo-inverse.

    Returns:
        Attended values ``(b, heads, n, d)``, without meaning for padding.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        share = _segments(valid, rank, landmarks).to(dtype)
        exists = share.any(-1)
        share = share / share.sum(-1, keepdim=True).clamp_min(1)
        q_mark, k_mark = share.unsqueeze(1) @ q, share.unsqueeze(1) @ k
        a = q_mark @ k_mark.transpose(-1, -2) / math.sqrt(q.shape[-1])
        a = masked_softmax(a, exists[:, None, None, :])
        # Landmarks that do not exist get rows of the identity, which change no norm of the matrix.
        eye = torch.eye(landmarks, dtype=dtype, device=q.device)
        a = torch.where(exists[:, None, :, None], a, eye)
        landmark_values = functional.scaled_dot_product_attention(
            q_mark, k, v, attn_mask=valid[:, None, None, :]
        )
        mixed = pseudo_inverse(a, iterations=iterations) @ landmark_values
        return functional.scaled_dot_product_attention(
            q, k_mark, mixed, attn_mask=exists[:, None, None, :]
        )


def pseudo_inverse(a: Float[Tensor, "*b m m"], *, iterations: int = 6) -> Float[Tensor, "*b m m"]:
    """Approximate the Moore-Penrose inverse of matrices by the iteration of Nystromformer, eq. 15.

    Differs: each matrix is scaled by its own norms; the published code scales by the largest of the
    batch, which makes an image's answer depend on the others.

    Args:
        a: square matrices, ``(…, m, m)``.
        iterations: number of iterations.

    Returns:
        Their inverses ``(…, m, m)``.
    """
    norms = a.abs().sum(-2).amax(-1) * a.abs().sum(-1).amax(-1)
    z = a.transpose(-1, -2) / norms[..., None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z


def _segments(
    valid: Bool[Tensor, "b n"], rank: Int[Tensor, "b n"], landmarks: int
) -> Bool[Tensor, "b landmarks n"]:
    """Return which tokens belong to each landmark, ``(b, landmarks, n)`` bool.

    Args:
        valid: False for padding, ``(b, n)`` bool.
        rank: order of tokens, ``(b, n)``; valid tokens come first.
        landmarks: number of landmarks.
    """
    count = valid.sum(1, keepdim=True)
    segment = rank * count.clamp_max(landmarks) // count
    numbers = torch.arange(landmarks, device=valid.device)
    return (segment.unsqueeze(1) == numbers[:, None]) & valid.unsqueeze(1)


class NystromAttention(nn.Module):
    """Multi-head self-attention: exact over few tokens, through landmarks over many.

    Differs: no depthwise convolution over the sequence of values, which would relate tokens that
    are neighbours in a file; an image of at most twice as many tokens as landmarks is attended to
    exactly; no tokens are added to fill the last segment.

    Args:
        dim: length of a token.
        heads: number of attention heads; divides `dim`.
        landmarks: number of landmarks per image.
        iterations: number of iterations of the pseudo-inverse.
        dropout: dropout rate of the output.

    Raises:
        OptionError: `heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        landmarks: int = 256,
        iterations: int = 6,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise OptionError(
                f"width {dim} cannot be shared by {heads} attention heads: take a multiple of them"
            )
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))

    def forward(
        self, tokens: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"], rank: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b n d"]:
        """Compute the output of attention for each token, ``(b, n, d)``.

        Args:
            tokens: tokens, ``(b, n, d)``.
            valid: False for padding, ``(b, n)`` bool; at least one token per row is valid.
            rank: order of tokens from `spatial_rank`, ``(b, n)``.
        """
        q, k, v = self._split(tokens)
        few = valid.sum(1) <= 2 * self.landmarks
        parts, order = [], []
        for rows, exact in ((few.nonzero()[:, 0], True), ((~few).nonzero()[:, 0], False)):
            if len(rows):
                qkv, real = (q[rows], k[rows], v[rows]), valid[rows]
                if exact:
                    mask = real[:, None, None, :]
                    part = functional.scaled_dot_product_attention(*qkv, attn_mask=mask)
                else:
                    n, steps = self.landmarks, self.iterations
                    part = nystrom_attention(*qkv, real, rank[rows], landmarks=n, iterations=steps)
                parts.append(part)
                order.append(rows)
        mixed = torch.cat([p.to(v.dtype) for p in parts])[torch.cat(order).argsort()]
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def attend_from_first(
        self, tokens: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n"]]:
        """Compute the output of exact attention for the first token alone.

        One query costs no more than a pass over the tokens, so it needs no landmarks.

        Args:
            tokens: tokens, ``(b, n, d)``.
            valid: False for padding, ``(b, n)`` bool.

        Returns:
            The output ``(b, d)``, and the attention of the first token, averaged over heads,
            ``(b, n)``.
        """
        q, k, v = self._split(tokens)
        scores = (q[:, :, :1] @ k.transpose(-1, -2)).squeeze(2) / math.sqrt(q.shape[-1])
        weight = masked_softmax(scores, valid.unsqueeze(1))
        mixed = (weight.unsqueeze(2).to(v.dtype) @ v).flatten(1)
        return self.out(mixed), weight.mean(1)

    def _split(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "3 b h n dk"]:
        """Return queries, keys and values of tokens ``(b, n, d)``, each ``(b, h, n, d / h)``."""
        b, n, _ = tokens.shape
        parts: Tensor = self.query_key_value(tokens).view(b, n, 3, self.heads, -1)
        return parts.permute(2, 0, 3, 1, 4)


# -- position --------------------------------------------------------------------------------------


class PyramidPosition(nn.Module):
    """Position encoding by depthwise convolutions of 7, 5 and 3 cells over the tokens' lattice.

    Cells without a token are zero; a cell with several tokens is their mean. Only cells with tokens
    are stored, so memory does not depend on how far apart tokens lie.

    Args:
        dim: length of a token.
        ndim: number of spatial axes, 2 or 3.
    """

    SIZES = (7, 5, 3)

    def __init__(self, dim: int, *, ndim: int = 2) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        self.convs = nn.ModuleList(
            conv(dim, dim, size, padding=size // 2, groups=dim) for size in self.SIZES
        )

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        cells: Int[Tensor, "b n ndim"],
        valid: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b n d"]:
        """Add to each token the convolutions at its cell.

        Args:
            tokens: tokens, ``(b, n, d)``.
            cells: cells of tokens from `lattice_cells`, ``(b, n, ndim)`` integers.
            valid: False for padding, ``(b, n)`` bool.

        Returns:
            The new tokens ``(b, n, d)``; zeros for padding.
        """
        kernel, bias = self._merge_kernels()
        x = tokens[valid].to(kernel.dtype)
        cell, neighbours = _find_neighbours(cells, valid, reach=self.SIZES[0] // 2)
        counts = torch.bincount(cell, minlength=neighbours.shape[1])
        values = x.new_zeros(len(counts), x.shape[1]).index_add(0, cell, x)
        convolved: Tensor = _SparseDepthwise.apply(values / counts[:, None], kernel, neighbours)
        mixed = x + convolved[cell] + bias
        out = torch.zeros_like(tokens, dtype=mixed.dtype)
        return out.masked_scatter(valid.unsqueeze(-1), mixed)

    def _merge_kernels(self) -> tuple[Float[Tensor, "offsets d"], Float[Tensor, " d"]]:
        """Sum the three kernels to one ``(7 ** ndim, d)``, and their biases to one ``(d,)``."""
        kernels: list[Tensor] = []
        biases: list[Tensor] = []
        for conv, size in zip(self.convs, self.SIZES, strict=True):
            weight, bias = conv.parameters()
            rim = (self.SIZES[0] - size) // 2
            kernels.append(functional.pad(weight[:, 0], (rim,) * 2 * (weight.ndim - 2)))
            biases.append(bias)
        kernel = torch.stack(kernels).sum(0).flatten(1).t()
        return kernel.contiguous(), torch.stack(biases).sum(0)


def _find_neighbours(
    cells: Int[Tensor, "b n ndim"], valid: Bool[Tensor, "b n"], *, reach: int
) -> tuple[Int[Tensor, " t"], Int[Tensor, "offsets u"]]:
    """Find the occupied cell of each valid token, and the neighbours of every occupied cell.

    Args:
        cells: cells of tokens, ``(b, n, ndim)`` integers from 0.
        valid: False for padding, ``(b, n)`` bool.
        reach: largest offset of a neighbour along an axis.

    Returns:
        The number of each valid token's cell, ``(t,)`` of u occupied cells; and the numbers of the
        cells at all offsets up to `reach`, ``(offsets, u)``, in the order of a flattened kernel,
        u where that cell is empty.
    """
    image = torch.arange(len(cells), device=cells.device)[:, None].expand_as(valid)
    place = torch.cat([image[valid].unsqueeze(-1), cells[valid]], -1)
    # A rim of empty cells on every side keeps neighbours from wrapping into the next row or image.
    extent = (place[:, 1:].amax(0) + 1 + 2 * reach).tolist()
    steps = [math.prod(extent[axis:]) for axis in range(len(extent) + 1)]
    key = (place * torch.tensor(steps, device=cells.device)).sum(-1)
    occupied, cell = torch.unique(key, return_inverse=True)
    near = torch.arange(-reach, reach + 1, device=cells.device)
    offset = torch.cartesian_prod(*[near * step for step in steps[1:]]).sum(-1)
    neighbour_key = occupied + offset[:, None]
    index = torch.searchsorted(occupied, neighbour_key).clamp_max(len(occupied) - 1)
    return cell, torch.where(occupied[index] == neighbour_key, index, len(occupied))


class _SparseDepthwise(torch.autograd.Function):
    """Depthwise convolution over occupied cells, where empty cells count as zero.

    ``out[u] = sum over offsets o of kernel[o] * values[neighbours[o, u]]``. Autograd would store
    the gathered values of every offset; this function stores none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Float[Tensor, "u d"],
        kernel: Float[Tensor, "offsets d"],
        neighbours: Int[Tensor, "offsets u"],
    ) -> Float[Tensor, "u d"]:
        ctx.save_for_backward(values, kernel, neighbours)
        return _gather_sum(values, kernel, neighbours)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, "u d"]
    ) -> tuple[Float[Tensor, "u d"], Float[Tensor, "offsets d"], None]:
        values, kernel, neighbours = ctx.saved_tensors
        # If v is the neighbour of u at offset o, u is the neighbour of v at -o, the mirrored row.
        grad_values = _gather_sum(gradient, kernel, neighbours.flip(0))
        padded = functional.pad(values, (0, 0, 0, 1))
        grad_kernel = torch.stack([(padded[near] * gradient).sum(0) for near in neighbours])
        return grad_values, grad_kernel, None


def _gather_sum(
    values: Float[Tensor, "u d"],
    kernel: Float[Tensor, "offsets d"],
    neighbours: Int[Tensor, "offsets u"],
) -> Float[Tensor, "u d"]:
    """Sum ``kernel[o] * values[neighbours[o]]`` over offsets o: ``(u, d)``.

    Args:
        values: values of the occupied cells, ``(u, d)``.
        kernel: weights, ``(offsets, d)``.
        neighbours: numbers of the neighbouring cells, ``(offsets, u)``; u for an empty cell.
    """
    padded, out = functional.pad(values, (0, 0, 0, 1)), torch.zeros_like(values)
    for near, weight in zip(neighbours, kernel, strict=True):
        out.addcmul_(padded[near], weight)
    return out
