"""Every gradient that is written by hand, against differences or against an obvious loop.

`PROOFS` names, for each `torch.autograd.Function` of the package, the test that its gradient rests
on: a gradcheck, or for an estimator, whose gradient is not the derivative of its value, the test
that holds it against another computation.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from foveate.nn.attention import _Places, _TiledAttention
from foveate.nn.sampling import _Baseline
from foveate.streaming.views import narrow_dims

SOURCE = Path(__file__).resolve().parents[2] / "src"

PROOFS: dict[str, tuple[str, dict[str, Any]]] = {
    "foveate.nn.attention._TiledAttention": (
        "test_custom_gradients.test_gradcheck_of_attention_by_tiles",
        {"tile": 2},
    ),
    "foveate.nn.nystrom._SparseDepthwise": (
        "test_nystrom.test_position_encoding_passes_gradcheck",
        {},
    ),
    "foveate.nn.replay._Replay": ("test_replay.test_replay_passes_gradcheck", {}),
    "foveate.nn.sampling._Baseline": (
        "test_custom_gradients.test_baselines_of_fixed_draws_are_those_of_a_loop",
        {"replacement": False},
    ),
    "foveate.nn.top_k._Perturbed": (
        "test_top_k.test_sparse_computation_equals_the_dense_version",
        {"monkeypatch": pytest.MonkeyPatch(), "at_once": 2**20, "keep": None},
    ),
    "foveate.streaming.function.TiledSegment": (
        "test_streaming.test_streaming_passes_gradcheck",
        {},
    ),
    "foveate.streaming.views._Narrow": (
        "test_custom_gradients.test_gradcheck_of_parts_of_maps",
        {"layout": torch.contiguous_format},
    ),
}
"""For each function, the test of its gradient and the arguments to call the test with."""


def list_functions() -> list[str]:
    """Full names of all autograd functions of the package, by the bases in its source."""
    functions = []
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base) for base in node.bases]
                if any(base.split(".")[-1] in ("Function", "InplaceFunction") for base in bases):
                    functions.append(f"{module}.{node.name}")
    return functions


def test_every_function_has_a_test_of_its_gradient() -> None:
    assert sorted(PROOFS) == sorted(list_functions())


@pytest.mark.parametrize("name", PROOFS)
def test_the_test_refuses_a_gradient_that_is_off_by_a_hundredth(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the named test, which passes by itself, fails with a wrong gradient."""
    module, function = name.rsplit(".", 1)
    test_module, test = PROOFS[name][0].split(".")
    check = getattr(importlib.import_module(f"reference.{test_module}"), test)
    cls = getattr(importlib.import_module(module), function)
    exact = cls.backward

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else 1.01 * g for g in exact(ctx, *gradients))

    monkeypatch.setattr(cls, "backward", staticmethod(backward))
    with pytest.raises(
        (AssertionError, RuntimeError), match=r"Jacobian mismatch|not (close|equal)"
    ):
        check(**PROOFS[name][1])


@pytest.mark.parametrize("tile", [2, 5])
def test_gradcheck_of_attention_by_tiles(tile: int) -> None:
    """With padding, a token of the whole image, and tiles that do not divide the tokens."""
    torch.manual_seed(0)
    b, n, heads, d, ndim = 2, 5, 2, 4, 2
    qkv = torch.randn(b, n, 3 * d, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(heads, 1 + ndim, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True] * 5, [True, True, True, False, False]])
    everywhere = torch.zeros(b, n, dtype=torch.bool)
    everywhere[:, 1] = True
    centre = 3 * torch.rand(b, n, ndim, dtype=torch.float64)
    places = _Places(heads, valid, centre, everywhere)

    def attend(qkv: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = _TiledAttention.apply(qkv, weight, places, tile)
        return out

    torch.testing.assert_close(attend(qkv, weight), places.attend(qkv, weight))
    assert gradcheck(attend, (qkv, weight))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradcheck_of_parts_of_maps(layout: torch.memory_format) -> None:
    """Also of a part of a part; and the gradient lies in memory as the map does."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    x = x.contiguous(memory_format=layout).requires_grad_()
    assert gradcheck(lambda x: narrow_dims(x, {2: (1, 4), 3: (0, 3)}), (x,))
    assert gradcheck(lambda x: narrow_dims(narrow_dims(x, {1: (1, 3), 3: (1, 4)}), {3: (0, 2)}), x)
    part = narrow_dims(x, {2: (1, 4), 3: (0, 3)})
    assert torch.equal(part, x[:, :, 1:4, 0:3])
    (gradient,) = torch.autograd.grad(part.square().sum(), x)
    expected = torch.zeros_like(x)
    expected[:, :, 1:4, 0:3] = 2 * x.detach()[:, :, 1:4, 0:3]
    torch.testing.assert_close(gradient, expected)
    assert gradient.stride() == x.stride()


@pytest.mark.parametrize("replacement", [False, True])
def test_baselines_of_fixed_draws_are_those_of_a_loop(replacement: bool) -> None:
    """The value and its gradient pass through; to that of the attention the baseline is added.

    The loop takes its sums from the definition: no cumulative sum, no mask, one draw at a time.
    """
    torch.manual_seed(0)
    b, n, d = 2, 4, 3
    a = 0.2 * torch.rand(b, n, dtype=torch.float64)
    f, g = torch.randn(b, n, d, dtype=torch.float64), torch.randn(b, d, dtype=torch.float64)
    valid = torch.tensor([[True] * 4, [True, True, True, False]])
    a, f = a.masked_fill(~valid, 0.0), f.masked_fill(~valid[..., None], 0.0)
    left = [[1 - float(a[i, :j].sum()) for j in range(n)] for i in range(b)]
    mass = torch.ones(b, n).double() if replacement else torch.tensor(left).double()
    ratio = (mass / a).masked_fill(~valid, 0.0)
    estimate = torch.randn(b, d, dtype=torch.float64, requires_grad=True)
    leaf = a.clone().requires_grad_()
    value = _Baseline.apply(estimate, leaf, f, valid, ratio, replacement)
    assert torch.equal(value, estimate)
    by_estimate, by_a = torch.autograd.grad((value * g).sum(), [estimate, leaf])
    torch.testing.assert_close(by_estimate, g, rtol=0, atol=0)
    expected = torch.zeros_like(a)
    for i in range(b):
        count = int(valid[i].sum())
        v = [float(f[i, j] @ g[i]) for j in range(count)]
        if replacement:
            baseline = [(sum(v) - v[j]) / (count - 1) for j in range(count)]
        else:
            terms = [
                sum(float(a[i, m]) * v[m] for m in range(j)) + left[i][j] * v[j]
                for j in range(count)
            ]
            baseline = [sum(terms[:j]) / (j + 1) for j in range(count)]
        for j in range(count):
            later = 0.0 if replacement else sum(baseline[j + 1 :])
            expected[i, j] = -(float(ratio[i, j]) * baseline[j] + later) / count
    torch.testing.assert_close(by_a, expected)
