"""Build the steps of a traced stack for images of one shape; refuse layers that are not local."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor, fx

from foveate.streaming.base import NotLocal
from foveate.streaming.fake_run import run_on_fakes
from foveate.streaming.graph import Graph, GraphStep
from foveate.streaming.pointwise import Pointwise
from foveate.streaming.rules import FUNCTIONS, METHODS, find_rule, overwrites
from foveate.streaming.site import (
    CallSite,
    ConstantRef,
    FrozenNorm,
    LateParameter,
    MapRef,
    Refused,
    RuleResult,
)
from foveate.streaming.trace import TracedStack, make_refusal
from foveate.streaming.windows import Convolution


def build_graph(traced: TracedStack, shape: Sequence[int], like: Shaped[Tensor, " ..."]) -> Graph:
    """Build the steps of a traced stack for images of one shape.

    Args:
        traced: the stack, from `trace`.
        shape: shape of the images, ``(c, *space)``.
        like: a tensor of the device and dtype of the images.

    Raises:
        NotLocal: a layer is used in a way that is not local.
    """
    return _Builder(traced, shape, like).build()


class _Builder:
    """The state of `build_graph`.

    Attributes:
        steps: steps so far.
        viewed: the step that each step's map is a view of in the plain stack, or -1.
        constants: values computed from parameters alone: function, args and kwargs of each.
        values: what each node computes: a `MapRef`, a `ConstantRef` or a plain value.
        fakes: the result of each node as a fake tensor.
    """

    def __init__(
        self, traced: TracedStack, shape: Sequence[int], like: Shaped[Tensor, " ..."]
    ) -> None:
        self.traced, self.shape, self.device = traced, tuple(shape), like.device.type
        self.steps: list[GraphStep] = []
        self.viewed: list[int] = []
        self.constants: list[tuple[Any, ...]] = []
        self.values: dict[fx.Node, Any] = {}
        inputs = [n for n in traced.graph.nodes if n.op == "placeholder"]
        if len(inputs) != 1:
            raise NotLocal(
                f"{type(traced.stack).__name__} takes {len(inputs)} inputs; only one image can be "
                "streamed: wrap the stack so that forward takes that alone"
            )
        self.fakes = run_on_fakes(traced, shape, like)

    def build(self) -> Graph:
        """Build the graph, node by node.

        Raises:
            NotLocal: the stack does not return one map, or a layer is used in a way that is not
                local.
        """
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return self._make_graph(node)
            if node not in self.fakes:
                continue
            if node.op == "placeholder":
                self._add_input(node)
            elif any(isinstance(self.values.get(n), MapRef) for n in node.all_input_nodes):
                self._add_step(node)
            elif _contains_tensor(self.fakes[node]):
                self._add_constant(node)
            else:
                self.values[node] = self.fakes[node]
        raise AssertionError  # every graph ends with its output

    def _make_graph(self, node: fx.Node) -> Graph:
        (returned,) = node.args
        if not isinstance(returned, fx.Node) or not isinstance(self.values.get(returned), MapRef):
            raise NotLocal("the stack must return one map; wrap it so that it returns only that")
        end = self.values[returned].step
        step = self.steps[end]
        if step.dims != tuple(range(2, 2 + len(step.extent_cell))) or end == 0:
            raise NotLocal(
                "the stack must return a map (b, c, *space); leave out what flattens or pools it"
            )
        trainable = [p for p in self.traced.stack.parameters() if p.requires_grad]
        size = sum(p.nbytes for p in trainable)
        return Graph(self.steps[: end + 1], self.constants, size, self.device)

    def _add_input(self, node: fx.Node) -> None:
        space = self.shape[1:]
        dims = tuple(range(2, 2 + len(space)))
        c = self.shape[0]
        size = c * self.fakes[node].element_size()
        image = GraphStep(
            "input", Pointwise(), _return_none, (), {}, (), dims, dims, space, c, size, True
        )
        self.steps.append(image)
        self.viewed.append(-1)
        self.values[node] = MapRef(0)

    def _add_constant(self, node: fx.Node) -> None:
        """Add a node that computes on parameters alone."""
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            apply: Any = LateParameter(self.traced.stack.get_submodule(owner), name).get
            args: Any = ((), {})
        else:
            target = self.traced.layer(node) if node.op == "call_module" else node.target
            if overwrites(target, node.args, node.kwargs):
                raise make_refusal(
                    node, self.traced, "it overwrites what is computed from parameters"
                )
            apply = self._callable(node)
            args = (self._fill_values(node.args), self._fill_values(node.kwargs))
        self.constants.append((apply, *args))
        self.values[node] = ConstantRef(len(self.constants) - 1)

    def _add_step(self, node: fx.Node) -> None:
        """Add a node that computes on maps: as a step, or as a plain value such as a size."""
        fake = self.fakes[node]
        if not _contains_tensor(fake):
            self.values[node] = fake
            return
        refs = _list_steps(self._fill_values(node.args)) + _list_steps(
            self._fill_values(node.kwargs)
        )
        first = self.steps[refs[0]]
        site = CallSite(
            args=self._fill_values(node.args),
            kwargs=dict(self._fill_values(node.kwargs)),
            fake_args=self._fill_fakes(node.args),
            fake_kwargs=dict(self._fill_fakes(node.kwargs)),
            dims=first.dims,
            extent_cell=first.extent_cell,
            fake_result=fake,
        )
        result = self._apply_rule(node, site)
        if result.identity:
            self.values[node] = MapRef(refs[0])
            return
        if result.norm is not None and self._fold_norm(node, refs[0], result.norm):
            return
        self._check_sizes(node, site, refs)
        self.steps.append(self._make_step(node, site, refs, result))
        self.values[node] = MapRef(len(self.steps) - 1)
        self.viewed.append(refs[0] if result.op.shares else -1)
        if getattr(result.op, "mutates", False):
            if not node.args or _list_steps(self._fill_values(node.args[0])) != [refs[0]]:
                raise make_refusal(
                    node, self.traced, "it overwrites what is computed from parameters"
                )
            self._replace_overwritten(node, refs[0])

    def _make_step(
        self, node: fx.Node, site: CallSite, refs: Sequence[int], result: RuleResult
    ) -> GraphStep:
        dims = site.dims if result.dims is None else result.dims
        fake = site.fake_result
        parts = fake if isinstance(fake, tuple | list) else [fake]
        extent_cell = tuple(parts[0].shape[d] for d in dims)
        n_cells = max(math.prod(extent_cell), 1)
        return GraphStep(
            name=_layer_path(node),
            op=result.op,
            apply=self._callable(node),
            args=site.args if result.args is None else result.args,
            kwargs=site.kwargs if result.args is None else {},
            sources=tuple(dict.fromkeys(refs)),
            dims_before=site.dims,
            dims=dims,
            extent_cell=extent_cell,
            channels=sum(p.numel() for p in parts) // n_cells,
            cell_bytes=sum(p.nbytes for p in parts) // n_cells,
            single=parts[0] is fake,
            floating=parts[0].is_floating_point(),
        )

    def _fold_norm(self, node: fx.Node, before: int, norm: FrozenNorm) -> bool:
        """Fold a frozen norm into the weights of the convolution before it.

        This is possible if nothing else uses the result of the convolution. The result is the same
        up to rounding. It saves two passes over the largest maps, and the memory of one of them.

        Returns:
            Whether the norm was folded.
        """
        step = self.steps[before]
        same = [n for n, value in self.values.items() if value == MapRef(before)]
        sole_user = all(user in (node, *same) for n in same for user in n.users)
        if not isinstance(step.op, Convolution) or not sole_user:
            return False
        x, weight, bias = step.args
        self.constants.append((_fold_weight, (weight, *norm), {}))
        self.constants.append((_fold_bias, (bias, *norm), {}))
        n = len(self.constants)
        self.steps[before] = replace(step, args=(x, ConstantRef(n - 2), ConstantRef(n - 1)))
        self.values[node] = MapRef(before)
        return True

    def _replace_overwritten(self, node: fx.Node, old: int) -> None:
        """Let later readers of an overwritten map read the new one.

        Raises:
            NotLocal: a view of the overwritten map is read later, and would show its old values.
        """
        done = set(self.values)
        for other, value in self.values.items():
            if not isinstance(value, MapRef) or other is node:
                continue
            if value.step == old:
                self.values[other] = self.values[node]
            elif not all(user in done for user in other.users) and self._overlap(old, value.step):
                raise make_refusal(
                    node,
                    self.traced,
                    "it overwrites a map that is read later through a view of it; compute it out "
                    "of place (inplace=False)",
                )

    def _overlap(self, one: int, other: int) -> bool:
        """Return whether two maps share memory in the plain stack; parts of one tuple do not."""
        origins = [[step] for step in (one, other)]
        for steps in origins:
            while self.viewed[steps[-1]] >= 0:
                steps.append(self.viewed[steps[-1]])
        common = next((step for step in origins[0] if step in origins[1]), None)
        return common is not None and (common in (one, other) or self.steps[common].single)

    def _apply_rule(self, node: fx.Node, site: CallSite) -> RuleResult:
        target: Any = node.target
        module = self.traced.layer(node) if node.op == "call_module" else target
        rule = (
            find_rule(module)
            if node.op == "call_module"
            else (METHODS if node.op == "call_method" else FUNCTIONS).get(target)
        )
        if rule is None:
            raise make_refusal(
                node, self.traced, "it looks at more than a neighbourhood, or is unknown"
            )
        try:
            return rule(site, module)
        except Refused as reason:
            raise make_refusal(node, self.traced, str(reason)) from None

    def _check_sizes(self, node: fx.Node, site: CallSite, refs: Sequence[int]) -> None:
        """Refuse a node whose input maps differ in their cells."""
        for r in refs[1:]:
            if (self.steps[r].extent_cell, self.steps[r].dims) != (site.extent_cell, site.dims):
                raise make_refusal(node, self.traced, "it joins maps of different sizes")

    def _callable(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            return self.traced.layer(node)
        if node.op == "call_method":
            return functools.partial(_call_method, str(node.target))
        function: Callable[..., Any] = node.target  # type: ignore[assignment]
        return function

    def _fill_values(self, args: Any) -> Any:
        """Return arguments with the values of nodes in place of the nodes."""
        return fx.node.map_arg(args, lambda n: self.values.get(n, self.fakes.get(n)))

    def _fill_fakes(self, args: Any) -> Any:
        """Return arguments with fake tensors in place of nodes."""
        return fx.node.map_arg(args, lambda n: self.fakes.get(n))


def _call_method(name: str, x: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(x, name)(*args, **kwargs)


def _fold_weight(
    weight: Float[Tensor, "k c *kernel"], norm: Sequence[Float[Tensor, " k"] | None], eps: float
) -> Float[Tensor, "k c *kernel"]:
    """Scale the weight ``(k, c, *kernel)`` of a convolution by the frozen norm that follows it."""
    return weight * _norm_scale(norm, eps).view(-1, *(1,) * (weight.ndim - 1))


def _fold_bias(
    bias: Float[Tensor, " k"] | None, norm: Sequence[Float[Tensor, " k"] | None], eps: float
) -> Float[Tensor, " k"]:
    """Scale and shift the bias ``(k,)`` of a convolution by the frozen norm that follows it."""
    mean, _, _, shift = norm
    scale = _norm_scale(norm, eps)
    scaled = (-mean if bias is None else bias - mean) * scale  # type: ignore[operator]
    return scaled if shift is None else scaled + shift


def _norm_scale(norm: Sequence[Float[Tensor, " k"] | None], eps: float) -> Float[Tensor, " k"]:
    """Compute the factor of each channel ``(k,)`` of a frozen norm."""
    _, var, weight, _ = norm
    scale: Tensor = (var + eps).rsqrt()  # type: ignore[union-attr, operator]
    return scale if weight is None else scale * weight


def _return_none() -> None:
    return None


def _contains_tensor(value: object) -> bool:
    if isinstance(value, tuple | list):
        return any(isinstance(v, Tensor) for v in value)
    return isinstance(value, Tensor)


def _list_steps(args: object) -> list[int]:
    """List the steps whose maps stand among nested arguments."""
    if isinstance(args, MapRef):
        return [args.step]
    if isinstance(args, Mapping):
        args = list(args.values())
    if isinstance(args, tuple | list):
        return [step for arg in args for step in _list_steps(arg)]
    return []


def _layer_path(node: fx.Node) -> str:
    """Return the path of the layer that a node belongs to; empty for the stack itself."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    owner = next(reversed(stack.values()), None)
    return str(owner[0]) if owner else ""
