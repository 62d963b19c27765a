"""Real inputs for the examples: files of many kinds, pictures with and without text, speech, sentences.

Everything is made from packages of the tests' environment, so that every machine sees the same inputs.
"""

import bz2
import ctypes
import gzip
import io
import json
import lzma
import pickle
import random
import sqlite3
import struct
import sys
import tarfile
import wave
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent


def _package(name: str) -> Path:
    return Path(__import__(name).__file__).resolve().parent


# --- files -----------------------------------------------------------------------------------------------------------

SOURCES = {
    "c.c": '#include <stdio.h>\n\nstatic int add(int a, int b)\n{\n\treturn a + b;\n}\n\nint main(void)\n{\n\tprintf("%d\\n", add(1, 2));\n\treturn 0;\n}\n',
    "script.sh": '#!/bin/bash\nset -euo pipefail\nfor f in *.txt; do\n  echo "$f"\n  wc -l < "$f"\ndone\n',
    "page.html": "<!DOCTYPE html>\n<html><head><title>A page</title></head>\n<body><h1>Hello</h1><p>A <b>paragraph</b>.</p></body></html>\n",
    "style.css": "body { margin: 0; font-family: sans-serif; }\n.card > h2:hover { color: #336699; padding: 4px 8px; }\n@media (max-width: 600px) { .card { display: none; } }\n",
    "app.js": "import fs from 'node:fs';\n\nexport async function load(path) {\n  const text = await fs.promises.readFile(path, 'utf8');\n  return JSON.parse(text).map((x) => x.name ?? 'none');\n}\nconsole.log(await load(process.argv[2]));\n",
    "data.xml": '<?xml version="1.0" encoding="UTF-8"?>\n<catalog><book id="1"><title>One</title><price>4.50</price></book><book id="2"><title>Two</title></book></catalog>\n',
    "query.sql": "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL);\nINSERT INTO users (name) VALUES ('ann'), ('bob');\nSELECT u.id, u.name FROM users u WHERE u.name LIKE 'a%' ORDER BY u.id;\n",
    "Main.java": 'package demo;\n\nimport java.util.List;\n\npublic class Main {\n    public static void main(String[] args) {\n        List<String> names = List.of("a", "b");\n        for (String name : names) {\n            System.out.println(name);\n        }\n    }\n}\n',
    "main.go": 'package main\n\nimport "fmt"\n\nfunc main() {\n\tfor i := 0; i < 3; i++ {\n\t\tfmt.Println("hello", i)\n\t}\n}\n',
    "config.yaml": "version: 3\nservices:\n  web:\n    image: nginx:1.25\n    ports:\n      - '80:80'\n    environment:\n      - KEY=value\n",
    "letter.txt": "Dear Sir or Madam,\n\nthank you for your letter of the third of May. We are pleased to say that the parts have arrived.\n\nYours faithfully,\nA. Clerk\n",
    "paper.tex": "\\documentclass{article}\n\\usepackage{amsmath}\n\\begin{document}\n\\section{One}\nLet $x^2 + y^2 = 1$.\n\\begin{equation} a = b \\end{equation}\n\\end{document}\n",
    "Makefile": "CC = cc\nall: main\n\nmain: main.o util.o\n\t$(CC) -o $@ $^\n\nclean:\n\trm -f *.o main\n.PHONY: all clean\n",
    "change.diff": "--- a/one.txt\n+++ b/one.txt\n@@ -1,3 +1,3 @@\n first\n-second\n+2nd\n third\n",
}


def _archives(text: bytes) -> dict[str, bytes]:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one.txt", text)
        archive.writestr("folder/two.txt", text[::-1])
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        info = tarfile.TarInfo("one.txt")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    return {
        "archive.zip": zipped.getvalue(),
        "archive.tar": tarred.getvalue(),
        "text.gz": gzip.compress(text, mtime=0),
        "text.bz2": bz2.compress(text),
        "text.xz": lzma.compress(text),
    }


def _pictures_of_all_formats() -> dict[str, bytes]:
    picture = Image.open(_package("skimage") / "data" / "chelsea.png").convert("RGB")
    files = {}
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PDF", "ICO", "PPM"):
        out = io.BytesIO()
        (picture.resize((64, 64)) if kind == "ICO" else picture).save(out, kind)
        files[f"picture.{kind.lower()}"] = out.getvalue()
    return files


def _database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (id integer primary key, name text)")
    connection.executemany("insert into t (name) values (?)", [(f"name {i}",) for i in range(500)])
    connection.commit()
    return connection.serialize()


