"""What a guest is made of, so that it is made again when that changed, and only then."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

# Folders that hold what was made or fetched; components, which are made, may lie beside their sources.
IGNORED = {"__pycache__", "node_modules", "target"}
MADE = ".wasm"


def fingerprint(sources: Iterable[Path], *settings: str) -> str:
    """A digest of files (with the files under folders) by content, and of settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for path in sorted(file for source in sources for file in files(source)):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def files(source: Path) -> Iterable[Path]:
    """The file itself, or all files under a folder."""
    if source.is_file():
        yield source
    for folder, names, found in os.walk(source):
        names[:] = [name for name in names if name not in IGNORED and not name.startswith(".")]
        yield from (Path(folder) / name for name in found if not name.endswith(MADE))


def is_current(output: Path, stamp: Path, wanted: str) -> bool:
    """Whether the output was made of these very sources."""
    return output.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted
