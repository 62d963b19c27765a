"""Builds Rust guests with cargo."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from builder import toolchain
from builder.report import BuildError, ask, say


@dataclass
class Package:
    """One cargo package that makes components."""

    # Package name as cargo's `-p` takes it.
    name: str
    # What cargo calls it in its messages.
    id: str
    # Guest name -> name of its target.
    targets: dict[str, str]


def packages(folder: Path) -> dict[str, Package]:
    """The guests of a cargo workspace by name: a package's own name, or its targets' where it has several."""
    text = ask(["cargo", "metadata", "--no-deps", "--format-version", "1", "--manifest-path",
                str(folder / "Cargo.toml")])
    if text is None:
        raise BuildError(f"`cargo metadata` failed in {folder}")
    found: dict[str, Package] = {}
    for entry in json.loads(text)["packages"]:
        targets = [target["name"] for target in entry["targets"]
                   if "bin" in target["kind"] or "cdylib" in target["kind"]]
        names = [entry["name"]] if len(targets) == 1 else [name.replace("_", "-") for name in targets]
        package = Package(entry["name"], entry["id"], dict(zip(names, targets)))
        found.update({name: package for name in names})
    return found


def build(root: Path, folder: Path, guests: dict[str, Package], out: Path, verbose: bool) -> None:
    """Builds guests in release mode and copies each to OUT/NAME.wasm when it changed."""
    if not guests:
        return
    tools = toolchain.find(root, verbose)
    say(f"building {len(guests)} Rust guest{'' if len(guests) == 1 else 's'} with {tools.name}")
    wanted = [part for name in sorted({package.name for package in guests.values()}) for part in ("-p", name)]
    made = cargo(root, tools, ["build", "--release", "--target", toolchain.TARGET, *tools.cargo_arguments,
                               "--manifest-path", str(folder / "Cargo.toml"), *wanted], verbose)
    for name, package in guests.items():
        copy(made[package.id, package.targets[name]], out / f"{name}.wasm")


def cargo(root: Path, tools: toolchain.Toolchain, arguments: list[str], verbose: bool) -> dict[tuple[str, str], Path]:
    """Runs cargo, its progress shown; returns the components by package id and target name."""
    command = ["cargo", *arguments, "--message-format", "json-render-diagnostics"]
    if verbose:
        say("$ " + " ".join(command))
    made: dict[tuple[str, str], Path] = {}
    with subprocess.Popen(command, env=tools.environment(root / "target" / "guests-build"), stdout=subprocess.PIPE,
                          stderr=sys.stderr, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("reason") == "compiler-artifact":
                for file in message["filenames"]:
                    if file.endswith(".wasm"):
                        made[message["package_id"], message["target"]["name"]] = Path(file)
    if process.returncode != 0:
        raise BuildError("cargo could not build the guests; its messages are above")
    return made


def copy(source: Path, target: Path) -> None:
    """Copies a component, unless the same bytes are there; a reader never sees half of it."""
    if target.exists() and target.read_bytes() == source.read_bytes():
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    temporary.replace(target)
    say(f"{target.name}: {target.stat().st_size / 1024:.0f} KiB")
