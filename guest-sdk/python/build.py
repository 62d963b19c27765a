#!/usr/bin/env python3
"""Makes a component of a model written in Python: build.py FOLDER [--out FILE]

FOLDER holds `app.py`, which exports a model with `windrose_guest`, and beside it whatever that imports. Packages named in
a `requirements.txt` of the folder go into the component too; they must be pure Python. Does nothing where the component is
up to date. Needs Python 3.10 or later; componentize-py is fetched once.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

SDK = Path(__file__).resolve().parent
ROOT = SDK.parent.parent
sys.path.insert(0, str(SDK.parent))

from builder.environments import environment  # noqa: E402
from builder.report import BuildError, run, say  # noqa: E402
from builder.sources import fingerprint, is_current  # noqa: E402

WIT = SDK.parent / "wit"
WORLD = "windrose:model/model"
PINS = SDK / "requirements.txt"
VENV = ROOT / "target" / "guest-venv"
WORK = ROOT / "target" / "guests-build" / "python"
PIP = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def packages(folder: Path, into: Path, verbose: bool) -> list[Path]:
    """The packages that the folder's requirements.txt names, installed into a folder for the component."""
    wanted = folder / "requirements.txt"
    if not wanted.is_file():
        return []
    shutil.rmtree(into, ignore_errors=True)
    run([str(VENV / "bin" / "python"), *PIP, "--target", str(into), "--only-binary", ":all:", "--platform", "any",
         "--requirement", str(wanted)], verbose)
    return [into]


def build(folder: Path, out: Path, verbose: bool) -> None:
    if not (folder / "app.py").is_file():
        raise BuildError(f"{folder} holds no app.py")
    WORK.mkdir(parents=True, exist_ok=True)
    stamp = WORK / f"{out.stem}.stamp"
    wanted = fingerprint([folder, WIT, PINS, SDK / "windrose_guest.py", Path(__file__)], str(out))
    if is_current(out, stamp, wanted):
        return
    started = time.monotonic()
    # componentize-py of the pinned version, in an environment of its own.
    program = environment(VENV, PINS, verbose) / "componentize-py"
    say(f"building {out.stem} with componentize-py")
    paths = [folder, SDK, *packages(folder, WORK / f"{out.stem}-packages", verbose)]
    out.parent.mkdir(parents=True, exist_ok=True)
    # A reader never sees half of it.
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        run([str(program), "--quiet", "--wit-path", str(WIT), "--world", WORLD, "componentize", "app",
             *(part for path in paths for part in ("--python-path", str(path))), "--output", str(unfinished)],
            verbose, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    stamp.write_text(wanted, encoding="utf-8")
    say(f"{out.name}: {out.stat().st_size / 1024:.0f} KiB ({time.monotonic() - started:.1f} s)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder with app.py")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: target/guests/FOLDER.wasm")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the commands that run")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    out = (arguments.out or ROOT / "target" / "guests" / f"{folder.name}.wasm").resolve()
    try:
        build(folder, out, arguments.verbose)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
