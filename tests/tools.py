#!/usr/bin/env python3
"""Installs the programs of the system that some tests watch or ask the gateway with, where apt-get can: they are missing
on a bare machine. Where it cannot, those tests are skipped and say so. Uses the standard library only.
"""

import os
import shutil
import subprocess
import sys

# What is run -> the package of Debian and Ubuntu that has it.
PACKAGES = {"curl": "curl", "strace": "strace"}
SECONDS = 300


def missing() -> list[str]:
    return [tool for tool in PACKAGES if not shutil.which(tool)]


def apt_get(*arguments: str) -> bool:
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=60", *arguments]
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run(command, env=environment, timeout=SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main() -> int:
    wanted = missing()
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        packages = [PACKAGES[tool] for tool in wanted]
        install = ["install", "--yes", "--no-install-recommends", *packages]
        # The lists of a fresh image are empty or old.
        _ = apt_get(*install) or apt_get("update") and apt_get(*install)
    if wanted := missing():
        print(f"not here: {', '.join(wanted)}; install them, else the tests that need them are skipped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
