"""Environments of Python, each with the packages that a file of pins names, and what this Python needs to make one."""

import importlib
import importlib.util
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from builder.report import BuildError, locked, run
from builder.sources import fingerprint, is_current

# Modules of Python that Debian and Ubuntu keep out of it -> the package that has them.
PACKAGES = {"pip": "python3-pip", "ensurepip": f"python{sys.version_info.major}.{sys.version_info.minor}-venv"}


def missing(*modules: str) -> list[str]:
    """Those of the modules that this Python does not have."""
    # What was installed a moment ago counts.
    importlib.invalidate_caches()
    return [module for module in modules if importlib.util.find_spec(module) is None]


def need(*modules: str) -> None:
    """Stops where this Python lacks one of the modules, and says which package has it."""
    if lacking := missing(*modules):
        packages = " ".join(PACKAGES[module] for module in lacking)
        raise BuildError(f"{sys.executable} has no {' and no '.join(lacking)}; on Debian and Ubuntu: apt install {packages}")


def environment(folder: Path, pins: Path, verbose: bool = False) -> Path:
    """The folder of programs of an environment that holds just these pins; it is made anew where it does not."""
    programs, stamp = folder / "bin", folder / "pins"
    # The programs in it name the interpreter by its path: in a checkout that was moved they would start nothing.
    wanted = fingerprint([pins], sys.version, str(folder.resolve()))
    with locked(folder.with_name(f".{folder.name}.lock")):
        if not is_current(programs / "python", stamp, wanted):
            need("ensurepip")
            print(f"installing the packages of {pins.name} into {folder}", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                venv.create(folder, with_pip=True)
            except subprocess.CalledProcessError as error:
                raise BuildError(f"no environment of Python could be made in {folder}: {error}") from error
            run([str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                 "--requirement", str(pins)], verbose)
            # Last, so that a broken try is not taken for a good one.
            stamp.write_text(wanted, encoding="utf-8")
    return programs
