"""Trace a stack of layers to a graph of their uses, and check that every layer has a rule."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from foveate.errors import converting
from foveate.streaming.base import NotLocal
from foveate.streaming.rules import find_rule, may_share, overwrites

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_GLOBAL = "squeeze-excite and global pooling look at the whole image: take a network without"
_REDUCTIONS = frozenset(
    ("mean", "sum", "amax", "amin", "max", "min", "std", "var", "norm", "median", "prod", "argmax")
)
_HOOK = "it has a hook, which would see parts of the image; remove the hook"
_ADVICE = {
    "GroupNorm": "take layer norm over channels (encoders: norm 'channel') or frozen batch norm",
    "InstanceNorm": "take layer norm over channels (encoders: norm 'channel') or frozen batch norm",
    "SyncBatchNorm": "take batch norm and freeze it",
    "Adaptive": "pool after streaming, on the map that it returns",
    "Multihead": "attend after streaming, on the map that it returns",
    "Transformer": "attend after streaming, on the map that it returns",
    "adaptive": _GLOBAL,
    "Flatten": "flatten after streaming, what it returns",
    "flatten": "flatten after streaming, what it returns",
    "view": "leave it out: it rearranges cells; a map must stay a map",
    "reshape": "leave it out: it rearranges cells; a map must stay a map",
    "matmul": "attend after streaming, on the map that it returns",
    "scaled_dot_product_attention": "attend after streaming, on the map that it returns",
}


@dataclass(frozen=True)
class TracedStack:
    """A stack with the graph of its computation; layers and parameters stay in the stack.

    `fx.GraphModule` would have parameters and buffers of its own, which do not follow when the
    stack is moved to another device or dtype.

    Attributes:
        stack: the stack.
        graph: the graph, whose nodes name the layers by their paths in the stack.
    """

    stack: nn.Module
    graph: fx.Graph

    def layer(self, node: fx.Node) -> nn.Module:
        """Return the layer that a node calls."""
        return self.stack.get_submodule(str(node.target))


def trace(stack: nn.Module) -> TracedStack:
    """Trace the computation of a stack in its present mode.

    Raises:
        NotLocal: a layer has no rule, or the stack cannot be traced.
    """
    tracer = _Tracer(stack)
    if tracer.is_leaf_module(stack, ""):
        stack = nn.Sequential(stack)  # the root is always traced through, also a single layer
    traced = TracedStack(stack, _trace_graph(tracer, stack))
    _drop_unused(traced)
    for node in traced.graph.nodes:
        if node.op != "call_module":
            continue
        if find_rule(traced.layer(node)) is None:
            raise make_refusal(node, traced, "it looks at more than a neighbourhood, or is unknown")
        if str(node.target) in tracer.passed_over:
            raise make_refusal(node, traced, _HOOK)
    return traced


def _trace_graph(tracer: _Tracer, stack: nn.Module) -> fx.Graph:
    """Trace the graph of a stack; raise `NotLocal` if that is not possible."""

    def explain(error: Exception, about: object) -> NotLocal:
        if tracer.passed_over:
            return NotLocal(f"{about} {_explain_hooks(tracer.passed_over)}")
        return NotLocal(
            f"{about} cannot be traced by torch.fx ({_one_line(error)}): write it so that what it "
            "computes does not depend on the values or the size of its input"
        )

    name = type(stack).__name__
    if tracer.foreign_hooks(stack):
        raise NotLocal(f"{name} cannot be streamed: {_HOOK}")
    with converting(name, explain):
        return tracer.trace(stack)


def _explain_hooks(layers: Iterable[str]) -> str:
    """Explain that hooks of these layers may be why a stack cannot be traced."""
    return (
        f"cannot be traced by torch.fx: hooks on {', '.join(map(repr, layers))} may gather the "
        "maps that it returns, and tracing calls only hooks of an object that a module of the "
        "stack holds, as timm's are; remove them, and return the maps from forward"
    )


def _drop_unused(traced: TracedStack) -> None:
    """Remove nodes that the result does not depend on, such as a write to a map not read later."""
    roots: dict[fx.Node, fx.Node] = {}
    writers: set[fx.Node] = set()
    for node in traced.graph.nodes:
        target = traced.layer(node) if node.op == "call_module" else node.target
        roots[node] = node
        if node.op.startswith("call") and node.all_input_nodes:
            writes = overwrites(target, node.args, node.kwargs)
            writers |= {node} if writes else set()
            if writes or may_share(target):
                roots[node] = roots[node.all_input_nodes[0]]
    live: set[fx.Node] = set()
    read: set[fx.Node] = set()
    for node in reversed(traced.graph.nodes):
        used = any(user in live for user in node.users)
        ends = node.op in ("placeholder", "output")
        if ends or used or (node in writers and roots[node] in read):
            live.add(node)
            read |= {roots[source] for source in node.all_input_nodes}
    traced.graph.eliminate_dead_code(lambda node: node in live)


def make_refusal(node: fx.Node, traced: TracedStack, reason: str) -> NotLocal:
    """Make the error that names a layer, says why it is not local, and what to do instead.

    Args:
        node: the layer's call in the traced stack.
        traced: the traced stack.
        reason: why the layer is not local.
    """
    stack = node.meta.get("nn_module_stack") or {}
    owners = [(str(path), getattr(kind, "__name__", str(kind))) for path, kind in stack.values()]
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_module":
        name = type(traced.layer(node)).__name__
        path = f"'{node.target}' ({name})"
    else:
        inside = next((f"'{p}' ({k})" for p, k in reversed(owners) if p), "the stack")
        path = f"{name} in {inside}"
    advice = next((text for word, text in _ADVICE.items() if name.startswith(word)), "")
    advice = _GLOBAL if name in _REDUCTIONS else advice
    advice = advice or "stream only the layers before it"
    return NotLocal(f"{path} cannot be streamed: {reason}; {advice}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _recording(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Make the method of a proxy that records a call of an in-place operator."""

    def record(proxy: Any, other: Any) -> Any:
        return proxy.tracer.create_proxy("call_function", function, (proxy, other), {})

    return record


