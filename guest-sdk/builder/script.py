"""Builds guests written in Python and JavaScript, with the builder of each language's SDK."""

import subprocess
import sys
from pathlib import Path

from builder.report import BuildError

# What a guest's folder holds -> the folder of the SDK that builds it.
LANGUAGES = {"app.py": "python", "app.js": "js"}
SDK = Path(__file__).resolve().parent.parent


def guests(folder: Path) -> dict[str, Path]:
    """The guests in a folder by name: itself, or its folders."""
    own = [folder] if language(folder) else sorted(path for path in folder.iterdir() if path.is_dir() and language(path))
    return {path.name: path for path in own}


def language(folder: Path) -> str | None:
    """Which SDK builds a folder."""
    return next((sdk for file, sdk in LANGUAGES.items() if (folder / file).is_file()), None)


def build(source: Path, target: Path, verbose: bool) -> None:
    """Makes the component, where it is not up to date. The SDK's builder says what it does."""
    command = [sys.executable, str(SDK / str(language(source)) / "build.py"), str(source), "--out", str(target)]
    done = subprocess.run([*command, "--verbose"] if verbose else command, check=False)
    if done.returncode != 0:
        raise BuildError(f"{source.name} could not be built; its messages are above")
