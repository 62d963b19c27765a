#!/usr/bin/env python3
"""Makes target/venv, the Python environment of the tests, from the pins in tests/requirements.txt.

Does nothing when the environment already holds exactly those pins. Uses the standard library only.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "target" / "venv"
PINS = ROOT / "tests" / "requirements.txt"
STAMP = FOLDER / "pins.sha256"


def wanted() -> str:
    """What the stamp holds when the environment is up to date: the pins and the interpreter."""
    return hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()


def install() -> None:
    """Builds the environment from nothing; the stamp comes last, so that a broken try is not taken for a good one."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER, with_pip=True)
    command = [FOLDER / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--requirement", PINS], check=True)
    STAMP.write_text(wanted())


def main() -> int:
    if sys.version_info < (3, 11):
        print(f"Python 3.11 or later is needed; this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    FOLDER.parent.mkdir(exist_ok=True)
    # Two `make` targets may ask at the same time.
    with open(FOLDER.parent / ".venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.is_file() and STAMP.read_text() == wanted():
            return 0
        print(f"installing the tests' Python packages into {FOLDER.relative_to(ROOT)} …", flush=True)
        install()
    return 0


if __name__ == "__main__":
    sys.exit(main())
