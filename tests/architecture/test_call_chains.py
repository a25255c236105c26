"""The call chains of the README: each function exists, and calls the next one.

After ``→`` stands what a function calls; functions divided by commas are called in this order.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import foveate

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "foveate"

CALLED_AS = {"Glimpse.forward": "method"}
"""Functions that their caller holds under another name: a module's forward."""

Function = ast.FunctionDef
Step = tuple[str, str]
"""A file below ``src/foveate``, and a function in it, as ``name`` or ``Class.name``."""
Called = list[list[Step]]
"""The functions between the arrows of a chain."""


def _read_chains() -> dict[str, Called]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.split("<!-- call chains -->")[1].split("<!-- /call chains -->")[0].split("\n")
    named = (line.removeprefix("- ").partition(": ") for line in lines if line.startswith("- "))
    step = re.compile(r"`([\w/]+\.py):([\w.]+)`")
    return {name: [step.findall(part) for part in chain.split("→")] for name, _, chain in named}


STAGES = _read_chains()
CHAINS = {name: list(itertools.chain(*stages)) for name, stages in STAGES.items()}
PAIRS = [
    (caller, called)
    for stages in STAGES.values()
    for (caller, *_), next_stage in itertools.pairwise(stages)
    for called in next_stage
]


@functools.cache
def _parse(file: str) -> ast.Module:
    return ast.parse((SOURCE / file).read_text(encoding="utf-8"))


def _list_functions(file: str) -> dict[str, Function]:
    """All functions of a file by name, methods as ``Class.name``."""
    tree = _parse(file)
    named = {node.name: node for node in tree.body if isinstance(node, Function)}
    for owner in tree.body:
        if isinstance(owner, ast.ClassDef):
            methods = (node for node in owner.body if isinstance(node, Function))
            named |= {f"{owner.name}.{node.name}": node for node in methods}
    return named


def _name_call(call: ast.Call) -> str:
    """The last part of the name that is called: ``fit`` in ``trainer.fit(train, val)``."""
    target = call.func
    if isinstance(target, ast.Attribute):
        return target.attr
    return target.id if isinstance(target, ast.Name) else ""


def _list_own_methods(function: Function) -> set[str]:
    """Methods of its own object that a function calls or hands over."""
    attributes = (node for node in ast.walk(function) if isinstance(node, ast.Attribute))
    return {a.attr for a in attributes if isinstance(a.value, ast.Name) and a.value.id == "self"}


def _list_calls(step: Step) -> set[str]:
    """Names that a function calls, itself or through private functions and methods of its file."""
    file, name = step
    functions = _list_functions(file)
    calls: set[str] = set()
    todo, done = [functions[name]], set()
    while todo:
        function = todo.pop()
        done.add(function.name)
        names = {_name_call(node) for node in ast.walk(function) if isinstance(node, ast.Call)}
        calls |= names
        followed = {name for name in names if name.startswith("_")} | _list_own_methods(function)
        todo += [local for local in functions.values() if local.name in followed - done]
    return calls


def _list_imports(file: str) -> Iterator[tuple[str, str]]:
    """Module and name of each import of a file, wherever it stands."""
    for node in ast.walk(_parse(file)):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_the_readme_names_the_chains() -> None:
    assert list(CHAINS) == ["train", "predict", "forward", "open", "draw"]
    for name, chain in CHAINS.items():
        files = {file for file, _ in chain}
        assert len(files) <= 6, (
            f"{name}: with cli/commands.py, a reader opens {len(files) + 1} files"
        )


def test_from_the_command_to_the_picture_a_reader_opens_seven_files() -> None:
    before = itertools.takewhile(lambda step: step != CHAINS["draw"][0], CHAINS["predict"])
    files = {"cli/commands.py", *(file for file, _ in (*before, *CHAINS["draw"]))}
    assert len(files) <= 7, sorted(files)


def test_a_chain_begins_with_a_public_function_or_in_another_chain() -> None:
    for name in ("train", "predict"):
        file, function = CHAINS[name][0]
        module = file.removesuffix(".py").replace("/", ".")
        assert function == name
        assert getattr(foveate, name).__module__ == f"foveate.{module}"
    for name in ("forward", "open", "draw"):
        assert CHAINS[name][0] in CHAINS["predict"]
    assert CHAINS["forward"][0] in CHAINS["train"]


def test_only_forward_calls_several_functions_and_in_the_order_of_the_readme() -> None:
    several = {name for name, stages in STAGES.items() if any(len(part) > 1 for part in stages)}
    assert several == {"forward"}
    ((caller,), called) = STAGES["forward"]
    function = _list_functions(caller[0])[caller[1]]
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    lines = {_name_call(call): call.lineno for call in calls}
    places = [lines[name.rpartition(".")[2]] for _, name in called]
    assert len(places) == 5
    assert places == sorted(set(places))


@pytest.mark.parametrize("step", sorted(set(itertools.chain(*CHAINS.values()))), ids=":".join)
def test_a_function_of_a_chain_exists(step: Step) -> None:
    file, name = step
    assert name in _list_functions(file)
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    assert f"`{file}`" in tour, "the tour explains it"
    assert f"`{name}(" in tour, "the tour explains it"


@pytest.mark.parametrize(("caller", "called"), PAIRS, ids=lambda step: step[1])
def test_a_function_of_a_chain_calls_the_next(caller: Step, called: Step) -> None:
    file, name = called
    alias = CALLED_AS.get(name)
    assert (alias or name.rpartition(".")[2]) in _list_calls(caller)
    if alias is None and "." not in name and caller[0] != file:
        package = f"foveate.{file.partition('/')[0]}"
        modules = {module for module, imported in _list_imports(caller[0]) if imported == name}
        assert any(module.startswith(package) for module in modules), f"{caller[0]} imports {name}"
