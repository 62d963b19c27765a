"""Modules that do what they must not: a typed error for the caller, everybody else is answered, memory comes back."""

import threading
import time

import pytest
from harness import ROOT, wait_until

GRAPH = ROOT / "models" / "test" / "identity_fp32.onnx"
X = [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]

MANIFEST = """
name = "{name}"
module = "{module}"

[graphs.model]
file = "{graph}"

[limits]
memory = "32MiB"
tensor_memory = "16MiB"
wall = "{wall}"
cpu = "{cpu}"
concurrency = 4
output = "1MiB"
log = "16KiB"
"""

# What the guest does -> (statuses, the word of the header `windrose-error`).
ACTS = {
    "loop": (504, "cpu_limit"),
    "memory": (502, "memory_limit"),
    "tensors": (502, "tensor_memory_limit"),
    "recursion": (502, "stack_limit"),
    "output": (502, "output_limit"),
    "log": (502, "log_limit"),
    "trap": (502, "guest_trapped"),
    "panic": (502, "guest_trapped"),
    "sleep": (504, "wall_limit"),
    "other-graph": (502, "guest_failed"),
    "fail": (502, "guest_failed"),
    "refuse": (400, "invalid_input"),
    "files": (400, "invalid_input"),
    "undeclared": (502, "guest_contract"),
    "wrong-type": (502, "guest_contract"),
    "nothing": (502, "guest_contract"),
    "no-number": (502, "guest_contract"),
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    from harness import Gateway

    gateway = Gateway(tmp_path_factory.mktemp("hostile"), "rten").start()
    try:
        gateway.deploy(GRAPH, "--name", "bystander")
        # `brief` is for what ends by a limit of time, and is done again and again.
        for name, wall, cpu in (("hostile", "2s", "500ms"), ("brief", "500ms", "100ms")):
            folder = tmp_path_factory.mktemp(name)
            module = ROOT / "target" / "guests" / "hostile.wasm"
            text = MANIFEST.format(name=name, module=module, graph=GRAPH, wall=wall, cpu=cpu)
            (folder / "windrose.toml").write_text(text)
            gateway.deploy(folder)
        yield gateway
    finally:
        gateway.stop()


def act(gateway, what: str, model: str = "hostile", **more):
    return gateway.infer(model, X, parameters={"act": what} | more, seconds=30)


class Bystander(threading.Thread):
    """Somebody else's requests, all the while; keeps what went wrong and the slowest answer."""

    def __init__(self, gateway):
        super().__init__(daemon=True)
        self.gateway, self.stopping, self.failed, self.slowest, self.count = gateway, threading.Event(), [], 0.0, 0

    def run(self):
        while not self.stopping.is_set():
            began = time.monotonic()
            answer = self.gateway.infer("bystander", X)
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.count += 1
            if answer.status != 200:
                self.failed.append(answer)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.join(30)


@pytest.mark.parametrize("what", ACTS)
def test_a_typed_error_and_nobody_else_notices(gateway, what):
    status, word = ACTS[what]
    with Bystander(gateway) as bystander:
        answer = act(gateway, what)
    assert (answer.status, answer.headers.get("windrose-error")) == (status, word), answer
    assert answer.json()["error"]
    assert not bystander.failed and bystander.count and bystander.slowest < 2, bystander.slowest
    assert act(gateway, "none").status == 200


def test_what_the_guest_sees_of_the_machine(gateway):
    assert act(gateway, "files").json()["error"].endswith("root 0, outside 0, written 0, variables 0")


def test_the_caller_is_not_told_what_is_ours(gateway):
    for what in ("trap", "panic", "fail", "memory"):
        text = act(gateway, what).body.decode()
        for secret in ("wasm", "backtrace", "/target/", ".rs", "panicked"):
            assert secret not in text, text


# MiB that each call of the next test holds when it ends, how many calls there are, and MiB that may be left of all of them.
HELD, TIMES, LEFT = 8, 30, 64


@pytest.mark.parametrize("what", ACTS)
def test_memory_comes_back(gateway, what):
    """One after the other, so that none is refused: were what each holds left, it would be 240 MiB and more."""
    model = "brief" if ACTS[what][0] == 504 else "hostile"

    def do(times: int):
        for _ in range(times):
            answer = act(gateway, what, model, hold=HELD)
            assert (answer.status, answer.headers.get("windrose-error")) == ACTS[what], answer

    # The first calls take what is kept for later ones.
    do(3)
    before = gateway.resident()
    do(TIMES)
    wait_until(lambda: gateway.resident() < before + (LEFT << 20), 20, "memory to come back")


def test_all_at_once_and_nobody_else_notices(gateway):
    answers = []

    def do(what: str):
        answers.append((what, act(gateway, what)))

    with Bystander(gateway) as bystander:
        threads = [threading.Thread(target=do, args=(what,)) for what in ACTS for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not bystander.failed and len(answers) == len(threads)
    told = [(what, (answer.status, answer.headers.get("windrose-error"))) for what, answer in answers]
    # Most are refused; and what has little of the cores may reach its limit of wall time first.
    others = {(429, "overloaded"), (504, "wall_limit")}
    assert all(said in others | {ACTS[what]} for what, said in told), told
    assert any(said == ACTS[what] for what, said in told), told
    assert act(gateway, "none").status == 200


def test_more_calls_than_permits_are_refused_at_once(gateway):
    answers = []

    def sleep():
        answers.append(act(gateway, "sleep"))

    threads = [threading.Thread(target=sleep) for _ in range(12)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answers) >= 8, 10, "those over the limit to be refused")
    assert time.monotonic() - began < 1.9
    for thread in threads:
        thread.join(30)
    statuses = sorted(answer.status for answer in answers)
    assert statuses == [429] * 8 + [504] * 4


@pytest.mark.parametrize(
    "name, reason", [("endless_loop", "did not end within"), ("terabyte", "memory"), ("aborts_at_load", "graph `model`")]
)
def test_hostile_graphs(gateway, name, reason):
    """Refused when they are deployed, by what their child process came to; nobody else notices."""
    graph = ROOT / "models" / "test" / f"{name}.onnx"
    with Bystander(gateway) as bystander:
        done = gateway.cli("deploy", graph, "--name", "badgraph", check=False)
    assert not bystander.failed
    assert done.returncode == 1 and reason in done.stderr + done.stdout, done
    assert gateway.infer("badgraph", X).status == 404


def test_a_core_module_of_the_old_abi_is_refused_by_name(gateway, tmp_path):
    old = tmp_path / "old.wasm"
    # (module (import "wasi_ephemeral_nn" "load" (func)))
    name = b"\x11wasi_ephemeral_nn\x04load"
    imports = b"\x01" + name + b"\x00\x00"
    old.write_bytes(b"\0asm\x01\0\0\0" + b"\x01\x04\x01\x60\x00\x00" + b"\x02" + bytes([len(imports)]) + imports)
    done = gateway.cli("deploy", old, "--name", "old", check=False)
    assert done.returncode != 0 and "wasi_ephemeral_nn" in done.stderr + done.stdout


@pytest.mark.parametrize("content", [b"", b"\0asm", b"not wasm at all", b"\0asm\x0d\0\x01\0"])
def test_what_is_no_component_is_refused(gateway, tmp_path, content):
    path = tmp_path / "bad.wasm"
    path.write_bytes(content)
    done = gateway.cli("deploy", path, "--name", "bad", check=False)
    assert done.returncode != 0 and (done.stderr + done.stdout).strip()
    assert gateway.infer("bystander", X).status == 200
