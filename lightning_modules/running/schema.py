"""`lightning schema`: a JSON schema of our configs, by which editors complete keys and mark mistakes."""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, Union, cast, get_args, get_origin

from jsonargparse import ArgumentParser, _completions_jsonschema

from lightning_modules.config import read_command_line
from lightning_modules.config_files import CONFIGS
from lightning_modules.running.experiment import CLI
from lightning_modules.whole_file import whole_file

PACKAGES = ("lightning_modules", "datamodules", "callbacks")
ELSEWHERE = ("torch.optim.", "lightning.pytorch.loggers.")  # what is described beside our own and what configs name
REFERENCE = {"type": "string", "pattern": r"\$\{"}  # ${...data.init_args.scale}
ANY_OTHER_CLASS = {
    "type": "object",
    "properties": {
        "class_path": {"type": "string", "pattern": rf"^(?!({'|'.join(PACKAGES)})\.)"},
        "init_args": {"type": "object"},
        "dict_kwargs": {"type": "object"},
    },
    "required": ["class_path"],
}


class OwnClasses(_completions_jsonschema.ParserJsonschema):
    """jsonargparse's generator, which would describe every module of PyTorch, kept to what experiments are made of.

    Args:
        named: Class paths that configs name.
    """

    def __init__(self, named: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.named = named

    def typehint_schema(self, typehint: Any, action: Any) -> dict[str, Any]:
        """As the generator's; of a function that makes one of several classes it would describe none."""
        made = get_args(typehint)[-1] if get_origin(typehint) is Callable and get_args(typehint) else None
        if get_origin(made) is Union:  # a scheduler, of one of two bases
            return {"anyOf": [{"type": "string"}, self.typehint_schema(made, action)]}
        return cast(dict[str, Any], super().typehint_schema(typehint, action))

    def subclass_def(self, class_type: type, action: Any) -> dict[str, Any]:
        """The known classes of a kind, and any class that is not ours."""
        return {"anyOf": [super().subclass_def(class_type, action), dict(ANY_OTHER_CLASS)]}

    def class_path_schema(self, class_path: str, action: Any) -> dict[str, Any]:
        """One class, or the same general description for all those that are not described."""
        own = class_path.startswith(tuple(f"{package}." for package in PACKAGES))
        if own or class_path in self.named or class_path.startswith(ELSEWHERE):
            return cast(dict[str, Any], super().class_path_schema(class_path, action))
        return dict(ANY_OTHER_CLASS)


class _Parser(CLI):
    """The parser of `lightning fit`, without running it."""

    def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
        """Ends here.

        Raises:
            _Built: always.
        """
        raise _Built(self._subcommand_parsers["fit"])


class _Built(Exception):
    """Holds the parser."""


def schema() -> dict[str, Any]:
    """The schema of a config of `lightning fit`, as a whole or as one of several layers."""
    for package in PACKAGES:
        for module in walk_packages(import_module(package).__path__, f"{package}."):
            import_module(module.name)  # only classes that are imported are known
    try:
        _Parser(read_command_line(["fit"]))
    except _Built as built:
        parser = built.args[0]

    found: dict[str, Any] = OwnClasses(set(named_classes())).generate(parser)
    found["properties"] |= {
        "compose": {"type": "array", "items": {"type": "string"}, "description": "Configs beneath, relative to this."},
    }
    adapted = cast(dict[str, Any], _adapted(found))
    return {**adapted, "title": "diffsr", "description": "A config of `lightning fit`; later ones win."}


def named_classes() -> Iterator[str]:
    """The class paths that the configs name."""
    for path in CONFIGS.rglob("*.yaml"):
        yield from re.findall(r"class_path: ([\w.]+)", path.read_text())


def _adapted(node: Any) -> Any:
    """A part of the schema as our configs are written.

    A layer gives a part of the keys, so that none is required; a list is added to by `name+`; any value may refer to
    another by `${...}`.
    """
    if isinstance(node, list):
        return [_adapted(each) for each in node]
    if not isinstance(node, dict):
        return node
    if node == ANY_OTHER_CLASS:
        return node

    made = {name: _adapted(value) for name, value in node.items() if name not in ("required", "properties")}
    if isinstance(node.get("properties"), dict):
        properties = {}
        for name, value in node["properties"].items():
            described = _adapted(value)
            properties[name] = described if name == "class_path" else {"anyOf": [described, REFERENCE]}
            if _takes_list(value):
                properties[f"{name}+"] = properties[name]
        made["properties"] = properties
    return made


def _takes_list(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return value.get("type") == "array" or any(_takes_list(each) for each in value.get("anyOf", []))


def main(arguments: Sequence[str]) -> None:
    """`lightning schema [--out FILE]`."""
    parser = argparse.ArgumentParser(
        prog="lightning schema",
        description="Writes the JSON schema of configs. An editor with the YAML language server completes and checks a "
        "config whose first line is `# yaml-language-server: $schema=diffsr.schema.json`.",
    )
    parser.add_argument("--out", type=Path, default=Path("diffsr.schema.json"), metavar="FILE", help="(%(default)s)")
    asked = parser.parse_args(arguments)
    with whole_file(asked.out) as part:
        part.write_text(json.dumps(schema(), indent=1) + "\n")
    print(f"{asked.out}\n# yaml-language-server: $schema={asked.out}    as the first line of a config")
