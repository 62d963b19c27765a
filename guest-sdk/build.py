#!/usr/bin/env python3
"""Builds guests: WebAssembly components for Windrose, from Rust, Python and JavaScript.

With no arguments it builds every example of this checkout into target/guests/NAME.wasm. Rust needs the target
wasm32-wasip2; where it is not installed, a compiler that has it is unpacked from Debian packages (nothing is installed).
"""

import argparse
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True  # The sources' folder stays clean.

from builder import rust, script  # noqa: E402
from builder.report import BuildError, say  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="guests to build (default: all of them)")
    parser.add_argument("--manifest-path", type=Path, default=ROOT / "examples", metavar="DIR",
                        help="a cargo package or workspace, or its Cargo.toml (default: the examples)")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "guests", metavar="DIR",
                        help="where the components go (default: target/guests)")
    parser.add_argument("--list", action="store_true", help="print the names of the guests and stop")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the commands that run")
    return parser.parse_args()


def pick(wanted: list[str], known: list[str]) -> list[str]:
    """The guests to build, in the order in which they are known."""
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise BuildError(f"no guest named {', '.join(unknown)}; there are: {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


def build(arguments: argparse.Namespace) -> None:
    manifest = arguments.manifest_path.resolve()
    folder = manifest.parent if manifest.name == "Cargo.toml" else manifest
    packages = rust.packages(folder) if (folder / "Cargo.toml").exists() else {}
    scripts = script.guests(folder)
    if not packages and not scripts:
        raise BuildError(f"{folder} holds no guest: neither a Cargo.toml nor a folder with app.py or app.js")
    chosen = pick(arguments.names, sorted(packages) + sorted(scripts))
    if arguments.list:
        print("\n".join(chosen))
        return
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    rust.build(ROOT, folder, {name: packages[name] for name in chosen if name in packages}, out, arguments.verbose)
    for name in chosen:
        if name in scripts:
            script.build(scripts[name], out / f"{name}.wasm", arguments.verbose)
    say(f"{len(chosen)} guest{'' if len(chosen) == 1 else 's'} in {out} ({time.monotonic() - started:.1f} s)")


def main() -> int:
    arguments = parse_arguments()
    try:
        build(arguments)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
