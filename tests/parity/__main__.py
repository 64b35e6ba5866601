"""`python -m tests.parity FOLDER...`: exits 1 on any FAIL or unknown kind."""

import sys
from pathlib import Path

from tests.parity.harness import FixtureError, judge


def main() -> None:
    """Prints a line per fixture, then the count."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tests.parity FOLDER...")
    verdicts = []
    try:
        for line, passed in judge([Path(argument) for argument in sys.argv[1:]]):
            print(line, flush=True)
            verdicts.append(passed)
    except FixtureError as error:
        sys.exit(f"error: {error}")
    print(f"{sum(verdicts)} of {len(verdicts)} fixtures pass")
    sys.exit(0 if all(verdicts) else 1)


if __name__ == "__main__":
    main()
