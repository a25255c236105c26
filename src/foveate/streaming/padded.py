"""A convolution whose padding hangs on its kernel alone, not on the size of its input."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class PaddedConv2d(nn.Conv2d):
    """Pads as TensorFlow does an input of even size, whatever its size.

    So a part of an image gives what the whole gives there. An odd side gets one pixel more behind,
    so that a stride of 2 leaves no pixel out: there are ``ceil(n / stride)`` cells.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """``(b, c, y, x)`` to ``(b, k, *ceil((y, x) / stride))``."""
        (top, bottom), (left, right) = (
            kernel_padding(k, s, n)
            for k, s, n in zip(self.kernel_size, self.stride, input.shape[-2:], strict=True)
        )
        padded = functional.pad(input, (left, right, top, bottom))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


def kernel_padding(kernel: int, stride: int, n: int) -> tuple[int, int]:
    """Cells of zeros before and behind a side of n cells."""
    before = (kernel - stride) // 2
    return before, kernel - stride - before + n % stride
