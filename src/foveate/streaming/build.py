"""From a traced stack to its steps for images of one shape; refused by name where not local."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from foveate.streaming.base import NotLocal
from foveate.streaming.graph import Graph, Step
from foveate.streaming.pointwise import Pointwise
from foveate.streaming.rules import FUNCTIONS, METHODS, overwrites, rule_of
from foveate.streaming.site import Built, Constant, Late, Ref, Refused, Scales, Site
from foveate.streaming.trace import Traced, refusal
from foveate.streaming.windows import Convolution


def build(traced: Traced, shape: Sequence[int], like: Tensor) -> Graph:
    """The steps for images ``shape = (c, *space)``.

    Args:
        traced: from `trace`.
        shape: channels and cells per axis.
        like: a tensor of the device and dtype of the images.

    Raises:
        NotLocal: a layer is used in a way that is not local.
    """
    return _Builder(traced, shape, like).build()


class _Stand(fx.Interpreter):
    """Runs a graph on stand-ins: shapes without numbers."""

    def __init__(self, traced: Traced) -> None:
        super().__init__(traced.stack, garbage_collect_values=False, graph=traced.graph)
        self.traced = traced
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Note what comes out; leave assertions on stand-ins out."""
        if n.target is torch._assert:
            return None
        try:
            self.found[n] = super().run_node(n)
        except (DynamicOutputShapeException, DataDependentOutputException):
            raise refusal(
                n, self.traced, "what it gives hangs on the values of the image"
            ) from None
        return self.found[n]


