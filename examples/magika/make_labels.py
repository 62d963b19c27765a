#!/usr/bin/env python3
"""Writes labels.tsv from Magika's own files, which `models/fetch.py magika` fetches.

One line per label in the order of the graph's scores, then the labels that only the rules give. Columns: label, whether it
is text, the score below which the answer is only `txt` or `unknown`, the label that is answered in its place, MIME type,
description.
"""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent / "target" / "models" / "magika"


def main() -> None:
    config = json.loads((SOURCE / "config.json").read_text())
    types = json.loads((SOURCE / "content_types.json").read_text())
    labels = config["target_labels_space"]
    lines = []
    for label in [*labels, *(extra for extra in ("empty", "unknown") if extra not in labels)]:
        kind = types[label]
        threshold = config["thresholds"].get(label, config["medium_confidence_threshold"])
        mime = kind["mime_type"] or ("text/plain" if kind["is_text"] else "application/octet-stream")
        answered = config["overwrite_map"].get(label, label)
        lines.append("\t".join([label, "1" if kind["is_text"] else "0", str(threshold), answered, mime,
                                kind["description"] or label]))
    (HERE / "src" / "labels.tsv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
