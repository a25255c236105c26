"""Frames and units: names carry them, and only `foveate.geometry` converts between them."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "foveate"
FILES = sorted(SOURCE.rglob("*.py"))
ELSEWHERE = [path for path in FILES if path.parent != SOURCE / "geometry"]

FRAMES = ("um", "px", "px0", "cell", "patch")
UNITS = (*FRAMES, "mm", "bytes", "mib", "seconds", "s", "inches")
QUANTITIES = (
    *("budget", "centre", "corner", "distance", "extent", "height", "length"),
    *("origin", "position", "side", "size", "spacing", "width"),
)

UNITLESS = {
    # A box and its frame are one value.
    "geometry.Box.origin": "in the frame that the box states",
    "geometry.Box.size": "in the frame that the box states",
    # In any unit, and so is the result.
    "attention_maps.tree_cells.Cut.inside(side)": "micrometres or pixels, as the caller has it",
    # Numbers of things.
    "encoders._small.AbstractSmall.__init__(width)": "number of channels",
    "encoders.small.SmallEncoder.__init__(width)": "number of channels",
    "encoders.small3d.Small3dEncoder.__init__(width)": "number of channels",
    "methods.clam.Clam.__init__(width)": "number of channels",
    "methods.base.Requirements.any_size": "how far a requirement is met",
    "methods.transmil.Transmil.__init__(width)": "number of channels",
    "nn.base.Head.size": "number of outputs",
    "runs.schedule.Schedule.batch_size": "number of images",
    "runs.schedule.TrainOptions.batch_size": "number of images",
    "runs.schedule.epoch_groups(batch_size)": "number of images",
    # Names and codes, no quantities.
    "attention_maps.tree.Location.position": "layer that makes position codes",
    "bags.related.RelatedPool.position": "layer that makes position codes",
    "methods.tnet.Tnet.position": "layer that makes position codes",
    "methods.transmil.Transmil.position": "layer that makes position codes",
    "table.columns.Columns.spacing": "names of columns",
}
"""Names of a quantity without a unit, with what they count."""


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _module(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _names(node: ast.AST) -> set[str]:
    """All names and attributes in an expression."""
    inner = list(ast.walk(node))
    names = {n.id for n in inner if isinstance(n, ast.Name)}
    return names | {n.attr for n in inner if isinstance(n, ast.Attribute)}


# -- conversions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ELSEWHERE, ids=_module)
def test_only_geometry_defines_converters(path: Path) -> None:
    frames = "|".join((*FRAMES, "mm", "fine", "coarse"))
    converter = re.compile(rf"(^|_)({frames})_from_|_from_({frames})(_|$)")
    defined = [n.name for n in ast.walk(_parse(path)) if isinstance(n, ast.FunctionDef)]
    assert not [name for name in defined if converter.search(name)]


@pytest.mark.parametrize("path", ELSEWHERE, ids=_module)
def test_only_geometry_divides_by_a_spacing(path: Path) -> None:
    """A length over a spacing, or pixels over a downsample, is a change of frame."""
    divisions = [
        n
        for n in ast.walk(_parse(path))
        if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div | ast.FloorDiv | ast.Mod)
    ]
    steps = re.compile("spacing|downsample(?!d)")
    by_step = [n for n in divisions if any(steps.search(name) for name in _names(n.right))]
    assert not [f"{n.lineno}: {ast.unparse(n)}" for n in by_step]


@pytest.mark.parametrize("path", ELSEWHERE, ids=_module)
def test_only_geometry_converts_micrometres_to_millimetres(path: Path) -> None:
    thousands = [
        n
        for n in ast.walk(_parse(path))
        if isinstance(n, ast.BinOp) and ast.unparse(n.right) in ("1000", "1000.0", "0.001")
    ]
    lengths = [n for n in thousands if _last_name(n.left).endswith("_um")]
    assert not [f"{n.lineno}: {ast.unparse(n)}" for n in lengths]


@pytest.mark.parametrize("path", ELSEWHERE, ids=_module)
def test_only_geometry_multiplies_pixels_by_a_spacing(path: Path) -> None:
    """Elsewhere a spacing is made coarser by a plain factor at most."""
    factors = re.compile(r"^(\d+(\.\d+)?|\w*\.?scale|s)$")
    for n in ast.walk(_parse(path)):
        if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult):
            for spacing, factor in ((n.left, n.right), (n.right, n.left)):
                if _last_name(spacing).find("spacing") >= 0:
                    assert factors.match(ast.unparse(factor)), f"{n.lineno}: {ast.unparse(n)}"


# -- two frames in one expression ------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_no_frame_is_taken_for_another(path: Path) -> None:
    """Sums, comparisons, assignments and keywords join names of one frame only."""
    for n in ast.walk(_parse(path)):
        for left, right in _joined(n):
            frames = {_frame(left), _frame(right)} - {None}
            assert len(frames) < 2, f"{getattr(n, 'lineno', '')}: {ast.unparse(n)}"


def _joined(n: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the pairs of names that a node adds, compares, assigns or passes on."""
    if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Add | ast.Sub):
        yield _last_name(n.left), _last_name(n.right)
    if isinstance(n, ast.Compare):
        sides = [_last_name(side) for side in (n.left, *n.comparators)]
        yield from itertools.pairwise(sides)
    if isinstance(n, ast.Assign):
        yield from ((_last_name(target), _last_name(n.value)) for target in n.targets)
    if isinstance(n, ast.keyword) and n.arg is not None:
        yield n.arg, _last_name(n.value)


