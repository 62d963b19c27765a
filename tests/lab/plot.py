"""Latency over time as a picture: one point for each request, coloured by the site that answered."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from .load import Record  # noqa: E402


def latency(record: Record, path: Path, title: str, fault: tuple[float, float] | None = None) -> Path:
    """Draws a record. `fault` is when it began and ended, on the clock of the record."""
    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    if fault:
        begin, end = (moment - record.began for moment in fault)
        axes.axvspan(begin, end, color="0.9", label="fault")
    right = record.verdict == "right"
    for site in sorted(set(record.site[right].tolist())):
        mask = right & (record.site == site)
        axes.plot(record.sent[mask] - record.began, record.ms[mask], ".", markersize=2, label=site or "no site named")
    for verdict in sorted(set(record.verdict[~right].tolist())):
        mask = record.verdict == verdict
        axes.plot(record.sent[mask] - record.began, record.ms[mask], "x", markersize=6, label=f"not right: {verdict}")
    axes.set(title=title, xlabel="seconds", ylabel="milliseconds", yscale="log")
    axes.legend(loc="upper right", markerscale=3, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
