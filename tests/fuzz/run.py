#!/usr/bin/env python3
"""Fuzzes the decoders and readers that take bytes from outside.

    python3 tests/fuzz/run.py TARGET|all SECONDS

Each target runs for SECONDS on one core, as many at the same time as there are cores. It needs no nightly toolchain and no cargo-fuzz: stable rustc can count
coverage. Everything lands in `target/fuzz`: the corpus is kept there and grows from run to run. Exits with 1 if a target
found something, after printing what, and the command that shows it again.
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = ROOT / "target/fuzz"

# Where a target's first inputs are; one without seeds starts from nothing.
SEEDS = {"onnx": [ROOT / "models/test"]} | {name: [HERE / "seeds" / name] for name in os.listdir(HERE / "seeds")}

# What a single input may cost: the readers are linear, so that anything near this is a finding.
LIMITS = ["-timeout=5", "-rss_limit_mb=1024", "-malloc_limit_mb=512", "-max_len=65536"]

COVERAGE = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
]


def targets():
    """The names of all targets, from the manifest."""
    manifest = tomllib.loads((HERE / "Cargo.toml").read_text())
    return [target["name"] for target in manifest["bin"]]


def build(names):
    """Builds the targets with coverage counters; the host's own build scripts go without."""
    host = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    host = next(line.split()[1] for line in host.splitlines() if line.startswith("host:"))
    environment = dict(os.environ, RUSTC_BOOTSTRAP="1", CARGO_TARGET_DIR=str(OUT / "build"),
                       CARGO_ENCODED_RUSTFLAGS="\x1f".join(COVERAGE))
    environment.pop("RUSTFLAGS", None)
    command = ["cargo", "build", "--release", "--target", host, "--manifest-path", str(HERE / "Cargo.toml")]
    subprocess.run(command + [part for name in names for part in ("--bin", name)], check=True, env=environment)
    return OUT / "build" / host / "release"


def fuzz(binary, name, seconds):
    """Runs one target; returns the inputs that it found."""
    corpus, findings = OUT / "corpus" / name, OUT / "findings" / name
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    seeds = [str(folder) for folder in SEEDS.get(name, []) if folder.is_dir()]
    command = [str(binary), str(corpus), *seeds, f"-max_total_time={seconds}", f"-artifact_prefix={findings}/",
               "-print_final_stats=1", "-verbosity=1", *LIMITS]
    log = OUT / f"{name}.log"
    with open(log, "w") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    stats = dict(line.removeprefix("stat::").split(":", 1) for line in log.read_text(errors="replace").splitlines()
                 if line.startswith("stat::"))
    runs = stats.get("number_of_executed_units", "0").strip()
    found = sorted(set(findings.iterdir()) - before)
    report = [f"{name}: {runs} inputs in {seconds} s, {len(list(corpus.iterdir()))} in the corpus, "
              f"{'nothing found' if status == 0 else f'FOUND (status {status})'}"]
    if status != 0:
        report += log.read_text(errors="replace").splitlines()[-40:]
        report += [f"  again: {binary} {path}" for path in found]
    # In one piece, since others print as well.
    sys.stdout.write("\n".join(report) + "\n")
    sys.stdout.flush()
    return (found or [log]) if status != 0 else []


def main():
    if len(sys.argv) != 3 or not sys.argv[2].isdigit():
        sys.exit(__doc__)
    known = targets()
    names = known if sys.argv[1] == "all" else [sys.argv[1]]
    if unknown := set(names) - set(known):
        sys.exit(f"no target {', '.join(unknown)}: there are {', '.join(known)}")
    folder = build(names)
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as cores:
        runs = [cores.submit(fuzz, folder / name, name, int(sys.argv[2])) for name in names]
    found = [path for run in runs for path in run.result()]
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
