"""The command `lightning` again, in a process of its own."""

import os
import sys
from collections.abc import Sequence


def command_line(arguments: Sequence[str]) -> list[str]:
    """What starts `lightning` with these arguments, in the way that this process was started."""
    started = sys.modules["__main__"].__spec__
    program = [os.path.abspath(sys.argv[0])] if started is None else ["-m", started.name]
    return [sys.executable, *program, *arguments]
