"""From a stack of layers to its steps: traced, checked layer by layer, refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from foveate.nn.streaming._graph import Graph, Step
from foveate.nn.streaming._pointwise import Pointwise
from foveate.nn.streaming._rules import FUNCTIONS, METHODS, rule_of
from foveate.nn.streaming._site import Built, Constant, Late, Ref, Refused, Site
from foveate.nn.streaming.base import NotLocal

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_ADVICE = {
    "GroupNorm": "take layer norm over channels (encoders: norm 'channel') or frozen batch norm",
    "InstanceNorm": "take layer norm over channels (encoders: norm 'channel') or frozen batch norm",
    "SyncBatchNorm": "take batch norm and freeze it",
    "Adaptive": "pool after streaming, on the map that it returns",
    "Multihead": "attend after streaming, on the map that it returns",
    "Transformer": "attend after streaming, on the map that it returns",
    "mean": "squeeze-excite and global pooling look at the whole image: take a network without",
    "adaptive": "squeeze-excite and global pooling look at the whole image: take a network without",
    "flatten": "flatten after streaming, what it returns",
    "view": "it rearranges cells; a map must stay a map",
    "reshape": "it rearranges cells; a map must stay a map",
    "matmul": "attend after streaming, on the map that it returns",
    "scaled_dot_product_attention": "attend after streaming, on the map that it returns",
}


def trace(stack: nn.Module) -> fx.GraphModule:
    """The computation of a stack in its present mode.

    Raises:
        NotLocal: a layer has no rule, or the stack cannot be traced.
    """
    tracer = _Tracer()
    try:
        found = fx.GraphModule(stack, tracer.trace(stack))
    except NotLocal:
        raise
    except Exception as error:
        raise NotLocal(
            f"{type(stack).__name__} cannot be traced by torch.fx ({_one_line(error)}): what it "
            "computes must not hang on the values or the size of its input"
        ) from error
    found.graph.eliminate_dead_code()
    for node in found.graph.nodes:
        if node.op == "call_module" and rule_of(found.get_submodule(str(node.target))) is None:
            raise _refusal(node, found, "it looks at more than a neighbourhood, or is unknown")
    return found


def build(traced: fx.GraphModule, shape: Sequence[int], like: Tensor) -> Graph:
    """The steps for images ``shape = (c, *space)``.

    Args:
        traced: from `trace`.
        shape: channels and cells per axis.
        like: a tensor of the device and dtype of the images.

    Raises:
        NotLocal: a layer is used in a way that is not local.
    """
    return _Builder(traced, shape, like).build()


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers with a rule, and those of torch, which are refused later unless they have one."""
        if rule_of(m) is not None:
            return True
        return m.__module__.startswith("torch.nn") and not isinstance(m, _CONTAINERS)


class _Stand(fx.Interpreter):
    """Runs a graph on stand-ins: shapes without numbers."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=False)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Note what comes out; leave assertions on stand-ins out."""
        if n.target is torch._assert:
            return None
        self.found[n] = super().run_node(n)
        return self.found[n]


class _Builder:
    def __init__(self, traced: fx.GraphModule, shape: Sequence[int], like: Tensor) -> None:
        self.traced, self.shape = traced, tuple(shape)
        self.steps: list[Step] = []
        self.constants: list[tuple[Any, ...]] = []
        self.known: dict[fx.Node, Any] = {}
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
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
        steps = self.steps[: end + 1]
        return Graph(steps, self.constants)

    def _input(self, node: fx.Node) -> None:
        if self.steps:
            raise NotLocal("the stack takes more than one input; only one image can be streamed")
        space = self.shape[1:]
        dims = tuple(range(2, 2 + len(space)))
        whole = Step("input", Pointwise(), _nothing, (), {}, (), dims, dims, space, self.shape[0])
        self.steps.append(whole)
        self.known[node] = Ref(0)

    def _constant(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            apply: Any = Late(self.traced.get_submodule(owner), name).get
            args: Any = ((), {})
        else:
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
            channels=sum(p.numel() // max(math.prod(extent), 1) for p in parts),
        )
        self.steps.append(step)
        self.known[node] = Ref(len(self.steps) - 1)
        if getattr(built.op, "mutates", False) and isinstance(node.args[0], fx.Node):
            # Whoever reads the overwritten map from here on reads this one.
            old = self.known[node.args[0]]
            for other, value in self.known.items():
                if value == old:
                    self.known[other] = self.known[node]

    def _ruled(self, node: fx.Node, site: Site) -> Built:
        target: Any = node.target
        module = self.traced.get_submodule(str(target)) if node.op == "call_module" else target
        rule = (
            rule_of(module)
            if node.op == "call_module"
            else (METHODS if node.op == "call_method" else FUNCTIONS).get(target)
        )
        if rule is None:
            raise _refusal(
                node, self.traced, "it looks at more than a neighbourhood, or is unknown"
            )
        try:
            return rule(site, module)
        except Refused as reason:
            raise _refusal(node, self.traced, str(reason)) from None

    def _check(self, node: fx.Node, site: Site, refs: Sequence[int]) -> None:
        """All maps that meet have the same cells."""
        for r in refs[1:]:
            if (self.steps[r].extent, self.steps[r].dims) != (site.extent, site.dims):
                raise _refusal(node, self.traced, "it joins maps of different sizes")

    def _callable(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            return self.traced.get_submodule(str(node.target))
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


def _refusal(node: fx.Node, traced: fx.GraphModule, reason: str) -> NotLocal:
    stack = node.meta.get("nn_module_stack") or {}
    owners = [(str(path), getattr(kind, "__name__", str(kind))) for path, kind in stack.values()]
    what = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_module":
        what = type(traced.get_submodule(str(node.target))).__name__
        path = f"'{node.target}' ({what})"
    else:
        inside = next((f"'{p}' ({k})" for p, k in reversed(owners) if p), "the stack")
        path = f"{what} in {inside}"
    advice = next((text for word, text in _ADVICE.items() if what.startswith(word)), "")
    return NotLocal(f"{path} cannot be streamed: {reason}" + (f"; {advice}" if advice else ""))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
