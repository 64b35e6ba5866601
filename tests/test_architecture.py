"""The arrows between the rooms: any other import fails."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lightning_modules", "datamodules", "callbacks")

# Methods that have an adapter of published weights beside them.
ADAPTED = {
    f"lightning_modules.{path.stem}"
    for path in (ROOT / "lightning_modules" / "published").glob("[!_]*.py")
    if (ROOT / "lightning_modules" / path.name).is_file()
}

# room -> the rooms it may import from; a room is the longest prefix below that a file lies in
ARROWS: dict[str, set[str]] = {
    "lightning_modules.diffusion": set(),
    "lightning_modules.hub": set(),
    "lightning_modules.networks": {"lightning_modules.hub"},
    "lightning_modules.metrics": set(),
    "datamodules.degradations": set(),
    "datamodules": {"datamodules.degradations"},
    "lightning_modules.published.basicsr_names": set(),  # parts of a method read such files, too
    "lightning_modules.published": {
        "lightning_modules.diffusion",
        "lightning_modules.networks",
        "lightning_modules.checkpoint",
        "lightning_modules.config",
        "lightning_modules.config_errors",
        "lightning_modules.super_resolver",
        *ADAPTED,
    },
    "lightning_modules": {
        "lightning_modules.diffusion",
        "lightning_modules.networks",
        "lightning_modules.metrics",
        "lightning_modules.published.basicsr_names",
        "datamodules.batch",
    },
    "lightning_modules.cli": {"lightning_modules", "lightning_modules.published", "datamodules", "callbacks"},
    "callbacks": {"lightning_modules.metrics", "datamodules.batch"},
}
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
def test_imports_follow_the_arrows(path: Path) -> None:
    room = room_of(name_of(path))
    for imported in imports(path):
        if not any(within(imported, package) for package in PACKAGES):
            continue
        allowed = room_of(imported) == room or any(within(imported, target) for target in ARROWS[room])
        assert allowed, f"{name_of(path)} imports {imported}"


def test_no_module_imports_itself_in_a_circle() -> None:
    names = {name_of(path) for path in FILES}
    TopologicalSorter({name_of(path): names.intersection(imports(path)) for path in FILES}).prepare()


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
    assert folders - generated == {*PACKAGES, "configs", "tests", "benchmarks"}


def test_an_adapter_knows_no_other_method() -> None:
    for path in FILES:
        method = name_of(path).replace(".published.", ".")
        if within(name_of(path), "lightning_modules.published") and method in ADAPTED:
            others = set(imports(path)) & ADAPTED - {method}
            assert not others, f"{name_of(path)} imports {others}"