def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    """A mono WAV file of samples between -1 and 1."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return out.getvalue()


@cache
def files() -> dict[str, bytes]:
    """Contents of files by name: many kinds, and the awkward ones (empty, tiny, only spaces, noise, other encodings)."""
    rng = random.Random(7)
    prose = (ROOT / "LICENSE").read_bytes()
    named = {name: text.encode() for name, text in SOURCES.items()}
    named |= _archives(prose) | _pictures_of_all_formats()
    array = io.BytesIO()
    np.save(array, np.arange(1000, dtype=np.float32))
    named |= {
        "module.py": Path(json.__file__).read_bytes(),
        "lib.rs": (ROOT / "gateway" / "engine" / "src" / "dtype.rs").read_bytes(),
        "workspace.toml": (ROOT / "Cargo.toml").read_bytes(),
        "licence.txt": prose,
        "records.json": json.dumps([{"id": i, "name": f"n{i}", "ok": i % 2 == 0} for i in range(50)]).encode(),
        "table.csv": "id,name,price\n".encode() + b"".join(b"%d,item %d,%d.50\n" % (i, i, i * 3) for i in range(60)),
        "font.ttf": (_package("matplotlib") / "mpl-data/fonts/ttf/DejaVuSans.ttf").read_bytes(),
        "program.elf": Path(sys.executable).resolve().read_bytes()[:400_000],
        "graph.onnx": (ROOT / "models" / "iris" / "model.onnx").read_bytes(),
        "array.npy": array.getvalue(),
        "object.pickle": pickle.dumps({"a": list(range(100)), "b": "text"}),
        "tone.wav": wav(np.sin(np.arange(16000) * 0.1)),
        "base.sqlite": _database(),
        "utf16.txt": "Grüße aus Köln, und viel mehr Text als nötig. ".encode("utf-16") * 4,
        "empty": b"",
        "one_byte": b"a",
        "seven_bytes": b"1234567",
        "eight_bytes": b"abcdefgh",
        "two_lines": b"hello\nworld\n",
        "spaces": b" \n\t" * 300,
        "binary_tiny": b"\x00\x01\xff",
        "noise": rng.randbytes(5000),
        "zeros": bytes(3000),
        "leading_spaces": b"   \n\n" * 20 + b"import os\nprint(os.getcwd())\ndef f(x):\n    return x + 1\n" * 3,
        "long_text": prose * 8,
    }
    return named


# --- pictures --------------------------------------------------------------------------------------------------------

FONTS = ["DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold", "DejaVuSerif-Italic", "DejaVuSerif-Bold"]

LINES = [
    ["Hello world"],
    ["INVOICE 2024-1107", "Total: 1,284.50 EUR"],
    ["The quick brown fox", "jumps over the lazy dog"],
    ["Platform 9", "Departure 14:35"],
    ["No smoking"],
    ["def main():", "    return 42"],
    ["Serial number", "A7X-992-KLM-04"],
    ["Please keep off", "the grass"],
    ["Chapter One", "It was a bright cold day", "in April and the clocks", "were striking thirteen"],
    ["EXIT"],
    ["Temperature 21.5 C", "Humidity 48 %"],
    ["www.example.org"],
    ["Open Monday to Friday", "8 am to 6 pm"],
    ["Caution: hot surface"],
    ["Gate B27", "Seat 14C", "Boarding 07:10"],
    ["Net weight 500 g"],
    ["Rue de la Paix 12"],
    ["Password: correct horse", "battery staple"],
    ["1234567890"],
    ["Thank you for your visit"],
]

COLOURS = [
    ("black", "white"),
    ("white", "navy"),
    ("darkred", "lightyellow"),
    ("black", "lightgray"),
    ("yellow", "black"),
    ("darkgreen", "white"),
]


def _drawn(index: int, lines: list[str]) -> Image.Image:
    """One page of text; font, size, colours, margins and noise follow from its index."""
    size = 22 + (index * 7) % 22
    font = ImageFont.truetype(_package("matplotlib") / f"mpl-data/fonts/ttf/{FONTS[index % len(FONTS)]}.ttf", size)
    ink, paper = COLOURS[index % len(COLOURS)]
    step, margin = round(size * 1.6), 20 + (index * 13) % 40
    width = max(round(font.getlength(line)) for line in lines) + 2 * margin
    picture = Image.new("RGB", (max(width, 240), step * len(lines) + 2 * margin), paper)
    draw = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        draw.text((margin, margin + row * step), line, fill=ink, font=font)
    if index % 4 == 3:
        noise = np.random.default_rng(index).normal(0, 6, (picture.height, picture.width, 3))
        picture = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    return picture


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@cache
def pictures() -> dict[str, bytes]:
    """Encoded pictures by name: drawn text as PNG and JPEG, and photographs and scans of scikit-image."""
    named = {}
    for index, lines in enumerate(LINES):
        picture = _drawn(index, lines)
        if index % 3 == 2:
            named[f"drawn{index:02}.jpg"] = encoded(picture, "JPEG", quality=90)
        else:
            named[f"drawn{index:02}.png"] = encoded(picture, "PNG")
    named["askew.png"] = encoded(_drawn(1, LINES[1]).rotate(6, Image.Resampling.BICUBIC, expand=True, fillcolor="navy"), "PNG")
    named["upside_down.png"] = encoded(_drawn(6, LINES[6]).rotate(180), "PNG")
    named["grey.png"] = encoded(_drawn(7, LINES[7]).convert("L"), "PNG")
    named["see_through.png"] = encoded(_drawn(9, LINES[9]).convert("RGBA"), "PNG")
    folder = _package("skimage") / "data"
    for name in ("page.png", "text.png", "coffee.png", "coins.png", "rocket.jpg", "astronaut.png"):
        named[name] = (folder / name).read_bytes()
    return named


# --- speech ----------------------------------------------------------------------------------------------------------

PHRASES = [
    ("en", "The quick brown fox jumps over the lazy dog."),
    ("de", "Guten Morgen, wie spät ist es jetzt?"),
    ("fr", "Il fait beau aujourd'hui, n'est-ce pas?"),
    ("es", "¿Dónde está la biblioteca, por favor?"),
    ("en", "One, two, three, four, five, six, seven."),
    ("it", "Vorrei un caffè e un bicchiere d'acqua."),
    ("pt", "O trem para Lisboa parte às oito."),
    ("en", "Please leave your message after the tone."),
    ("nl", "De winkel is vandaag tot zes uur open."),
    ("pl", "Dzień dobry, nazywam się Anna."),
]


class _Espeak:
    """The espeak-ng library out of its Python package; the library keeps its state per process."""

    def __init__(self):
        import espeakng_loader

        self.chunks = []
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        synchronous = 2
        self.rate = self.library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = callback(self._take)
        self.library.espeak_SetSynthCallback(self.callback)

    def _take(self, samples, count, _events) -> int:
        if count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, voice: str, text: str) -> np.ndarray:
        """Speech at 16 kHz, samples between -1 and 1."""
        self.chunks = []
        self.library.espeak_SetVoiceByName(voice.encode())
        raw = text.encode()
        utf8 = 1
        self.library.espeak_Synth(raw, len(raw) + 1, 0, 0, 0, utf8, None, None)
        spoken = np.concatenate(self.chunks) / 32768
        times = np.arange(0, len(spoken) - 1, self.rate / 16000)
        return np.interp(times, np.arange(len(spoken)), spoken).astype(np.float32)


@cache
def sounds() -> dict[str, np.ndarray]:
    """Sounds at 16 kHz by name: speech in several languages, clean and in noise, and sounds that are not speech."""
    espeak, rng = _Espeak(), np.random.default_rng(3)
    named = {}
    for index, (voice, text) in enumerate(PHRASES):
        spoken = espeak.say(voice, text)
        pause = np.zeros(8000, np.float32)
        named[f"speech{index}_{voice}"] = np.concatenate([pause, spoken, pause])
        noise = rng.normal(0, 0.02, len(spoken)).astype(np.float32)
        named[f"noisy{index}_{voice}"] = np.clip(spoken * 0.5 + noise, -1, 1)
    second = np.arange(16000, dtype=np.float32) / 16000
    named["silence"] = np.zeros(16000, np.float32)
    named["noise"] = rng.normal(0, 0.1, 16000).astype(np.float32)
    named["tone"] = (0.3 * np.sin(2 * np.pi * 440 * second)).astype(np.float32)
    named["clicks"] = np.where(np.arange(16000) % 4000 < 20, 0.8, 0).astype(np.float32)
    return named


# --- sentences -------------------------------------------------------------------------------------------------------

SENTENCES = [
    "The cat sits on the mat.",
    "A kitten is lying on the rug.",
    "Stock markets fell sharply on Tuesday.",
    "How do I reset my password?",
    "I have forgotten my login; what now?",
    "The recipe needs two eggs and a cup of flour.",
    "Quantum computers use qubits.",
    "Paris is the capital of France.",
    "Ein Hund läuft durch den Park.",
    "Le chien court dans le parc.",
    "日本語の文章です。",
    "Привет, как дела?",
    "naïve café coöperation — façade",
    "UPPER CASE SHOUTING!!!",
    "a",
    "",
    "   spaces   around   ",
    "e-mail: someone@example.org, phone +49 30 1234567",
    "🎉 emoji 🚀 only? 🤖",
    "for (int i = 0; i < n; i++) { sum += a[i]; }",
    "supercalifragilisticexpialidocious " * 3,
    "One sentence. And another one! Is there a third?",
    "word " * 400,
    "line one\nline two\ttabbed",
]
