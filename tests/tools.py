#!/usr/bin/env python3
"""Installs what the demo and the tests need of the system, where apt-get can: on a bare machine it is missing.

    tests/tools.py              what the tests need
    tests/tools.py NAME...      these programs and modules of Python

Without a module of Python nothing can be fetched, and this fails. Without a program the tests that watch or ask the
gateway with it are skipped and say so. Uses the standard library only.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "guest-sdk"))
sys.dont_write_bytecode = True

from builder import environments  # noqa: E402
from builder.report import BuildError  # noqa: E402

# What is run -> the package of Debian and Ubuntu that has it.
PROGRAMS = {"curl": "curl", "strace": "strace"}
MODULES = environments.PACKAGES
SECONDS = 300


def missing(names: list[str]) -> list[str]:
    programs = [name for name in names if name in PROGRAMS and not shutil.which(name)]
    return programs + environments.missing(*(name for name in names if name in MODULES))


def packages(names: list[str]) -> list[str]:
    """The packages that would bring them; modules come with packages for the Python of the system only."""
    system = sys.base_prefix == "/usr"
    return [(PROGRAMS | MODULES)[name] for name in names if name in PROGRAMS or system]


def apt_get(*arguments: str) -> bool:
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=60", *arguments]
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run(command, env=environment, timeout=SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main() -> int:
    names = sys.argv[1:] or [*PROGRAMS, *MODULES]
    if unknown := [name for name in names if name not in PROGRAMS | MODULES]:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(PROGRAMS | MODULES)}", file=sys.stderr)
        return 2
    wanted = packages(missing(names))
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["install", "--yes", "--no-install-recommends", *wanted]
        # The lists of a fresh image are empty or old.
        _ = apt_get(*install) or apt_get("update") and apt_get(*install)
    wanted = missing(names)
    if programs := [name for name in wanted if name in PROGRAMS]:
        print(f"not here: {', '.join(programs)}; install them, else the tests that need them are skipped", flush=True)
    try:
        environments.need(*(name for name in wanted if name in MODULES))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
