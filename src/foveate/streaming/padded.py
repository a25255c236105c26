"""A convolution whose padding before the image depends on its kernel alone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class PaddedConv2d(nn.Conv2d):
    """A convolution with the padding of TensorFlow for an input of even size, whatever its size.

    So a tile of an image has the same cells as the full image there. With stride 2, an odd side
    gets one more pixel of padding behind it, so that no pixel is left out: there are
    ``ceil(n / stride)`` cells.
    """

    def forward(self, input: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k *cells"]:  # noqa: A002
        """Convolve images ``(b, c, y, x)`` to ``(b, k, *ceil((y, x) / stride))``."""
        (top, bottom), (left, right) = (
            kernel_padding(k, s, n)
            for k, s, n in zip(self.kernel_size, self.stride, input.shape[-2:], strict=True)
        )
        padded = functional.pad(input, (left, right, top, bottom))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


def kernel_padding(kernel: int, stride: int, n: int) -> tuple[int, int]:
    """Compute the numbers of zeros before and behind a side of n cells.

    Args:
        kernel: side of the kernel.
        stride: stride of the convolution.
        n: cells of the side.
    """
    before = (kernel - stride) // 2
    return before, kernel - stride - before + n % stride
