"""The names in the documents exist: files, dotted names, and functions with their arguments.

The code is parsed and not imported. Blocks of code are run by other tests.
"""

from __future__ import annotations

import ast
import builtins
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "foveate"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

Function = ast.FunctionDef
Scope = ast.Module | ast.ClassDef


# -- what the code defines --------------------------------------------------------------------


@functools.cache
def _modules() -> dict[str, ast.Module]:
    """All modules by dotted name below ``foveate``; that of the package itself is ``""``."""
    modules = {}
    for path in sorted(SOURCE.rglob("*.py")):
        names = path.relative_to(SOURCE).with_suffix("").parts
        names = names[:-1] if names[-1] == "__init__" else names
        modules[".".join(names)] = ast.parse(path.read_text(encoding="utf-8"))
    return modules


@functools.cache
def _classes() -> dict[str, list[ast.ClassDef]]:
    """All classes by name."""
    classes: dict[str, list[ast.ClassDef]] = {}
    for module in _modules().values():
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)
    return classes


@functools.cache
def _functions() -> dict[str, list[Function]]:
    """All functions and methods by name."""
    functions: dict[str, list[Function]] = {}
    for module in _modules().values():
        for node in ast.walk(module):
            if isinstance(node, Function):
                functions.setdefault(node.name, []).append(node)
    return functions


def _list_names(scope: Scope) -> set[str]:
    """Names that a module binds; or names in a class, and attributes that its methods set."""
    names = set()
    for node in _list_statements(scope):
        if isinstance(node, Function | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            names |= {n.attr for t in targets for n in ast.walk(t) if isinstance(n, ast.Attribute)}
    return names


def _list_statements(scope: Scope) -> Iterator[ast.AST]:
    """All nodes of a class; of a module only statements at the top, and those under an ``if``."""
    if isinstance(scope, ast.ClassDef):
        yield from ast.walk(scope)
        return
    for node in scope.body:
        yield from node.body if isinstance(node, ast.If) else [node]


def _bases(owner: ast.ClassDef) -> Iterator[ast.ClassDef]:
    """A class and the classes of the package that it inherits from."""
    yield owner
    for base in owner.bases:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        for inherited in _classes().get(name, []):
            yield from _bases(inherited)


def _has(owners: list[ast.ClassDef], name: str) -> bool:
    return any(name in _list_names(base) for owner in owners for base in _bases(owner))


def _list_parameters(name: str) -> list[list[str]]:
    """Parameters of each function or class of this name, without ``self``."""
    stated = list(_functions().get(name, []))
    listed = []
    for owner in _classes().get(name, []):
        constructors = [
            node
            for base in _bases(owner)
            for node in base.body
            if isinstance(node, Function) and node.name == "__init__"
        ]
        stated += constructors[:1]
        fields = [node for base in _bases(owner) for node in base.body if not constructors]
        listed.append([str(f.target.id) for f in fields  # type: ignore[union-attr]
                       if isinstance(f, ast.AnnAssign)])  # fmt: skip
    for function in stated:
        a = function.args
        names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
        names += ["**"] if a.kwarg else []
        listed.append([n for n in names if n not in ("self", "cls")])
    return listed


OTHERS = {"StratifiedGroupKFold", "sqrt", "stack"}
"""Names of another library, of mathematics, and of an example in the text."""


# -- what the documents name ------------------------------------------------------------------


def _list_code(page: Path) -> list[str]:
    """Pieces of code within the text of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


CODE = sorted({(page.name, code) for page in PAGES for code in _list_code(page)})
FILES = [(p, c) for p, c in CODE if re.fullmatch(r"[\w./]+\.py(:[\w.]+)?", c)]
DOTTED = [(p, c) for p, c in CODE if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", c)]
CLASSES = [(p, c) for p, c in CODE if re.fullmatch(r"[A-Z]+[a-z]\w*[A-Z]\w*", c)]
CALLS = [(p, c) for p, c in CODE if re.match(r"[A-Za-z_][\w.]*\(.*\)", c)]


def _is_module(name: str) -> bool:
    return any(m == name or m.startswith(f"{name}.") for m in _modules())


def _resolves(name: str) -> bool:
    """Whether a dotted name is a module, a name in one, or an attribute of a class."""
    name = name.removeprefix("foveate.")
    if _is_module(name):
        return True
    owner, _, last = name.rpartition(".")
    if not owner or _is_module(owner):
        module = _modules()[owner]
        public = {s.value for s in ast.walk(module) if isinstance(s, ast.Constant)}
        return last in _list_names(module) or (not owner and last in public)
    return _has(_classes().get(owner.rpartition(".")[2], []), last)


def _is_ours(name: str) -> bool:
    """Whether a dotted name begins with a module or a class of the package."""
    first, _, rest = name.partition(".")
    return first == "foveate" or _is_module(first) or (first in _classes() and bool(rest))


def test_the_pages_name_something() -> None:
    assert min(len(FILES), len(DOTTED), len(CALLS)) > 10


@pytest.mark.parametrize(("page", "code"), FILES, ids=str)
def test_a_file_exists(page: str, code: str) -> None:
    file = code.partition(":")[0]
    places = (ROOT, SOURCE, ROOT / "tests", ROOT / "benchmarks", ROOT / "examples")
    assert any((place / file).is_file() for place in places), f"{page}: no file {file}"


@pytest.mark.parametrize(("page", "code"), DOTTED, ids=str)
def test_a_dotted_name_exists(page: str, code: str) -> None:
    if _is_ours(code) and not re.search(r"\.(py|md|json|yaml|csv|html|toml)$", code):
        assert _resolves(code), f"{page}: foveate has no {code}"


@pytest.mark.parametrize(("page", "code"), CLASSES, ids=str)
def test_a_class_exists(page: str, code: str) -> None:
    assert code in OTHERS or code in _classes(), f"{page}: foveate has no class {code}"


@pytest.mark.parametrize(("page", "code"), CALLS, ids=str)
def test_a_call_fits_the_function(page: str, code: str) -> None:
    """Arguments that are plain names are parameters, in their order; keywords are parameters."""
    call = ast.parse(re.match(r"[\w.]+\(.*?\)", code)[0].replace("…", "..."), mode="eval").body  # type: ignore[index]
    assert isinstance(call, ast.Call)
    name = ast.unparse(call.func).rpartition(".")[2]
    if hasattr(builtins, name) or name in OTHERS:
        return
    parameters = _list_parameters(name)
    assert parameters, f"{page}: foveate has no {name}"
    plain = [node.id for node in call.args if isinstance(node, ast.Name)]
    keywords = [str(keyword.arg) for keyword in call.keywords]
    fits = any(
        [n for n in names if n in plain] == plain and ("**" in names or set(keywords) <= set(names))
        for names in parameters
    )
    assert fits, f"{page}: {code}; {name} has {' or '.join(map(str, parameters))}"