class _Overwritable(fx.Proxy):
    """A proxy that records ``x += y`` as it is; `fx.Proxy` would record ``x = x + y``."""

    tracer: _Tracer

    @property
    def device(self) -> Any:
        """Device of the parameters, which a stack may use as a key; without any, of the map."""
        device = self.tracer.device
        return fx.proxy.Attribute(self, "device") if device is None else device

    __iadd__ = _recording(operator.iadd)
    __isub__ = _recording(operator.isub)
    __imul__ = _recording(operator.imul)
    __itruediv__ = _recording(operator.itruediv)
    __ipow__ = _recording(operator.ipow)


class _Tracer(fx.Tracer):
    """A tracer that traces a stack down to layers with a rule.

    Attributes:
        device: device of the stack's parameters; None without any.
        passed_over: paths of layers whose hooks were not called.
    """

    proxy_buffer_attributes = True

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self.device = next((p.device for p in stack.parameters()), None)
        self.passed_over: list[str] = []
        self._holders = {id(v) for m in stack.modules() for v in (m, *vars(m).values())}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make the proxy of a map."""
        return _Overwritable(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a layer is not traced through: it has a rule, or is PyTorch's.

        PyTorch's layers without a rule are refused later.
        """
        if find_rule(m) is not None:
            return True
        return m.__module__.startswith("torch.nn") and not isinstance(m, _CONTAINERS)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Record a call of a layer, with the hooks by which its own network gathers maps.

        Hooks of others are not called: they would get parts of images, or proxies.

        Raises:
            NotLocal: a module that contains layers has a hook of others.
        """
        name = self.path_of_module(m)
        foreign = self.foreign_hooks(m)
        if not self.is_leaf_module(m, name):
            if foreign:
                raise NotLocal(f"'{name}' ({type(m).__name__}) cannot be streamed: {_HOOK}")
            return super().call_module(m, forward, args, kwargs)
        if kwargs or foreign:
            self.passed_over += [name] if foreign else []
            return super().call_module(m, forward, args, kwargs)
        for hook in m._forward_pre_hooks.values():
            changed = hook(m, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        result = super().call_module(m, forward, args, kwargs)
        for hook in m._forward_hooks.values():
            changed = hook(m, args, result)
            result = result if changed is None else changed
        return result

    def foreign_hooks(self, m: nn.Module) -> bool:
        """Return whether a layer has a hook that is no method of an object of the stack.

        Objects of the stack are its modules and their attributes.
        """
        for hook in (*m._forward_pre_hooks.values(), *m._forward_hooks.values()):
            while isinstance(hook, functools.partial):
                hook = hook.func
            owner = getattr(hook, "__self__", None)
            if owner is None or id(owner) not in self._holders:
                return True
        return False
