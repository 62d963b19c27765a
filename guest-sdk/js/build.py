#!/usr/bin/env python3
"""Makes a component of a model written in JavaScript: build.py FOLDER [--out FILE]

FOLDER holds `app.js`, which exports a model with `windrose-guest`, and beside it whatever that imports. Where it has a
package-lock.json, its packages of npm are installed there first. Does nothing where the component is up to date. Needs
Node 20 or later; componentize-js is fetched once.
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

from builder.report import BuildError, ask, locked, run, say  # noqa: E402
from builder.sources import fingerprint, is_current  # noqa: E402

WIT = SDK.parent / "wit"
NODE = ROOT / "target" / "guest-node"
STAMPS = ROOT / "target" / "guests-build" / "js"
PINS = [SDK / "package.json", SDK / "package-lock.json"]
PROGRAM = SDK / "build.mjs"
OLDEST_NODE = 20
NPM = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]


def tool(verbose: bool) -> Path:
    """The builder beside the packages that it needs, of the pinned versions."""
    version = ask(["node", "--version"])
    if version is None or int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        raise BuildError(f"Node {OLDEST_NODE} or later is needed, with npm; found: {version or 'none'}")
    # Node looks for packages beside the program that imports them.
    program, stamp = NODE / PROGRAM.name, NODE / "pins"
    wanted = fingerprint([*PINS, PROGRAM], version)
    with locked(NODE.with_name(".guest-node.lock")):
        if not is_current(program, stamp, wanted):
            say("installing componentize-js (about 200 MB, once)")
            NODE.mkdir(parents=True, exist_ok=True)
            for file in PINS:
                shutil.copyfile(file, NODE / file.name)
            run(NPM, verbose, cwd=NODE)
            shutil.copyfile(PROGRAM, program)
            stamp.write_text(wanted, encoding="utf-8")
    return program


def build(folder: Path, out: Path, verbose: bool) -> None:
    if not (folder / "app.js").is_file():
        raise BuildError(f"{folder} holds no app.js")
    STAMPS.mkdir(parents=True, exist_ok=True)
    stamp = STAMPS / f"{out.stem}.stamp"
    wanted = fingerprint([folder, WIT, *PINS, SDK / "windrose-guest.js", PROGRAM, Path(__file__)], str(out))
    if is_current(out, stamp, wanted):
        return
    started = time.monotonic()
    program = tool(verbose)
    if (folder / "package-lock.json").is_file():
        run(NPM, verbose, cwd=folder)
    say(f"building {out.stem} with componentize-js")
    out.parent.mkdir(parents=True, exist_ok=True)
    # A reader never sees half of it.
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        run(["node", str(program), str(folder / "app.js"), str(unfinished), "--wit", str(WIT),
             "--sdk", str(SDK / "windrose-guest.js")], verbose)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    stamp.write_text(wanted, encoding="utf-8")
    say(f"{out.name}: {out.stat().st_size / 1024:.0f} KiB ({time.monotonic() - started:.1f} s)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder with app.js")
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
