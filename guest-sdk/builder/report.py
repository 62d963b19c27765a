"""What the builder tells a person, and how it runs programs."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BuildError(Exception):
    """A build that cannot go on; the message says what to do."""


def say(message: str) -> None:
    """One line of progress. Standard output stays free for what was asked for."""
    print(f"[guests] {message}", file=sys.stderr, flush=True)


def run(command: list[str], verbose: bool = False, env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    """Runs a program with its output shown only when it fails (or with `verbose`)."""
    if verbose:
        say("$ " + " ".join(map(str, command)))
    try:
        done = subprocess.run(command, env=env, cwd=cwd, stdout=None if verbose else subprocess.PIPE,
                              stderr=None if verbose else subprocess.STDOUT, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not installed") from error
    if done.returncode != 0:
        output = (done.stdout or "").strip()[-4000:]
        raise BuildError(f"`{' '.join(map(str, command))}` failed with status {done.returncode}\n{output}")


def ask(command: list[str], env: dict[str, str] | None = None) -> str | None:
    """The standard output of a program; `None` when it fails or is not there."""
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, so that two builds do not prepare the same folder at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def with_path(env: dict[str, str], *folders: Path) -> dict[str, str]:
    """`env` with folders in front of its PATH."""
    return {**env, "PATH": os.pathsep.join([*map(str, folders), env.get("PATH", "")])}
