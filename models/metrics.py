"""The history of a training run as a table and a picture."""

import csv
from pathlib import Path


def write_metrics(folder: Path, history: list[dict[str, float]]) -> None:
    """``metrics.csv``, and its curves as ``loss.png`` where matplotlib is."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in history]
    axes.plot(steps, [row["train_loss"] for row in history], color="#888888", label="training")
    axes.plot(steps, [row["validation_loss"] for row in history], color="#0072b2", label="validation, own output")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", dpi=120)
