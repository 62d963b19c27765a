#!/usr/bin/env python3
"""Makes target/venv, the Python environment of the tests, from the pins in tests/requirements.txt.

Does nothing when the environment already holds exactly those pins. Uses the standard library only.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "guest-sdk"))
sys.dont_write_bytecode = True

from builder.environments import environment  # noqa: E402
from builder.report import BuildError  # noqa: E402


def main() -> int:
    if sys.version_info < (3, 11):
        print(f"Python 3.11 or later is needed; this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    try:
        environment(ROOT / "target" / "venv", ROOT / "tests" / "requirements.txt")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
