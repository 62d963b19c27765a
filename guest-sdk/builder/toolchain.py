"""A Rust compiler for wasm32-wasip2: the installed one, or one unpacked from Debian packages.

Debian's `rustc-web` is a recent compiler with the WebAssembly back end, and `rust-web-src` the sources of its standard
library, which cargo builds on the way (`-Z build-std`). Both are unpacked into target/guest-toolchain and not installed,
so no rights are needed. The linkers are those of the installed Rust.
"""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from builder.report import BuildError, ask, locked, run, say, with_path

TARGET = "wasm32-wasip2"
ADVICE = f"""no Rust compiler for {TARGET} is at hand.
  With rustup:     rustup target add {TARGET}
  Without it, this script unpacks a compiler from Debian's packages, but that did not work here:
  """
# Packages of the compiler itself; their versions follow from `rustc-web`.
COMPILER = re.compile(r"(rustc-web|libstd-rust-web.*|libllvm\d+)$")
# Older compilers lack language items that the stubs name, and features that guests use.
OLDEST = (1, 90)
# What the C library of Debian 12 (wasi-libc of 2022) lacks.
STUBS = Path(__file__).with_name("c_library.rs")


@dataclass
class Toolchain:
    """How to call cargo so that it makes components."""

    name: str
    flags: list[str]
    cargo_arguments: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def environment(self, target_folder: Path) -> dict[str, str]:
        """The environment for cargo. A caller's own `RUSTFLAGS` are meant for this machine, and take no part."""
        return {**self.env, "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(self.flags), "CARGO_TARGET_DIR": str(target_folder)}


def find(root: Path, verbose: bool) -> Toolchain:
    """The installed target, or else the unpacked compiler."""
    flags = ["-C", "target-feature=+simd128"]
    libraries = ask(["rustc", "--print", "target-libdir", "--target", TARGET])
    if libraries is None:
        raise BuildError("Rust is not installed; see https://rustup.rs")
    if any(Path(libraries.strip()).glob("libstd-*.rlib")):
        return Toolchain("the installed target", flags)
    return debian(root / "target" / "guest-toolchain", flags, verbose)


def debian(cache: Path, flags: list[str], verbose: bool) -> Toolchain:
    """The compiler from Debian's packages, unpacked once."""
    sysroot = Path((ask(["rustc", "--print", "sysroot"]) or "").strip())
    host = re.search(r"host: (\S+)", ask(["rustc", "-vV"]) or "")
    linkers = sysroot / "lib" / "rustlib" / (host[1] if host else "") / "bin"
    for tool in (linkers / "wasm-component-ld", linkers / "gcc-ld" / "wasm-ld"):
        if not tool.exists():
            raise BuildError(f"{ADVICE}{tool} is missing; Rust from rustup has it")
    with locked(cache / "lock"):
        prefix = unpacked(cache, verbose)
        env = {**with_path(dict(os.environ), linkers / "gcc-ld", linkers),
               "RUSTC": str(prefix / "usr/bin/rustc"), "RUSTC_BOOTSTRAP": "1",
               "LD_LIBRARY_PATH": os.pathsep.join(map(str, [*sorted((prefix / "usr/lib").glob("*-linux-gnu*")),
                                                            prefix / "usr/lib"]))}
        stubs = compiled_stubs(cache, prefix, env)
    libc = prefix / "usr/lib/wasm32-wasi"
    return Toolchain(
        "Debian's compiler",
        ["-C", "link-self-contained=no", "-L", f"native={libc}", "-C", f"link-arg={stubs}",
         "-C", "link-arg=--export=_initialize", *flags],
        ["-Z", "build-std=std,panic_abort"], env)


def unpacked(cache: Path, verbose: bool) -> Path:
    """The folder with the unpacked packages."""
    done = [mark.parent for mark in cache.glob("*/.complete") if recent(mark.parent.name)]
    if done:
        return max(done, key=lambda folder: release(folder.name))
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise BuildError(f"{ADVICE}{tool} is missing; this is not a Debian system")
    apt = Apt(cache)
    packages = apt.compiler_packages()
    version = next(version for name, version in packages if name == "rustc-web")
    say(f"fetching Rust {version.split('+')[0]} for {TARGET} from Debian's packages (about 115 MB, once)")
    debs = cache / "debs"
    debs.mkdir(exist_ok=True)
    apt.download(debs, packages, verbose)
    prefix = cache / version.replace(":", "_")
    shutil.rmtree(prefix, ignore_errors=True)
    prefix.mkdir()
    for deb in sorted(debs.glob("*.deb")):
        run(["dpkg-deb", "-x", str(deb), str(prefix)], verbose)
    shutil.rmtree(debs)
    (prefix / ".complete").touch()
    return prefix


def compiled_stubs(cache: Path, prefix: Path, env: dict[str, str]) -> Path:
    """The missing C functions as an object file."""
    # Named by its source, so that cargo sees when it changed.
    stubs = cache / f"c-library-{hashlib.sha256(STUBS.read_bytes()).hexdigest()[:12]}.o"
    if not stubs.exists():
        run([env["RUSTC"], str(STUBS), "--edition", "2024", "--target", TARGET, "--emit", "obj", "-C", "opt-level=s",
             "-C", "panic=abort", "-o", str(stubs)], env=env)
    return stubs


def release(version: str) -> tuple[int, ...]:
    """The release of Rust in the version of a package, as numbers."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))


def recent(version: str) -> bool:
    """Whether this version of the compiler can build guests."""
    return release(version)[:2] >= OLDEST


class Apt:
    """Look-ups and downloads; with package lists of its own where the system's are empty or stale."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.options: list[str] = []

    def compiler_packages(self) -> list[tuple[str, str]]:
        """Names and versions of all that the compiler needs. The system's lists may be old: a look at fresh ones is
        taken before a compiler is called too old."""
        if not any(map(recent, self.versions("rustc-web"))):
            self.update()
        versions = [version for version in self.versions("rustc-web") if recent(version)]
        if not versions:
            raise BuildError(f"{ADVICE}apt knows no package rustc-web of Rust {'.'.join(map(str, OLDEST))} or later")
        found: dict[str, str] = {}
        self.follow("rustc-web", versions[0], found)
        source = versions[0] if versions[0] in self.versions("rust-web-src") else None
        libc = self.versions("wasi-libc")
        if source is None or not libc:
            raise BuildError(f"{ADVICE}apt has no rust-web-src {versions[0]} or no wasi-libc")
        return [*found.items(), ("rust-web-src", source), ("wasi-libc", libc[0])]

    def versions(self, package: str) -> list[str]:
        """The versions that can be fetched, newest first."""
        lines = (ask(["apt-cache", *self.options, "madison", package]) or "").splitlines()
        return [parts[1].strip() for parts in (line.split("|") for line in lines)
                if len(parts) == 3 and "Packages" in parts[2]]

    def follow(self, package: str, version: str, found: dict[str, str]) -> None:
        """Adds a package and those of its dependencies that belong to the compiler."""
        found[package] = version
        record = ask(["apt-cache", *self.options, "show", f"{package}={version}"]) or ""
        depends = re.search(r"^Depends: (.*)$", record, re.MULTILINE)
        for item in depends[1].split(",") if depends else []:
            name, _, wanted = item.strip().partition(" ")
            if COMPILER.match(name) and name not in found:
                exact = re.search(r"\(= ([^)]+)\)", wanted)
                available = self.versions(name)
                if not available:
                    raise BuildError(f"{ADVICE}apt has no {name}, which {package} needs")
                self.follow(name, exact[1] if exact else available[0], found)

    def update(self) -> None:
        """Fetches package lists into a folder of our own, which needs no rights and changes nothing on the system."""
        say("fetching Debian's package lists")
        lists, archives = self.cache / "apt" / "lists", self.cache / "apt" / "cache"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        (archives / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        self.options = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={archives}"]
        if os.geteuid() == 0:
            self.options += ["-o", "APT::Sandbox::User=root"]
        run(["apt-get", *self.options, "update"])

    def download(self, folder: Path, packages: list[tuple[str, str]], verbose: bool) -> None:
        """Fetches packages; once more with fresh lists, since a list may name a version that was replaced."""
        command = [f"{name}={version}" for name, version in packages]
        try:
            run(["apt-get", *self.options, "download", *command], verbose, cwd=folder)
        except BuildError:
            if self.options:
                raise
            self.update()
            fresh = [f"{name}={version}" for name, version in self.compiler_packages()]
            run(["apt-get", *self.options, "download", *fresh], verbose, cwd=folder)
