"""Which folder may import which, no circle of modules, and what a method may override."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from lightning_modules.base import DiffusionModule

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lightning_modules", "datamodules", "callbacks")

# Methods that have an adapter of published weights beside them.
ADAPTED = {
    f"lightning_modules.{path.stem}"
    for path in (ROOT / "lightning_modules" / "published").glob("[!_]*.py")
    if (ROOT / "lightning_modules" / path.name).is_file()
}

# A row of the table in docs/architecture.md: a folder or file, what it holds, and what it may import.
ROW = re.compile(r"^\| `((?:lightning_modules|datamodules|callbacks)[\w/]*)` \|.*\|(.*)\|$", re.MULTILINE)


def table() -> dict[str, set[str]]:
    """What may import what, as docs/architecture.md says; a file belongs to the longest row that it lies in."""
    rows = ROW.findall((ROOT / "docs" / "architecture.md").read_text())
    arrows = {row.replace("/", "."): set(re.findall(r"`([\w.]+)`", targets.replace("/", "."))) for row, targets in rows}
    arrows["lightning_modules.published"] |= ADAPTED
    return arrows


ARROWS = table()
PURE = (
    "lightning_modules.diffusion",
    "lightning_modules.hub",
    "lightning_modules.networks",
    "lightning_modules.metrics",
    "datamodules.degradations",
)
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def room_of(name: str) -> str:
    return max((room for room in ARROWS if within(name, room)), key=len)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_follow_the_table(path: Path) -> None:
    room = room_of(name_of(path))
    for imported in imports(path):
        if not any(within(imported, package) for package in PACKAGES):
            continue
        allowed = room_of(imported) == room or any(within(imported, target) for target in ARROWS[room])
        assert allowed, f"{name_of(path)} imports {imported}"


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path).startswith(PURE)], ids=name_of)
def test_mathematics_and_networks_know_no_lightning(path: Path) -> None:
    found = [name for name in imports(path) if within(name, "lightning") or within(name, "pytorch_lightning")]
    assert not found, f"{name_of(path)} imports {found}"


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=name_of)
def test_packages_reexport_nothing(path: Path) -> None:
    assert not list(imports(path)), f"{name_of(path)} imports something"


def test_no_room_is_called_utils() -> None:
    names = {part for path in FILES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


def test_top_level_is_what_was_agreed() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    generated = {"runs", "wandb", "build", "diffsr.egg-info", "data", "weights", "shared"}
    assert folders - generated == {*PACKAGES, "configs", "docs", "tests", "benchmarks"}


# Whatever stands in a string like this is imported by its name, sooner or later.
DOTTED = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+")


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """The string constants that are documentation, of modules, classes, functions and attributes."""
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return {node.value for node in statements if isinstance(node.value, ast.Constant)}


def mentioned(path: Path) -> Iterator[str]:
    """What a file imports, lazily too, and what its strings name by a dotted path."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    yield from imports(path)
    documentation = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation:
            yield from DOTTED.findall(node.value)


def arrows() -> dict[str, set[str]]:
    """Each module with the modules that it needs."""
    modules = {name_of(path) for path in FILES}

    def module(name: str) -> str | None:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name or None

    found = {}
    for path in FILES:
        targets = {module(name) for name in mentioned(path)} - {None, name_of(path), *PACKAGES}
        found[name_of(path)] = {target for target in targets if target is not None}
    return found


def test_the_table_names_folders_and_files_that_exist() -> None:
    names = {name_of(path) for path in FILES}
    named = set(ARROWS).union(*ARROWS.values())
    assert named <= names, f"docs/architecture.md names {', '.join(sorted(named - names))}"
    folders = {name_of(path.parent / "__init__.py") for path in FILES}
    assert folders <= set(ARROWS), f"docs/architecture.md has no row for {', '.join(sorted(folders - set(ARROWS)))}"


def test_no_modules_need_each_other() -> None:
    TopologicalSorter(arrows()).prepare()  # CycleError names the circle


HOOKS = {"__init__", "condition", "null_condition", "start_image", "decode", "losses", "setup"}
METHOD_FILES = sorted((ROOT / "lightning_modules").glob("*.py"))


def overrides(method: type) -> set[str]:
    """The functions and properties of the bases that a class replaces."""
    own = {name for name, value in vars(method).items() if inspect.isroutine(value) or isinstance(value, property)}
    bases = [base for base in method.__mro__[1:] if base is not object]
    return {name for name in own if any(name in vars(base) for base in bases)}


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: path.stem)
def test_methods_override_the_hooks_alone(path: Path) -> None:
    module = importlib.import_module(name_of(path))
    for name, method in inspect.getmembers(module, inspect.isclass):
        if method.__module__ != module.__name__ or method is DiffusionModule or not issubclass(method, DiffusionModule):
            continue
        beyond = overrides(method) - HOOKS
        assert not beyond, f"{name} overrides {', '.join(sorted(beyond))}, which is not a hook of DiffusionModule"


def test_an_adapter_knows_no_other_method() -> None:
    for path in FILES:
        method = name_of(path).replace(".published.", ".")
        if within(name_of(path), "lightning_modules.published") and method in ADAPTED:
            others = set(imports(path)) & ADAPTED - {method}
            assert not others, f"{name_of(path)} imports {others}"
