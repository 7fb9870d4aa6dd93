"""Figures of the report as PNG data URIs: score curves against lead time and maps of one case."""

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.grids import Grid

# Okabe-Ito: distinct for colour-blind readers; each method also has its own marker and dash
STYLES = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": ":"},
    {"color": "#CC79A7", "marker": "D", "linestyle": "-."},
)
RATE_LEVELS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 50, 100)
# light to dark, so that it reads in grey too (steps of viridis reversed, after a pale first class)
RATE_COLOURS = ("#dfe8c9", "#b5dd60", "#6ccd5a", "#35b779", "#1f9e89", "#26828e", "#31688e", "#3e4989", "#482878")
NO_COVERAGE_COLOUR = "#d0d0d0"


def score_curves(table: pd.DataFrame, score: str, thresholds: list[float], label: str) -> str:
    """One panel per threshold, one line per method; lead time in minutes on the x axis."""
    figure = Figure(figsize=(2.6 * len(thresholds) + 0.6, 2.9), layout="constrained")
    axes = figure.subplots(1, len(thresholds), sharey=True, squeeze=False)[0]
    for axis, threshold in zip(axes, thresholds, strict=True):
        part = table[table.threshold_mm_h == threshold]
        _lines(axis, part, score)
        axis.set_title(f"≥ {threshold:g} mm/h", fontsize=10)
        axis.set_ylim(0, 1)
    axes[0].set_ylabel(label)
    axes[-1].legend(fontsize=8, frameon=False, loc="upper right")
    return _png(figure)


def error_curves(table: pd.DataFrame) -> str:
    """MAE in pixel levels, correlation, and frequency bias at the lowest threshold, against lead time."""
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    axes = figure.subplots(1, 3)
    part = table[table.threshold_mm_h == table.threshold_mm_h.min()]
    for axis, (score, label) in zip(
        axes,
        (("mae", "MAE (pixel levels, 0-255)"), ("correlation", "correlation (un-centred)"), ("bias", "frequency bias")),
        strict=True,
    ):
        _lines(axis, part, score)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[2].axhline(1, color="0.4", linewidth=0.8)
    axes[2].set_title(f"≥ {part.threshold_mm_h.iloc[0]:g} mm/h" if len(part) else "", fontsize=10)
    axes[0].legend(fontsize=8, frameon=False)
    return _png(figure)


def _lines(axis: Any, part: pd.DataFrame, score: str) -> None:
    for style, (method, rows) in zip(STYLES * 3, part.groupby("method", sort=False), strict=False):
        axis.plot(rows.lead_minutes, rows[score], label=str(method), markersize=3.5, linewidth=1.4, **style)
    if not len(part) or part[score].isna().all():
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", fontsize=9, color="0.4")
    axis.set_xlim(0, 1.03 * part.lead_minutes.max() if len(part) else 1)
    axis.set_xlabel("lead time (min)")
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)


def case_maps(
    rows: dict[str, list[NDArray[np.floating[Any]] | None]], columns: list[str], grid: Grid, title: str
) -> str:
    """Maps of rain rate (mm/h), a row per source and a column per lead time; NaN is no coverage, None not available.

    North is up: row 0 of every field is the north edge.
    """
    colours = ListedColormap(RATE_COLOURS).with_extremes(bad=NO_COVERAGE_COLOUR, under="white", over="#2d0b3a")
    norm = BoundaryNorm(RATE_LEVELS, colours.N)
    wide, high = grid.shape[1] * grid.dx, grid.shape[0] * grid.dy
    aspect = min(max(high / wide, 0.4), 1.8)
    figure = Figure(figsize=(2.5 * len(columns) + 1.6, (2.5 * aspect + 0.1) * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    scale = 1 if grid.is_geographic else 1000
    extent = (
        (grid.west - grid.dx / 2) / scale,
        (grid.west + (grid.shape[1] - 0.5) * grid.dx) / scale,
        (grid.north - (grid.shape[0] - 0.5) * grid.dy) / scale,
        (grid.north + grid.dy / 2) / scale,
    )
    image = None
    for line, (name, fields) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize=10)
        for axis, field in zip(line, fields, strict=True):
            axis.tick_params(labelsize=7)
            if field is None:
                axis.text(0.5, 0.5, "not available", transform=axis.transAxes, ha="center", color="0.4")
                continue
            shown = np.ma.masked_invalid(field)
            image = axis.imshow(shown, cmap=colours, norm=norm, extent=extent, interpolation="nearest", aspect="auto")
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=10)
    unit = "°" if grid.is_geographic else "km"
    axes[-1][0].set_xlabel(f"east ({unit}), north up", fontsize=8)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, extend="both", ticks=RATE_LEVELS, shrink=0.8, pad=0.01)
        bar.set_label("rain rate (mm/h); white: none, grey: no coverage", fontsize=9)
        bar.ax.set_yticklabels([f"{level:g}" for level in RATE_LEVELS], fontsize=8)
    figure.suptitle(title, fontsize=11)
    return _png(figure)


def _png(figure: Figure) -> str:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
