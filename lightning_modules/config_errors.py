"""What is wrong with a config, in one line: which key, where it stands, and what is near."""

import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """A config or an option that cannot be used; the message names the file, the key or the value."""


@dataclass(frozen=True)
class Source:
    """Where the keys of a config come from, for messages: files, typed options, and the names that are known."""

    files: Sequence[Path] = ()
    options: Sequence[str] = ()
    known: Sequence[str] = ()


def parse(parser: ArgumentParser, flags: Sequence[str], source: Source) -> Namespace:
    """Parses a command line.

    Raises:
        ConfigError: a key is unknown or a value does not fit; one line says which, where, and what is near.
    """
    contents = [yaml.safe_load(file.read_text()) or {} for file in source.files]
    classes: dict[str, set[str]] = {}
    for place, class_path in parts(contents):
        classes.setdefault(place.replace("+", ""), set()).add(class_path)
    for content in contents:
        _refuse_unknown_and_empty(content, source, classes)
    try:
        return parser.parse_args(list(flags))
    except (ArgumentError, TypeError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(explain(str(error), source)) from error


def _refuse_unknown_and_empty(
    content: Mapping[str, Any], source: Source, classes: Mapping[str, set[str]], room: str = ""
) -> None:
    """Refuses an unknown key whose value is empty, such as `trainr: {}`, which the parser would pass over.

    Args:
        content: Of one place.
        source: The whole config.
        classes: By dotted place, the class paths that the files give it.
        room: The place and a dot; empty for the top.
    """
    for name, value in content.items():
        plain = str(name).removesuffix("+")
        if isinstance(value, Mapping) and value:
            _refuse_unknown_and_empty(value, source, classes, f"{room}{plain}.")
        elif value in (None, {}):
            known = _known_in(room, source, classes)
            if known and f"{room}{plain}" not in known:
                raise ConfigError(_unknown(f"{room}{plain}", known, source))


def _known_in(room: str, source: Source, classes: Mapping[str, set[str]]) -> list[str]:
    """The dotted names of the keys of one place, in which those of several classes may stand; empty if not known."""
    own = [entry for entry in source.known if entry.startswith(room)]
    if own or not room.endswith(".init_args."):
        return list(dict.fromkeys(room + entry.removeprefix(room).partition(".")[0] for entry in own))
    paths = classes.get(room.removesuffix(".init_args."), set())
    return list(dict.fromkeys(room + argument for path in paths for argument in arguments_of(path)))


def explain(message: str, source: Source) -> str:
    """One line for what jsonargparse or OmegaConf says in many."""
    message = message.removeprefix('Parser key "config": ')
    if found := re.match(r"unrecognized arguments: --([^\s=]*)|.*does not accept option '(.*)'", message):
        return _unknown(found[1] or found[2], source.known, source)
    if found := re.search(r"full_key: (?:(?:fit|validate|test|predict)\.)?(.*)", message):
        return f"{_place(found[1], source)}: {message.splitlines()[0]}"
    return _first_branch([line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()], source)


def _first_branch(lines: Sequence[str], source: Source) -> str:
    """The cause that jsonargparse lists first in its tree: the type that was meant comes before its alternatives."""
    key, class_path, expected = "", "", []
    for line in lines:
        if found := re.match(r'Parser key "(.*)":$', line):
            key = f"{key}.init_args.{found[1]}" if class_path else found[1]
            class_path = ""
        elif found := re.match(r"Problem with given class_path '(.*)':", line):
            class_path = found[1]
        elif (
            found := re.match(r"Option '(.*)' is not accepted|unrecognized arguments: --(.*?)(?:=|$)", line)
        ) and class_path:
            known = [f"{key}.init_args.{name}" for name in arguments_of(class_path)]
            return _unknown(f"{key}.init_args.{found[1] or found[2]}", known, source)
        elif found:
            return _unknown(found[1], source.known, source)
        elif found := re.match("Expected a dot import path string: (.*)", line):
            return f"{_place(key, source)}: {found[1]} is no class; give its dotted path"
        elif found := re.match(
            r"Expected a (?!path but)(?:<class '(?:.*\.)?(\w+)'>|typing\.)?(.*?)(?:\. Got value: (.*))?$", line
        ):
            expected.append(f"{found[1] or ''}{found[2]}".replace("NoneType", "null"))
            if found[3] is not None:
                return f"{_place(key, source)}: expected {' or '.join(expected)}, got {found[3]}"
        elif found := re.match(r"Given value: (.*)", line):
            return f"{_place(key, source)}: expected {' or '.join(expected)}, got {found[1][:160]}"
        elif not re.match("Does not validate|Subtypes:|Errors:|Given value type:|Expected a path but", line):
            named = f"{class_path}: " if class_path not in line else ""
            return f"{_place(key, source)}: {named}{line}{_nearest_class(class_path)}".removeprefix(": ")
    return " ".join(lines)


def _unknown(key: str, known: Sequence[str], source: Source) -> str:
    """The message for an unknown key; `known` are dotted names."""
    room, _, name = key.rpartition(".")
    within = f"{room}." if room else ""
    beside = {entry.removeprefix(within).partition(".")[0] for entry in known if entry.startswith(within)}
    if room and not beside:
        return _unknown(room, known, source)
    near = get_close_matches(name, beside, n=1)
    hints = [f"did you mean {near[0]}?"] if near else []
    allowed = [place for place in _everywhere(source) if place.rpartition(".")[2] == name and place != key]
    if allowed:
        hints.append(f"it is allowed as {' and '.join(dict.fromkeys(allowed[:3]))}")
    elif not near and (elsewhere := _nearest_elsewhere(name, source)):
        hints.append(f"did you mean {elsewhere}?")
    hint = "; ".join(hints) or f"known are {', '.join(sorted(beside))}"
    return f"{_place(key, source)}: no such key{f' in {room}' if room else ''}; {hint}"


def _everywhere(source: Source) -> Iterator[str]:
    """All keys: those of the command, and the arguments of the classes that the files name."""
    yield from source.known
    for file in source.files:
        for key, class_path in parts(yaml.safe_load(file.read_text())):
            yield from (f"{key.replace('+', '')}.init_args.{name}" for name in arguments_of(class_path))


def _nearest_elsewhere(name: str, source: Source) -> str | None:
    """A key of another place whose name is nearly this one."""
    places = {place.rpartition(".")[2]: place for place in _everywhere(source)}
    near = get_close_matches(name, places, n=1, cutoff=0.8)
    return places[near[0]] if near else None


def _place(key: str, source: Source) -> str:
    """Where a key was written: `--key`, or `file:line: key`; the key alone where it stands in neither."""
    typed = {option.partition("=")[0].removesuffix(".class_path").removesuffix("+") for option in source.options}
    if f"--{key}" in typed:
        return f"--{key}"
    for file in reversed(source.files):
        line = _line(yaml.compose(file.read_text()), key.split("."))
        if line is not None:
            return f"{file}:{line}: {key}"
    return key


def _line(node: yaml.Node | None, names: Sequence[str]) -> int | None:
    """The line of a key, searched in lists as well."""
    if isinstance(node, yaml.SequenceNode):
        return next((line for entry in node.value if (line := _line(entry, names)) is not None), None)
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value.removesuffix("+") == names[0]:
            return key.start_mark.line + 1 if len(names) == 1 else _line(value, names[1:])
    return None


def _nearest_class(class_path: str) -> str:
    """The class of that module which a mistyped class path may mean, as a question."""
    module, _, name = class_path.rpartition(".")
    found = _locate(module)
    near = get_close_matches(name, [entry for entry in dir(found) if isinstance(getattr(found, entry), type)], n=1)
    return f"; did you mean {module}.{near[0]}?" if found is not None and near else ""


def _locate(class_path: str) -> Any:
    try:
        return locate(class_path) if class_path else None
    except ErrorDuringImport:
        return None


@cache
def arguments_of(class_path: str) -> list[str]:
    """The names of a class's arguments, with those that `**options` hands on to its bases."""
    found = _locate(class_path)
    if not isinstance(found, type):
        return []
    parser = ArgumentParser()
    parser.add_class_arguments(found, fail_untyped=False)
    return list(vars(parser.get_defaults()))


def cause(error: Exception) -> Exception:
    """What a constructor raised, where jsonargparse reports it as a value that matches no type."""
    below = error.__cause__
    if isinstance(below, Exception) and str(error).startswith("Does not validate against any of the Union subtypes"):
        return cause(below)
    return error


def with_option(error: Exception, config: Namespace) -> str:
    """A constructor's message and the option it is about: `steps: must be positive [--model.init_args.steps]`.

    A part does not know where in a config it stands. Its message begins with the argument that is wrong and a colon;
    the option is found here, by the class whose constructor failed. It is left out where that class stands in several
    places, and where the message names an option already.
    """
    text, part = str(error), failing_part(error, config.as_dict())
    if part is None or re.search(r"--(model|data|trainer)\.", text):
        return text
    key, class_path = part
    argument = re.match(r"(\w+): ", text)
    named = f".{argument[1]}" if argument and argument[1] in arguments_of(class_path) else ""
    return f"{text} [--{key}.init_args{named}]"


def failing_part(error: Exception, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """The dotted place and the class of the part whose constructor raised an error; None if that cannot be told."""
    places = list(parts(config))
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        built = frame.f_locals.get("self") if frame.f_code.co_name == "__init__" else None
        found = {part for part in places if built is not None and _locate(part[1]) is type(built)}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def parts(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every part of a config: its dotted place, without the index where it is one of a list, and its class path."""
    if isinstance(config, list):
        for entry in config:
            yield from parts(entry, key)
    elif isinstance(config, Mapping):
        if isinstance(config.get("class_path"), str):
            yield key, config["class_path"]
        for name, value in config.items():
            yield from parts(value, f"{key}.{name}" if key else name)
