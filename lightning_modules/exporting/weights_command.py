"""`lightning weights`: what weights there are by name, and getting them."""

import argparse
import sys
from collections.abc import Sequence

from lightning_modules.weight_files import WeightsError
from lightning_modules.weights import Entry, entry, names, resolve


def main(arguments: Sequence[str] | None = None) -> None:
    """`lightning weights`, `lightning weights get NAME ... [--accept]`.

    Raises:
        WeightsError: a name is unknown, a licence was not accepted, or a download failed.
    """
    parser = argparse.ArgumentParser(prog="lightning weights", description="Weights by name.")
    commands = parser.add_subparsers(dest="command", metavar="get NAME")
    get = commands.add_parser("get", help="download weights", prog="lightning weights get")
    get.add_argument("names", nargs="+", metavar="NAME")
    get.add_argument("--accept", action="store_true", help="accept licences that forbid commercial use")
    asked = parser.parse_args(arguments)

    if asked.command is None:
        print("\n".join(listed(entry(name)) for name in names()))
        return
    for wanted in [entry(name) for name in asked.names]:  # a wrong name before any download
        if not wanted.commercial and not wanted.present():
            print(f"{wanted.name}: may not be used commercially: {wanted.licence}, {wanted.source}")
        print(resolve(wanted.name, accept=asked.accept or _accepted(wanted)))


def listed(found: Entry) -> str:
    """What there is to know of weights, in a few lines."""
    where = "in the package" if found.packaged else "here" if found.present() else "not here"
    size = "" if found.bytes is None else f", {found.bytes / 1e6:,.1f} MB"
    how = ", by hand" if found.manual and not found.present() else ""
    lines = [f"{found.name} ({where}{how}{size})", found.purpose, f"{found.licence}; {found.source}"]
    if not found.commercial:
        lines[2] = f"not for commercial use: {lines[2]}"
    return "\n    ".join([*lines, *([found.scores] if found.scores else [])])


def _accepted(wanted: Entry) -> bool:
    """Asks, where a person is there to answer."""
    if wanted.commercial or wanted.present() or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    if input("Accept? [y/N] ").strip().lower() in ("y", "yes"):
        return True
    raise WeightsError(f"{wanted.name}: not downloaded, its licence was not accepted")