class _Builder:
    def __init__(self, traced: Traced, shape: Sequence[int], like: Tensor) -> None:
        self.traced, self.shape, self.device = traced, tuple(shape), like.device.type
        self.steps: list[Step] = []
        self.viewed: list[int] = []
        self.constants: list[tuple[Any, ...]] = []
        self.known: dict[fx.Node, Any] = {}
        taken = [n for n in traced.graph.nodes if n.op == "placeholder"]
        if len(taken) != 1:
            raise NotLocal(
                f"{type(traced.stack).__name__} takes {len(taken)} inputs; only one image can be "
                "streamed: wrap the stack so that forward takes that alone"
            )
        kind = like.device.type
        # What autocast keeps of the parameters would be stand-ins too.
        cast = torch.autocast(
            kind,
            torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,
        )
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), cast:
            stand = _Stand(traced)
            x = torch.empty((1, *shape), dtype=like.dtype, device=like.device)
            stand.run(x)
        self.stands = stand.found

    def build(self) -> Graph:
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return self._finished(node)
            if node not in self.stands:
                continue
            if node.op == "placeholder":
                self._input(node)
            elif any(isinstance(self.known.get(n), Ref) for n in node.all_input_nodes):
                self._mapped(node)
            elif _holds_tensor(self.stands[node]):
                self._constant(node)
            else:
                self.known[node] = self.stands[node]
        raise NotLocal("the stack returns nothing")

    def _finished(self, node: fx.Node) -> Graph:
        (returned,) = node.args
        if not isinstance(returned, fx.Node) or not isinstance(self.known.get(returned), Ref):
            raise NotLocal("the stack must return one map; wrap it so that it returns only that")
        end = self.known[returned].step
        step = self.steps[end]
        if step.dims != tuple(range(2, 2 + len(step.extent))) or end == 0:
            raise NotLocal("the stack must return a map (b, c, *space)")
        learnt = [p for p in self.traced.stack.parameters() if p.requires_grad]
        size = sum(p.nbytes for p in learnt)
        return Graph(self.steps[: end + 1], self.constants, size, self.device)

    def _input(self, node: fx.Node) -> None:
        space = self.shape[1:]
        dims = tuple(range(2, 2 + len(space)))
        c = self.shape[0]
        size = c * self.stands[node].element_size()
        whole = Step("input", Pointwise(), _nothing, (), {}, (), dims, dims, space, c, size, True)
        self.steps.append(whole)
        self.viewed.append(-1)
        self.known[node] = Ref(0)

    def _constant(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            apply: Any = Late(self.traced.stack.get_submodule(owner), name).get
            args: Any = ((), {})
        else:
            target = self.traced.layer(node) if node.op == "call_module" else node.target
            if overwrites(target, node.args, node.kwargs):
                raise refusal(node, self.traced, "it overwrites what is computed from parameters")
            apply = self._callable(node)
            args = (self._known(node.args), self._known(node.kwargs))
        self.constants.append((apply, *args))
        self.known[node] = Constant(len(self.constants) - 1)

    def _mapped(self, node: fx.Node) -> None:
        """A node that computes on maps becomes a step, or a plain number such as a size."""
        stand = self.stands[node]
        if not _holds_tensor(stand):
            self.known[node] = stand
            return
        refs = _refs(self._known(node.args)) + _refs(self._known(node.kwargs))
        first = self.steps[refs[0]]
        site = Site(
            args=self._known(node.args),
            kwargs=dict(self._known(node.kwargs)),
            shown=self._shown(node.args),
            named=dict(self._shown(node.kwargs)),
            dims=first.dims,
            extent=first.extent,
            result=stand,
        )
        built = self._ruled(node, site)
        if built.idle:
            self.known[node] = Ref(refs[0])
            return
        if built.scales is not None and self._folded(node, refs[0], built.scales):
            return
        dims = first.dims if built.dims is None else built.dims
        self._check(node, site, refs)
        parts = stand if isinstance(stand, tuple | list) else [stand]
        extent = tuple(parts[0].shape[d] for d in dims)
        step = Step(
            name=_path(node),
            op=built.op,
            apply=self._callable(node),
            args=site.args if built.args is None else built.args,
            kwargs=site.kwargs if built.args is None else {},
            sources=tuple(dict.fromkeys(refs)),
            dims_before=first.dims,
            dims=dims,
            extent=extent,
            channels=sum(p.numel() for p in parts) // max(math.prod(extent), 1),
            cell_bytes=sum(p.nbytes for p in parts) // max(math.prod(extent), 1),
            single=parts[0] is stand,
            floating=parts[0].is_floating_point(),
        )
        self.steps.append(step)
        self.known[node] = Ref(len(self.steps) - 1)
        self.viewed.append(refs[0] if built.op.shares else -1)
        if getattr(built.op, "mutates", False):
            if not node.args or _refs(self._known(node.args[0])) != [refs[0]]:
                raise refusal(node, self.traced, "it overwrites what is computed from parameters")
            self._overwritten(node, refs[0])

    def _folded(self, node: fx.Node, before: int, scales: Scales) -> bool:
        """A frozen norm that alone follows a convolution becomes part of its weights.

        The same numbers up to rounding, without two passes over the largest maps and without one
        of them held.
        """
        step = self.steps[before]
        same = [n for n, value in self.known.items() if value == Ref(before)]
        alone = all(user in (node, *same) for n in same for user in n.users)
        if not isinstance(step.op, Convolution) or not alone:
            return False
        x, weight, bias = step.args
        self.constants.append((_scaled_weight, (weight, *scales), {}))
        self.constants.append((_shifted_bias, (bias, *scales), {}))
        n = len(self.constants)
        self.steps[before] = replace(step, args=(x, Constant(n - 2), Constant(n - 1)))
        self.known[node] = Ref(before)
        return True

    def _overwritten(self, node: fx.Node, old: int) -> None:
        """Whoever reads the overwritten map from here on reads the new one; views of it cannot."""
        done = set(self.known)
        for other, value in self.known.items():
            if not isinstance(value, Ref) or other is node:
                continue
            if value.step == old:
                self.known[other] = self.known[node]
            elif not all(user in done for user in other.users) and self._overlap(old, value.step):
                raise refusal(
                    node,
                    self.traced,
                    "it overwrites a map that is read later through a view of it; compute it out "
                    "of place (inplace=False)",
                )

    def _overlap(self, one: int, other: int) -> bool:
        """Whether two maps share memory in the plain stack; parts of one tuple do not."""
        lines = [[step] for step in (one, other)]
        for line in lines:
            while self.viewed[line[-1]] >= 0:
                line.append(self.viewed[line[-1]])
        common = next((step for step in lines[0] if step in lines[1]), None)
        return common is not None and (common in (one, other) or self.steps[common].single)

    def _ruled(self, node: fx.Node, site: Site) -> Built:
        target: Any = node.target
        module = self.traced.layer(node) if node.op == "call_module" else target
        rule = (
            rule_of(module)
            if node.op == "call_module"
            else (METHODS if node.op == "call_method" else FUNCTIONS).get(target)
        )
        if rule is None:
            raise refusal(node, self.traced, "it looks at more than a neighbourhood, or is unknown")
        try:
            return rule(site, module)
        except Refused as reason:
            raise refusal(node, self.traced, str(reason)) from None

    def _check(self, node: fx.Node, site: Site, refs: Sequence[int]) -> None:
        """All maps that meet have the same cells."""
        for r in refs[1:]:
            if (self.steps[r].extent, self.steps[r].dims) != (site.extent, site.dims):
                raise refusal(node, self.traced, "it joins maps of different sizes")

    def _callable(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            return self.traced.layer(node)
        if node.op == "call_method":
            return _Method(str(node.target))
        function: Callable[..., Any] = node.target  # type: ignore[assignment]
        return function

    def _known(self, args: Any) -> Any:
        return fx.node.map_arg(args, lambda n: self.known.get(n, self.stands.get(n)))

    def _shown(self, args: Any) -> Any:
        return fx.node.map_arg(args, lambda n: self.stands.get(n))


class _Method:
    """Calls a method of its first argument."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.name)(*args, **kwargs)


def _scaled_weight(weight: Tensor, norm: Sequence[Tensor | None], eps: float) -> Tensor:
    """Of a convolution that a frozen batch norm follows."""
    return weight * _scale(norm, eps).view(-1, *(1,) * (weight.ndim - 1))


def _shifted_bias(bias: Tensor | None, norm: Sequence[Tensor | None], eps: float) -> Tensor:
    """Likewise."""
    mean, _, _, shift = norm
    found = (-mean if bias is None else bias - mean) * _scale(norm, eps)  # type: ignore[operator]
    return found if shift is None else found + shift


def _scale(norm: Sequence[Tensor | None], eps: float) -> Tensor:
    _, var, weight, _ = norm
    found: Tensor = (var + eps).rsqrt()  # type: ignore[union-attr, operator]
    return found if weight is None else found * weight


def _nothing() -> None:
    return None


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(isinstance(v, Tensor) for v in value)
    return isinstance(value, Tensor)


def _refs(args: Any) -> list[int]:
    if isinstance(args, Ref):
        return [args.step]
    if isinstance(args, Mapping):
        args = list(args.values())
    if isinstance(args, tuple | list):
        return [r for each in args for r in _refs(each)]
    return []


def _path(node: fx.Node) -> str:
    """The layer that a node belongs to, as users know it."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    owner = next(reversed(stack.values()), None)
    return str(owner[0]) if owner else ""
