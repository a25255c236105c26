"""The layers of TransMIL: attention in linear time, and a convolution over the places of tokens.

Sources: Xiong et al., "Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention",
AAAI 2021; Shao et al., "TransMIL: Transformer Based Correlated Multiple Instance Learning for Whole
Slide Image Classification", NeurIPS 2021 (pyramid position encoding, PPEG).

Nothing here depends on the order in which tokens are stored: the segments that landmarks are means
of follow a space-filling curve through the tokens' places, and the convolution finds neighbours by
place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from foveate.errors import OptionError
from foveate.nn.base import masked_softmax

# -- places ----------------------------------------------------------------------------------------


def lattice_cells(centre: Tensor, valid: Tensor) -> Tensor:
    """The cell in which each token lies, on the lattice through the token of least coordinates.

    Tokens of a lattice get its cells, whatever the lattice's offset and its rounding to pixels; a
    token off the lattice gets the nearest cell.

    Args:
        centre: ``(b, n, ndim)`` in patches.
        valid: ``(b, n)`` bool; at least one per row.

    Returns:
        ``(b, n, ndim)`` integers from 0; 0 for padding.
    """
    first = centre.masked_fill(~valid.unsqueeze(-1), torch.inf).amin(1, keepdim=True)
    return (centre - first).round().long().masked_fill(~valid.unsqueeze(-1), 0)


def spatial_rank(cells: Tensor, centre: Tensor, valid: Tensor) -> Tensor:
    """Places of tokens along a Z-order curve through their cells, ``(b, n)`` from 0, padding last.

    Tokens of one cell are ordered by their centres, so the order they are stored in never counts.
    """
    ndim = cells.shape[-1]
    key = torch.zeros_like(cells[..., 0])
    for bit in range(int(cells.max()).bit_length()):
        for axis in range(ndim):
            key |= ((cells[..., axis] >> bit) & 1) << (bit * ndim + axis)
    key = key.masked_fill(~valid, torch.iinfo(key.dtype).max)
    order = torch.arange(key.shape[1], device=key.device).expand_as(key)
    for value in (*centre.unbind(-1), key):
        order = order.gather(1, value.gather(1, order).argsort(dim=1, stable=True))
    return order.argsort(1)


# -- attention -------------------------------------------------------------------------------------


def nystrom_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor,
    rank: Tensor,
    *,
    landmarks: int,
    iterations: int = 6,
) -> Tensor:
    """``softmax(q k' / sqrt(d)) v`` through landmarks: ``F pinv(A) (B v)``, in float32 at least.

    Landmarks are means of queries and keys over segments of equal length along `rank`. Padding is
    in no landmark; an image with fewer tokens than landmarks has one per token. Neither the tokens
    by landmarks nor the landmarks by tokens matrix is held.

    Args:
        q: queries ``(b, heads, n, d)``.
        k: keys likewise.
        v: values likewise.
        valid: ``(b, n)`` bool; at least one per row.
        rank: ``(b, n)`` order along which segments are cut; valid tokens come first.
        landmarks: how many.
        iterations: of the pseudo-inverse.

    Returns:
        ``(b, heads, n, d)``; no meaning where not valid.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        share = _segments(valid, rank, landmarks).to(dtype)
        known = share.any(-1)
        share = share / share.sum(-1, keepdim=True).clamp_min(1)
        q_mark, k_mark = share.unsqueeze(1) @ q, share.unsqueeze(1) @ k
        a = q_mark @ k_mark.transpose(-1, -2) / math.sqrt(q.shape[-1])
        a = masked_softmax(a, known[:, None, None, :])
        # Landmarks that do not exist stand apart as the identity, which changes no norm.
        eye = torch.eye(landmarks, dtype=dtype, device=q.device)
        a = torch.where(known[:, None, :, None], a, eye)
        seen = functional.scaled_dot_product_attention(
            q_mark, k, v, attn_mask=valid[:, None, None, :]
        )
        mixed = pseudo_inverse(a, iterations=iterations) @ seen
        return functional.scaled_dot_product_attention(
            q, k_mark, mixed, attn_mask=known[:, None, None, :]
        )


def pseudo_inverse(a: Tensor, *, iterations: int = 6) -> Tensor:
    """Moore-Penrose inverse of each matrix ``(…, m, m)`` by the iteration of Nystromformer, eq. 15.

    Differs: each matrix is scaled by its own norms; the published code scales by the largest of the
    batch, which makes an image's answer depend on the others.
    """
    norms = a.abs().sum(-2).amax(-1) * a.abs().sum(-1).amax(-1)
    z = a.transpose(-1, -2) / norms[..., None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z


def _segments(valid: Tensor, rank: Tensor, landmarks: int) -> Tensor:
    """Which tokens make up each landmark, ``(b, landmarks, n)`` bool."""
    count = valid.sum(1, keepdim=True)
    of = rank * count.clamp_max(landmarks) // count
    numbers = torch.arange(landmarks, device=valid.device)
    return (of.unsqueeze(1) == numbers[:, None]) & valid.unsqueeze(1)


class NystromAttention(nn.Module):
    """Multi-head self-attention: exact over few tokens, through landmarks over many.

    Differs: no depthwise convolution over the sequence of values, which would relate tokens that
    are neighbours in a file; an image of at most twice as many tokens as landmarks is attended to
    exactly; no tokens are added to fill the last segment.

    Args:
        dim: of tokens.
        heads: of attention.
        landmarks: per image.
        iterations: of the pseudo-inverse.
        dropout: of what attention adds.

    Raises:
        OptionError: heads do not divide the width.
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

    def forward(self, tokens: Tensor, valid: Tensor, rank: Tensor) -> Tensor:
        """What attention adds to tokens ``(b, n, d)``.

        Args:
            tokens: ``(b, n, d)``.
            valid: ``(b, n)`` bool; at least one per row.
            rank: ``(b, n)``, as of `spatial_rank`.
        """
        q, k, v = self._split(tokens)
        few = valid.sum(1) <= 2 * self.landmarks
        parts, order = [], []
        for rows, exact in ((few.nonzero()[:, 0], True), ((~few).nonzero()[:, 0], False)):
            if len(rows):
                own = (q[rows], k[rows], v[rows], valid[rows])
                parts.append(_exact(*own) if exact else self._nystrom(*own, rank[rows]))
                order.append(rows)
        mixed = torch.cat([p.to(v.dtype) for p in parts])[torch.cat(order).argsort()]
        added: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return added

    def of_first(self, tokens: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """What exact attention adds to the first token ``(b, d)``, and that attention ``(b, n)``.

        One row costs no more than a pass over the tokens, so it needs no landmarks.
        """
        q, k, v = self._split(tokens)
        scores = (q[:, :, :1] @ k.transpose(-1, -2)).squeeze(2) / math.sqrt(q.shape[-1])
        weight = masked_softmax(scores, valid.unsqueeze(1))
        mixed = (weight.unsqueeze(2).to(v.dtype) @ v).flatten(1)
        return self.out(mixed), weight.mean(1)

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = tokens.shape
        q, k, v = self.query_key_value(tokens).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _nystrom(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor, rank: Tensor) -> Tensor:
        return nystrom_attention(
            q, k, v, valid, rank, landmarks=self.landmarks, iterations=self.iterations
        )


def _exact(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])


# -- position --------------------------------------------------------------------------------------


class PyramidPosition(nn.Module):
    """Tokens plus depthwise convolutions of 7, 5 and 3 cells over the lattice they lie on.

    Cells without a token hold zero; where several tokens share a cell it holds their mean. Only
    cells with tokens are ever stored, so memory does not depend on how far apart tokens lie.

    Args:
        dim: of tokens.
        ndim: axes of space, 2 or 3.
    """

    SIZES = (7, 5, 3)

    def __init__(self, dim: int, *, ndim: int = 2) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        self.convs = nn.ModuleList(
            conv(dim, dim, size, padding=size // 2, groups=dim) for size in self.SIZES
        )

    def forward(self, tokens: Tensor, cells: Tensor, valid: Tensor) -> Tensor:
        """Tokens ``(b, n, d)`` with their surroundings; zeros where not valid.

        Args:
            tokens: ``(b, n, d)``.
            cells: ``(b, n, ndim)`` integers, as of `lattice_cells`.
            valid: ``(b, n)`` bool.
        """
        kernel, bias = self._kernel()
        own = tokens[valid].to(kernel.dtype)
        of, neighbours = _find_neighbours(cells, valid, reach=self.SIZES[0] // 2)
        counts = torch.bincount(of, minlength=neighbours.shape[1])
        values = own.new_zeros(len(counts), own.shape[1]).index_add(0, of, own)
        around: Tensor = _SparseDepthwise.apply(values / counts[:, None], kernel, neighbours)
        mixed = own + around[of] + bias
        out = torch.zeros_like(tokens, dtype=mixed.dtype)
        return out.masked_scatter(valid.unsqueeze(-1), mixed)

    def _kernel(self) -> tuple[Tensor, Tensor]:
        """The three kernels as one, ``(7 ** ndim, d)``, and its bias: convolution is linear."""
        kernels: list[Tensor] = []
        biases: list[Tensor] = []
        for conv, size in zip(self.convs, self.SIZES, strict=True):
            weight, bias = conv.parameters()
            rim = (self.SIZES[0] - size) // 2
            kernels.append(functional.pad(weight[:, 0], (rim,) * 2 * (weight.ndim - 2)))
            biases.append(bias)
        kernel = torch.stack(kernels).sum(0).flatten(1).t()
        return kernel.contiguous(), torch.stack(biases).sum(0)


def _find_neighbours(cells: Tensor, valid: Tensor, *, reach: int) -> tuple[Tensor, Tensor]:
    """Which occupied cell each valid token is in, and that cell's neighbours.

    Returns:
        ``(t,)`` numbers of cells and ``(offsets, u)`` numbers of the cells at all offsets up to
        `reach`, in the order of a flattened kernel; ``u`` where there is none.
    """
    image = torch.arange(len(cells), device=cells.device)[:, None].expand_as(valid)
    place = torch.cat([image[valid].unsqueeze(-1), cells[valid]], -1)
    # A rim of empty cells on every side keeps neighbours from wrapping into the next row or image.
    extent = (place[:, 1:].amax(0) + 1 + 2 * reach).tolist()
    steps = [math.prod(extent[axis:]) for axis in range(len(extent) + 1)]
    key = (place * torch.tensor(steps, device=cells.device)).sum(-1)
    occupied, of = torch.unique(key, return_inverse=True)
    near = torch.arange(-reach, reach + 1, device=cells.device)
    offset = torch.cartesian_prod(*[near * step for step in steps[1:]]).sum(-1)
    wanted = occupied + offset[:, None]
    found = torch.searchsorted(occupied, wanted).clamp_max(len(occupied) - 1)
    return of, torch.where(occupied[found] == wanted, found, len(occupied))


class _SparseDepthwise(torch.autograd.Function):
    """``out[u] = sum over offsets o of kernel[o] * values[neighbours[o, u]]``, missing ones zero.

    Autograd would keep the gathered values of every offset; this keeps none.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, kernel: Tensor, neighbours: Tensor) -> Tensor:
        ctx.save_for_backward(values, kernel, neighbours)
        return _gather_sum(values, kernel, neighbours)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        values, kernel, neighbours = ctx.saved_tensors
        # If v is u's neighbour at o, then u is v's at -o, which stands at the mirrored place.
        back = _gather_sum(gradient, kernel, neighbours.flip(0))
        padded = functional.pad(values, (0, 0, 0, 1))
        of_kernel = torch.stack([(padded[near] * gradient).sum(0) for near in neighbours])
        return back, of_kernel, None


def _gather_sum(values: Tensor, kernel: Tensor, neighbours: Tensor) -> Tensor:
    padded, out = functional.pad(values, (0, 0, 0, 1)), torch.zeros_like(values)
    for near, weight in zip(neighbours, kernel, strict=True):
        out.addcmul_(padded[near], weight)
    return out
