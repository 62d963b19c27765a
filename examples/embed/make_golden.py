#!/usr/bin/env python3
"""Writes golden-tokens.tsv with the reference tokenizer (PyPI `tokenizers`): texts and their ids.

Needs `models/fetch.py minilm`, and to be run with the tests' own Python.
"""

from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
TEXTS = """Hello, world!
The quick brown fox jumps over the lazy dog.
embeddings of sentences; isn't it?
Crème brûlée à la façon de l'été
GROSS UND KLEIN: Straße, ÄÖÜ
naïve café résumé Ångström
Привет, как дела?
今日はいい天気ですね
我爱北京天安门
한국어 문장입니다
مرحبا بالعالم
שלום עולם
नमस्ते दुनिया
ไทยภาษา
😀 emoji 👩‍👩‍👧 and text
1234567890 3.14159 -42 1e-9
user@example.org https://example.org/a?b=c&d=e#f
C++ & Rust: fn main() -> Result<(), E> { Ok(()) }
tabs\\tand\\nnew lines
   spaces   everywhere   
…ellipsis—dash–dash “quotes” ‘single’ «french»
¿Qué? ¡Sí!
[CLS] special [MASK] tokens [SEP] in [PAD] text [UNK]
not [cls] special
antidisestablishmentarianism
pneumonoultramicroscopicsilicovolcanoconiosis
x²+y²=z² ½ ¾ ㎏ ﬁ ligature ＦＵＬＬ width
İstanbul ıI ẞ ǅ Σίσυφος
zero\u200bwidth soft\u00adhyphen nb\u00a0space ideographic\u3000space
e\u0301 combining a\u0308\u0323
\u2028line separator\ufeff bom
$100 €50 £20 ¥1000 ₿1
a_b-c.d,e;f:g!h?i'j"k
^caret ~tilde `back` |pipe
鿿 㐀 𠀀 豈""".splitlines()


def main() -> None:
    tokenizer = Tokenizer.from_file(str(HERE.parent.parent / "target/models/minilm/tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    texts = [*TEXTS, "w" * 100, "w" * 101, "many words " * 300]
    lines = [f"{text}\t{' '.join(map(str, encode(tokenizer, text)))}" for text in texts]
    (HERE / "golden-tokens.tsv").write_text("\n".join(lines) + "\n")


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text.replace("\\n", "\n").replace("\\t", "\t")).ids


if __name__ == "__main__":
    main()
