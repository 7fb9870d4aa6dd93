"""Figures of the report as PNG data URIs: scores against lead time, diagrams, and maps of single cases."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.grids import Grid
from pipeline.verification import scores
from pipeline.verification.period import Verified
from pipeline.verification.rules import nearest
from pipeline.verification.summary import SHOWER_KM
from pipeline.verification.tables import Estimate
from pipeline.viewer.coast import lines_on_grid

# Okabe-Ito: distinct for colour-blind readers; each method also has its own marker and dash
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": ":"},
    {"color": "#CC79A7", "marker": "D", "linestyle": "-."},
    {"color": "#56B4E9", "marker": "v", "linestyle": "-"},
    {"color": "#000000", "marker": "x", "linestyle": "--"},
)
RATE_LEVELS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 50, 100)
# light to dark, so that it reads in grey too (steps of viridis reversed, after a pale first class)
RATE_COLOURS = ("#dfe8c9", "#b5dd60", "#6ccd5a", "#35b779", "#1f9e89", "#26828e", "#31688e", "#3e4989", "#482878")
HEAVIEST_COLOUR = "#2d0b3a"  # above the last of RATE_LEVELS
NO_COVERAGE_COLOUR = "#d0d0d0"
DIFFERENCE_LEVELS = (-50, -10, -5, -2, -0.5, 0.5, 2, 5, 10, 50)
# from brown (too little) to purple (too much), white between
DIFFERENCE_COLOURS = ("#7f3b08", "#c0650a", "#ee9d3c", "#fdd0a2", "#ffffff", "#d8daeb", "#a79fca", "#7258a0", "#2d004b")
DIAGRAM_LEADS = (30, 60, 120)


def against_lead(one: Estimate, verified: Verified, label: str) -> str:
    """A score against lead time, a line with its interval per method; a panel per threshold if it has them."""
    thresholds = verified.axes["threshold"] if "threshold" in one.dims else [None]
    figure = Figure(figsize=(2.7 * len(thresholds) + 1.0, 3.1), layout="constrained")
    axes = figure.subplots(1, len(thresholds), sharey=True, squeeze=False)[0]
    for t, (axis, threshold) in enumerate(zip(axes, thresholds, strict=True)):
        at = (slice(None), slice(None), t) if "threshold" in one.dims else (slice(None), slice(None))
        _lines(axis, verified.axes[one.dims[0]], one.value[at], one.low[at], one.high[at], verified.methods)
        if threshold is not None:
            axis.set_title(f"≥ {threshold:g} mm/h", fontsize=10)
        axis.set_xlabel("lead time (min)")
    axes[0].set_ylabel(label)
    if one.score in ("csi", "fss"):
        axes[0].set_ylim(0, 1)
    if one.score == "bias":
        axes[0].set_ylim(0, 3)  # of rare events the interval may reach much farther, which would flatten all the rest
        for axis in axes:
            axis.axhline(1, color="0.4", linewidth=0.8)
    _legend(figure, axes[0])
    return _png(figure)


def errors(found: dict[str, Estimate], verified: Verified, names: Sequence[str]) -> str:
    """Scores of all pairs against lead time, a panel each."""
    figure = Figure(figsize=(2.7 * len(names) + 1.0, 3.1), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        one = found[name]
        _lines(axis, verified.axes["lead"], one.value, one.low, one.high, verified.methods)
        axis.set_title(scores.FIELD_SCORES[name].label, fontsize=9)
        axis.set_xlabel("lead time (min)")
        axis.set_ylim(bottom=0)
        if name == "rain_ratio":
            axis.axhline(1, color="0.4", linewidth=0.8)
    _legend(figure, axes[0])
    return _png(figure)


def _lines(
    axis: Axes, x: NDArray[Any], value: NDArray[Any], low: NDArray[Any], high: NDArray[Any], methods: Sequence[str]
) -> None:
    for n, method in enumerate(methods[: len(value)]):
        style = STYLES[n % len(STYLES)]
        axis.plot(x, value[n], label=method, markersize=3.5, linewidth=1.5, **style)
        if not np.isnan(low[n]).all():
            axis.fill_between(x, low[n], high[n], color=style["color"], alpha=0.15, linewidth=0)
    _decorate(axis, bool(np.isnan(value).all()))
    axis.set_xlim(0, 1.03 * float(np.max(x)))


def _decorate(axis: Axes, empty: bool) -> None:
    if empty:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", fontsize=9, color="0.4")
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), fontsize=9, frameon=False)


def performance_diagram(found: dict[str, Estimate], verified: Verified) -> str:
    """POD against success ratio (Roebber 2009), a panel per lead time, a line over thresholds per method."""
    leads = nearest(verified.axes["lead"], DIAGRAM_LEADS)
    figure = Figure(figsize=(3.4 * len(leads) + 0.8, 3.7), layout="constrained")
    axes = figure.subplots(1, len(leads), sharex=True, sharey=True, squeeze=False)[0]
    ratio, detection = np.meshgrid(np.linspace(0.01, 1, 100), np.linspace(0.01, 1, 100))
    for axis, lead in zip(axes, leads, strict=True):
        lines = axis.contour(
            ratio, detection, 1 / (1 / ratio + 1 / detection - 1), np.arange(0.1, 1, 0.1), colors="0.75", linewidths=0.7
        )
        axis.clabel(lines, fmt="%.1f", fontsize=6)
        for bias in (0.5, 1, 2):
            axis.plot([0, min(1, 1 / bias)], [0, min(1, bias)], color="0.6", linestyle=(0, (2, 3)), linewidth=0.8)
        for n, method in enumerate(verified.methods):
            success, rate = 1 - found["far"].value[n, lead], found["pod"].value[n, lead]
            axis.plot(success, rate, label=method, markersize=4, linewidth=1.2, **STYLES[n % len(STYLES)])
            for t, threshold in enumerate(verified.axes["threshold"]):
                if n == 0 and not np.isnan(success[t] + rate[t]):
                    axis.annotate(
                        f"{threshold:g}", (success[t], rate[t]), (3, 3), textcoords="offset points", fontsize=7
                    )
        axis.set_title(f"{verified.axes['lead'][lead]} min", fontsize=10)
        axis.set_xlabel("success ratio (1 - FAR)")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_aspect("equal")
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("POD")
    _legend(figure, axes[0])
    return _png(figure)


def fss_by_scale(one: Estimate, verified: Verified) -> str:
    """FSS against the side of the neighbourhood, a panel per threshold, at the lead time nearest to an hour."""
    lead = verified.measured_lead("structure_lead", 60)
    thresholds, scales = verified.axes["threshold"], verified.axes["scale"]
    figure = Figure(figsize=(2.7 * len(thresholds) + 1.0, 3.1), layout="constrained")
    axes = figure.subplots(1, len(thresholds), sharey=True, squeeze=False)[0]
    for t, (axis, threshold) in enumerate(zip(axes, thresholds, strict=True)):
        values, low, high = (part[:, lead, t] for part in (one.value, one.low, one.high))
        _lines(axis, scales, values, low, high, verified.methods)
        axis.set_xscale("log")
        axis.set_xlim(scales.min() / 1.2, scales.max() * 1.2)
        axis.set_xticks(scales, [f"{s:.3g}" for s in scales], rotation=45)
        axis.minorticks_off()
        axis.set_title(f"≥ {threshold:g} mm/h", fontsize=10)
        axis.set_xlabel("neighbourhood (km)")
        axis.set_ylim(0, 1)
    axes[0].set_ylabel(f"FSS at {verified.axes['structure_lead'][lead]} min")
    _legend(figure, axes[0])
    return _png(figure)


def spectra(verified: Verified) -> str:
    """Power per band of wavelength relative to the observation's, a panel per lead time; below 1 is blur."""
    leads = nearest(verified.axes["structure_lead"], DIAGRAM_LEADS)
    figure = Figure(figsize=(3.4 * len(leads) + 0.8, 3.2), layout="constrained")
    axes = figure.subplots(1, len(leads), sharey=True, squeeze=False)[0]
    band = verified.axes["band"]
    for axis, lead in zip(axes, leads, strict=True):
        truth = verified.total["observed_power"][lead]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(truth > 0, verified.total["power"][:, lead] / truth, np.nan)
        for n, method in enumerate(verified.methods):
            axis.plot(band, ratio[n], label=method, markersize=3, linewidth=1.4, **STYLES[n % len(STYLES)])
        axis.axvspan(*SHOWER_KM, color="0.5", alpha=0.12, linewidth=0)
        axis.axhline(1, color="0.4", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(0.01, 5)
        axis.invert_xaxis()
        axis.set_xticks([km for km in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if band.min() <= km <= band.max()])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set_title(f"{verified.axes['structure_lead'][lead]} min", fontsize=10)
        axis.set_xlabel("wavelength (km)")
        _decorate(axis, bool(np.isnan(ratio).all()))
    axes[0].set_ylabel("power / observed power")
    _legend(figure, axes[0])
    return _png(figure)


def reliability(verified: Verified) -> str:
    """Observed frequency and number of forecasts by probability, and the ROC, at the lead time nearest to an hour."""
    lead = verified.measured_lead("structure_lead", 60)
    figure = Figure(figsize=(8.2, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    sums = {name: verified.total[name][lead, ..., 0] for name in ("bin_pairs", "bin_probability", "bin_events")}
    false_rate, rate = scores.roc(sums)
    for t, threshold in enumerate(verified.axes["threshold"]):
        pairs = sums["bin_pairs"][t]
        said, came = (scores.mean(sums[name][t], pairs) for name in ("bin_probability", "bin_events"))
        style = STYLES[t % len(STYLES)]
        left.plot(said, came, label=f"≥ {threshold:g} mm/h", markersize=4, linewidth=1.2, **style)
        right.plot(false_rate[t], rate[t], markersize=3, linewidth=1.2, **style)
    for axis in (left, right):
        axis.plot([0, 1], [0, 1], color="0.4", linewidth=0.8)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_aspect("equal")
        _decorate(axis, not sums["bin_pairs"].any())
    left.set_xlabel(f"forecast probability, {verified.axes['structure_lead'][lead]} min")
    left.set_ylabel("observed frequency")
    right.set_xlabel("POFD")
    right.set_ylabel("POD")
    left.legend(fontsize=8, frameon=False)
    return _png(figure)


def case_maps(lines: dict[str, list[NDArray[np.floating[Any]] | None]], columns: list[str], grid: Grid) -> str:
    """Maps of rain rate (mm/h), a row per lead time; the last column is the difference forecast - observed.

    Coasts and borders are drawn if the map data of the viewer are installed. North is up: row 0 of every field is the
    north edge. NaN is no coverage, None not available.
    """
    colours = ListedColormap(RATE_COLOURS).with_extremes(bad=NO_COVERAGE_COLOUR, under="white", over=HEAVIEST_COLOUR)
    difference = ListedColormap(DIFFERENCE_COLOURS).with_extremes(
        bad=NO_COVERAGE_COLOUR, under=DIFFERENCE_COLOURS[0], over=DIFFERENCE_COLOURS[-1]
    )
    rows_km, columns_km = grid.ground_spacing_km
    high = grid.shape[0] * rows_km
    rows, columns_seen = _seen([field for fields in lines.values() for field in fields if field is not None], grid)
    extent = (
        columns_seen.start * columns_km,
        columns_seen.stop * columns_km,
        high - rows.stop * rows_km,
        high - rows.start * rows_km,
    )
    aspect = min(max((extent[3] - extent[2]) / (extent[1] - extent[0]), 0.4), 1.8)
    figure = Figure(figsize=(2.9 * len(columns) + 1.2, 2.9 * aspect * len(lines) + 1.1), layout="constrained")
    axes = figure.subplots(len(lines), len(columns), squeeze=False, sharex=True, sharey=True)
    coasts = lines_on_grid(grid)
    rain = change = None
    for line, (name, fields) in zip(axes, lines.items(), strict=True):
        line[0].set_ylabel(f"{name}\nkm", fontsize=9)
        for axis, column, field in zip(line, columns, fields, strict=True):
            axis.tick_params(labelsize=7)
            if field is None:
                axis.text(0.5, 0.5, "not available", transform=axis.transAxes, ha="center", color="0.4")
                continue
            last = column is columns[-1]
            norm = BoundaryNorm(DIFFERENCE_LEVELS, difference.N) if last else BoundaryNorm(RATE_LEVELS, colours.N)
            image = axis.imshow(
                np.ma.masked_invalid(field[rows, columns_seen]),
                cmap=difference if last else colours,
                norm=norm,
                extent=extent,
                interpolation="nearest",
                aspect="auto",
            )
            rain, change = (rain, image) if last else (image, change)
            for kind, width in (("coast", 0.9), ("border", 0.5)):
                paths = [
                    np.column_stack(((p[:, 0] + 0.5) * columns_km, high - (p[:, 1] + 0.5) * rows_km))
                    for p in coasts[kind]
                ]
                axis.add_collection(LineCollection(paths, colors="0.25", linewidths=width), autolim=False)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("km, north up", fontsize=8)
    for image, at, levels, label in (
        (rain, axes[:, :-1], RATE_LEVELS, "rain rate (mm/h); white: none, grey: no coverage"),
        (change, axes[:, -1:], DIFFERENCE_LEVELS[1:-1], "forecast - observed (mm/h)"),
    ):
        if image is not None:
            bar = figure.colorbar(image, ax=at, extend="both", ticks=levels, location="bottom", shrink=0.9, pad=0.02)
            bar.set_label(label, fontsize=9)
            bar.ax.set_xticklabels([f"{level:g}" for level in levels], fontsize=8)
    return _png(figure)


def _seen(fields: list[NDArray[np.floating[Any]]], grid: Grid) -> tuple[slice, slice]:
    """Rows and columns around all that is covered."""
    covered = np.zeros(grid.shape, bool)
    for field in fields:
        covered |= ~np.isnan(field)
    if not covered.any():
        return slice(0, grid.shape[0]), slice(0, grid.shape[1])
    rows, columns = (np.flatnonzero(covered.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _png(figure: Figure) -> str:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
