#!/usr/bin/env python3
"""Everything that CI runs, in one go: `make test`.

Stages run one after the other, the cheap ones first; what must be downloaded comes in beside the first compilations.
Ends with pytest's own closing line. Needs Rust, a C compiler, Python 3.11, Node and the package registries.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / "target" / "venv" / "bin" / "python"
LOGS = ROOT / "target" / "test-logs"
FUZZ_SECONDS = os.environ.get("FUZZ_SECONDS", "60")

# Guests and their SDK are workspaces of their own; on this machine's own target they share a folder. There nobody minds the
# size of what is built, and linking it as one piece would take most of the time.
NATIVE = [
    "--target-dir",
    str(ROOT / "target" / "guests-native"),
    "--config=profile.release.lto=false",
    "--config=profile.release.codegen-units=16",
]
SDK = ["--manifest-path", "guest-sdk/Cargo.toml", "--all-features", *NATIVE]
EXAMPLES = ["--manifest-path", "examples/Cargo.toml", *NATIVE]
DENY = ["--", "-D", "warnings"]
# The two crates that take the longest to compile, and whose own tests do not compute much.
QUICK = [f"--config=profile.release.package.{name}.opt-level=1" for name in ("windrose", "windrose-sandbox")]


class Failed(Exception):
    pass


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def stage(title: str, *command: str) -> None:
    say(f"{title}: {' '.join(command)}")
    began = time.monotonic()
    code = subprocess.run(command, cwd=ROOT).returncode
    print(f"=== {title}: {'ok' if code == 0 else f'FAILED ({code})'} in {time.monotonic() - began:.0f} s", flush=True)
    if code != 0:
        raise Failed(title)


class Fetching(threading.Thread):
    """Downloads beside the compilers. What it prints is kept, and shown when somebody waits for it."""

    COMMANDS = [
        [sys.executable, "tests/environment.py"],
        [sys.executable, "models/fetch.py", "all"],
        [sys.executable, "models/onnxruntime.py"],
        [sys.executable, "benches/peers/peers.py", "mlserver", "pytriton"],
    ]

    def __init__(self):
        super().__init__(daemon=True)
        self.log = LOGS / "fetch.log"
        self.error = None

    def run(self) -> None:
        with open(self.log, "wb") as log:
            for command in self.COMMANDS:
                if subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode != 0:
                    self.error = " ".join(command)
                    return

    def wait(self) -> None:
        say("downloads")
        self.join()
        print(self.log.read_text(), flush=True)
        if self.error:
            raise Failed(self.error)


def everything() -> None:
    LOGS.mkdir(parents=True, exist_ok=True)
    stage("tools", sys.executable, "tests/tools.py")
    fetching = Fetching()
    fetching.start()
    stage("format", "cargo", "fmt", "--all", "--check")
    stage("format of the SDK", "cargo", "fmt", "--manifest-path", "guest-sdk/Cargo.toml", "--check")
    stage("format of the examples", "cargo", "fmt", "--all", "--manifest-path", "examples/Cargo.toml", "--check")
    stage("lints", "cargo", "clippy", "--release", "--locked", "--workspace", "--all-targets", *DENY)
    stage("lints of the SDK", "cargo", "clippy", "--release", "--all-targets", *SDK, *DENY)
    stage("tests of the SDK", "cargo", "test", "--release", *SDK)
    stage("lints of the examples", "cargo", "clippy", "--release", "--all-targets", *EXAMPLES, "--workspace", *DENY)
    stage("tests of the examples", "cargo", "test", "--release", *EXAMPLES, "--workspace")
    stage("guests", sys.executable, "guest-sdk/build.py")
    fetching.wait()
    stage("unit tests", "cargo", "test", "--release", "--locked", "--workspace", *QUICK)
    # After the unit tests, whose gateway is not what users build: from here on it is.
    stage("gateway", "cargo", "build", "--release", "--locked", "--workspace")
    stage("fuzzers", sys.executable, "tests/fuzz/run.py", "all", FUZZ_SECONDS)
    say("end to end")
    # What was skipped is said, and why. Nothing is printed after pytest's closing line.
    if subprocess.run([VENV, "-m", "pytest", "-rs", "tests", "--ignore=tests/gpu"], cwd=ROOT).returncode != 0:
        sys.exit(1)


def main() -> int:
    began = time.monotonic()
    # Whatever folder the shell or cargo's own settings name: the tests look here.
    os.environ["CARGO_TARGET_DIR"] = str(ROOT / "target")
    try:
        everything()
    except Failed as failed:
        print(f"\nFAILED: {failed} (after {time.monotonic() - began:.0f} s)", flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