def _last_name(node: ast.AST) -> str:
    """The name that a plain expression ends in, such as ``origin_um`` of ``box.origin_um[i]``."""
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _frame(name: str) -> str | None:
    last = name.rsplit("_", 1)[-1].lower()
    return last if "_" in name and last in ("um", "px", "px0") else None


# -- names -----------------------------------------------------------------------------------------


def _quantities(body: list[ast.stmt], prefix: str, *, in_class: bool) -> Iterator[str]:
    """Yield ``module.Class.attribute`` and, of public functions, ``module.function(parameter)``.

    Attributes are those of all classes, private ones included; locals have no unit to state.
    """
    for n in body:
        if isinstance(n, ast.ClassDef):
            yield from _quantities(n.body, f"{prefix}.{n.name}", in_class=True)
        elif in_class and isinstance(n, ast.AnnAssign):
            yield from (f"{prefix}.{name}" for name in _names(n.target))
        elif isinstance(n, ast.FunctionDef):
            if _is_contract(n.name):
                every = (*n.args.posonlyargs, *n.args.args, *n.args.kwonlyargs)
                yield from (f"{prefix}.{n.name}({a.arg})" for a in every)
            yield from (f"{prefix}.{name}" for name in _attributes_set(n))


def _attributes_set(function: ast.FunctionDef) -> set[str]:
    """The attributes of ``self`` that a method sets."""
    nodes = (n for n in ast.walk(function) if isinstance(n, ast.Attribute))
    stored = (n for n in nodes if isinstance(n.ctx, ast.Store))
    return {n.attr for n in stored if isinstance(n.value, ast.Name) and n.value.id == "self"}


def _is_contract(name: str) -> bool:
    """Whether others call a function: public ones, and those that a reader supplies."""
    supplied = ("__init__", "__call__", "_read_level", "_stored_share")
    return not name.startswith("_") or name in supplied


def _unitless() -> list[str]:
    quantity = re.compile(rf"[._(]({'|'.join(QUANTITIES)})s?\)?$")
    return [
        name
        for path in FILES
        for name in _quantities(_parse(path).body, _module(path), in_class=False)
        if quantity.search(name)
    ]


def test_public_quantities_state_their_unit() -> None:
    """Parameters and attributes end in a unit, or `UNITLESS` says what they count."""
    unlisted = [n for n in _unitless() if n not in UNITLESS]
    assert not unlisted, f"give them one of the suffixes {UNITS}"


def test_the_list_of_unitless_quantities_is_current() -> None:
    names = _unitless()
    assert not [n for n in UNITLESS if n not in names]
