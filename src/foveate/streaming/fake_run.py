"""Run a traced stack on fake tensors, to learn the shapes of all maps without computing any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from foveate.streaming.trace import TracedStack, make_refusal


def run_on_fakes(
    traced: TracedStack, shape: Sequence[int], like: Shaped[Tensor, " ..."]
) -> dict[fx.Node, Any]:
    """Compute the result of every node of a traced stack as a fake tensor.

    Args:
        traced: the stack.
        shape: shape of the images, ``(c, *space)``.
        like: a tensor of the device and dtype of the images.

    Raises:
        NotLocal: the shape of a result depends on the values of the image.
    """
    kind = like.device.type
    # Autocast would cache casts of the parameters, which are fake tensors here.
    cast = torch.autocast(
        kind,
        torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,
    )
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), cast:
        run = _FakeRun(traced)
        run.run(torch.empty((1, *shape), dtype=like.dtype, device=like.device))
    return run.results


class _FakeRun(fx.Interpreter):
    """A run of a traced stack on fake tensors, which have shapes but no values.

    Attributes:
        results: the result of every node.
    """

    def __init__(self, traced: TracedStack) -> None:
        super().__init__(traced.stack, garbage_collect_values=False, graph=traced.graph)
        self.traced = traced
        self.results: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and record its result; skip assertions, which fake tensors cannot answer.

        Raises:
            NotLocal: the shape of the result depends on the values of the image.
        """
        if n.target is torch._assert:
            return None
        try:
            self.results[n] = super().run_node(n)
        except (DynamicOutputShapeException, DataDependentOutputException):
            raise make_refusal(
                n, self.traced, "what it gives hangs on the values of the image"
            ) from None
        return self.results[n]
