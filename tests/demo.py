#!/usr/bin/env python3
"""From an empty machine to a real answer: `make demo`, or `tests/demo.py FILE...` for files of your own.

Builds the gateway and one guest, fetches the model Magika from its package, starts the gateway on the built-in engine
with a data folder that is thrown away, deploys the model over the control API with the CLI, and asks it what kind of
file each file is. Needs Rust, a C compiler, Python and the package registries; uses Python's standard library only.
"""

import argparse
import json
import os
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = ROOT / "target" / "release" / "windrose"
# Asks this machine itself, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
FILES = [ROOT / "README.md", ROOT / "models" / "iris" / "model.onnx", ROOT / "tests" / "demo.py"]


class Stop(Exception):
    """Why the demo cannot go on, for the person at the terminal."""


def step(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*command, env=None) -> None:
    """Runs a command with its output in sight."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=env)
    if done.returncode != 0:
        raise Stop(f"`{shlex.join(map(str, command))}` failed")


def prepare() -> None:
    run(sys.executable, "tests/tools.py", "pip")
    step("1. Building the gateway (some minutes the first time)")
    # Whatever folder the shell or cargo's own settings name.
    here = os.environ | {"CARGO_TARGET_DIR": str(ROOT / "target")}
    run("cargo", "build", "--release", "--locked", "-p", "windrose", env=here)
    step("2. Building the guest: a WebAssembly component written in Rust")
    run(sys.executable, "guest-sdk/build.py", "magika")
    step("3. Fetching the model out of its Python package")
    run(sys.executable, "models/fetch.py", "magika")


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@contextmanager
def gateway(folder: Path):
    """A running gateway: yields its URL and the environment that points the CLI at it. It ends with the block."""
    data, control = free_ports()
    # What the shell says of a gateway of one's own would lead the CLI there.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WINDROSE_")} | {
        "WINDROSE_DATA_LISTEN": f"127.0.0.1:{data}",
        "WINDROSE_CONTROL_LISTEN": f"127.0.0.1:{control}",
        "WINDROSE_STORAGE_DIR": str(folder / "data"),
        "WINDROSE_ENGINES_DEFAULT": "rten",
        "WINDROSE_LOG_FILTER": "warn",
    }
    log = folder / "gateway.log"
    with open(log, "wb") as output:
        # A session of its own: Ctrl-C reaches this script, which then ends the gateway.
        process = subprocess.Popen(
            [BINARY, "serve"], env=environment, stdout=output, stderr=output, start_new_session=True
        )
    url = f"http://127.0.0.1:{data}"
    try:
        wait_ready(url, process, log)
        yield url, environment
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Stop(f"the gateway did not start:\n{log.read_text(errors='replace')}")
        try:
            DIRECT.open(f"{url}/v2/health/ready", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    raise Stop(f"the gateway was not ready within a minute:\n{log.read_text(errors='replace')}")


def header(size: int) -> bytes:
    """The JSON in front of one byte string of `size` bytes, as the protocol's binary extension has it. The string itself
    is preceded by its length."""
    tensor = {"name": "file", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size + 4}}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


def ask(url: str, content: bytes) -> tuple[dict, float]:
    """The model's outputs by name, and the milliseconds that they took."""
    head = header(len(content))
    body = head + struct.pack("<I", len(content)) + content
    request = urllib.request.Request(url, body, {"Inference-Header-Content-Length": str(len(head))})
    began = time.perf_counter()
    try:
        with DIRECT.open(request, timeout=60) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        raise Stop(f"the gateway answered {error.code}: {error.read().decode(errors='replace')}") from None
    milliseconds = (time.perf_counter() - began) * 1000
    return {output["name"]: output["data"][0] for output in answer["outputs"]}, milliseconds


def curl_line(url: str, file: Path, size: int) -> str:
    """A shell command that sends the same request."""
    head = header(size).decode()
    length = "".join(f"\\{byte:03o}" for byte in struct.pack("<I", size))
    return (
        f"(printf '%s' '{head}'; printf '{length}'; cat {shlex.quote(str(file))}) |\n"
        f"  curl -s --noproxy '*' {url} --data-binary @- -H 'Inference-Header-Content-Length: {len(head)}'"
    )


def in_words(file: Path, answer: dict, milliseconds: float) -> str:
    name = os.path.relpath(file)
    sure = f"{answer['score'] * 100:.1f}% sure"
    return f"   {name:28} is {answer['description']} ({answer['mime_type']}), {sure}   [{milliseconds:.1f} ms]"


def show(url: str, environment: dict, files: list[Path]) -> None:
    step("5. Deploying the model over the control API: windrose deploy examples/magika")
    run(BINARY, "deploy", "examples/magika", env=environment)
    infer = f"{url}/v2/models/magika/infer"
    step("6. What kind of file is this?")
    for file in files:
        answer, milliseconds = ask(infer, file.read_bytes())
        print(in_words(file, answer, milliseconds), flush=True)
    step("The same with curl:")
    command = curl_line(infer, Path(os.path.relpath(files[0])), files[0].stat().st_size)
    print(command)
    if shutil.which("curl"):
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise Stop(f"curl failed: {done.stderr}")
        print(f"\n{done.stdout.strip()}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Show what Windrose does, with a real model and real files.")
    parser.add_argument("files", nargs="*", type=Path, default=FILES, help="files to ask about")
    files = parser.parse_args().files
    if missing := [str(file) for file in files if not file.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    began = time.monotonic()
    try:
        prepare()
        step("4. Starting the gateway on its built-in engine")
        with tempfile.TemporaryDirectory(prefix="windrose-demo-") as folder, gateway(Path(folder)) as (url, environment):
            print(f"   {url}, a data folder of its own in {folder}")
            show(url, environment, files)
    except KeyboardInterrupt:
        print("\nstopped")
        return 130
    except (Stop, OSError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    step(f"Done in {time.monotonic() - began:.0f} s. The gateway is stopped; README.md says how to keep one running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
