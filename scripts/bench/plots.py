"""Plots of a run, each for a light and a dark page. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from graft.scripts.bench.contenders import CONTENDERS
from graft.scripts.bench.measuring import Series, quantile
from graft.scripts.bench.run import Outcome
from graft.scripts.bench.targets import MIB

THEMES: Final = {
    "light": {"ground": "#ffffff", "ink": "#1f2430", "faint": "#d9dde5"},
    "dark": {"ground": "#14171d", "ink": "#e6e9ef", "faint": "#333a46"},
}
# Told apart by people who confuse red and green, too (Okabe and Ito); ours is always the first.
COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c8c8c", "#b8a000")
MARKS: Final = "os^Dv*XP"
DURATIONS: Final = {"noop": 1e-6, "cpu-100us": 1e-4, "cpu-1ms": 1e-3, "cpu-10ms": 1e-2}

Figure = Any
Draw = Callable[[Outcome, Any], bool]


def draw(outcome: Outcome) -> Iterator[tuple[str, str, Figure]]:
    """(name, theme, figure) of every plot that the run has something for."""
    for name, function in PLOTS.items():
        for theme in THEMES:
            with _figure(theme) as (figure, axes):
                if function(outcome, axes):
                    _finish(axes, theme)
                    yield name, theme, figure


@contextmanager
def _figure(theme: str) -> Iterator[tuple[Figure, Any]]:
    from matplotlib.figure import Figure as MatplotlibFigure

    # Not pyplot, which keeps every figure and looks for a display.
    figure = MatplotlibFigure(figsize=(8, 4.6), dpi=110, facecolor=THEMES[theme]["ground"], layout="constrained")
    axes = figure.add_subplot(facecolor=THEMES[theme]["ground"])
    yield figure, axes
    figure.clear()


def _finish(axes: Any, theme: str) -> None:
    colours = THEMES[theme]
    axes.tick_params(colors=colours["ink"], which="both")
    axes.grid(visible=True, color=colours["faint"], linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(colours["faint"])
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(colours["ink"])
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, fontsize=8, facecolor=colours["ground"], edgecolor=colours["faint"],
                    labelcolor=colours["ink"], framealpha=0.9)  # fmt: skip


def throughput(outcome: Outcome, axes: Any) -> bool:
    """Items per second against the duration of an item; above the dashed line the cluster is worth it."""
    points: dict[str, list[tuple[float, float]]] = {}
    for workload, seconds in DURATIONS.items():
        for series in outcome.of(workload):
            if series.repetitions and not series.failure and series.contender != "asyncio":
                points.setdefault(series.contender, []).append((seconds * 1e3, series.rate))
    if not points:
        return False
    for style, (name, line) in zip(_styles(), points.items(), strict=False):
        axes.plot(*zip(*line, strict=True), label=CONTENDERS[name].title, **style)
    grid = [seconds * 1e3 for seconds in DURATIONS.values()]
    axes.plot(grid, [1e3 / each for each in grid], "--", color="#888888", linewidth=1.2,
              label="break-even: one process in a plain loop")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="duration of an item, ms", ylabel="items per second",
             title="Throughput against the duration of an item")  # fmt: skip
    return True


def latency(outcome: Outcome, axes: Any) -> bool:
    """The share of calls that took no longer than so much."""
    found = [series for series in outcome.of("latency") if series.repetitions and not series.failure]
    for style, series in zip(_styles(), found, strict=False):
        shares = [index / 200 for index in range(201)]
        times = [1e3 * quantile(series.times, share) for share in shares]
        style.pop("marker")
        axes.plot(times, [100 * share for share in shares], label=CONTENDERS[series.contender].title, **style)
    axes.set(xscale="log", xlabel="one job there and back, ms", ylabel="calls that took no longer, %",
             title="Latency on an idle queue")  # fmt: skip
    return bool(found)


def memory(outcome: Outcome, axes: Any) -> bool:
    """Resident memory while a stream runs."""
    found = [series for series in outcome.series if series.history]
    for series in found:
        for index, (part, style) in enumerate(zip(("caller", "workers", "Redis"), _styles(), strict=False), 1):
            style.pop("marker")
            axes.plot([row[0] for row in series.history], [row[index] / MIB for row in series.history],
                      label=part, **style)  # fmt: skip
        axes.set(title=f"Memory while {series.workload.items.count:,} items are streamed")
    axes.set(xlabel="seconds", ylabel="MiB (resident; Redis: used)", ylim=(0, None))
    return bool(found)


def scaling(outcome: Outcome, axes: Any) -> bool:
    """Items of 1 ms per second against worker processes."""
    points: dict[str, list[tuple[int, float]]] = {}
    for series in outcome.series:
        if series.workload.group == "scaling" and series.repetitions and not series.failure:
            points.setdefault(series.contender, []).append((series.workload.concurrency, series.rate))
    for style, (name, line) in zip(_styles(), points.items(), strict=False):
        axes.plot(*zip(*line, strict=True), label=CONTENDERS[name].title, **style)
    most = max((count for line in points.values() for count, _ in line), default=0)
    if most:
        axes.plot([1, most], [1e3, most * 1e3], "--", color="#888888", linewidth=1.2, label="ideal")
        axes.set_xticks(range(1, most + 1))
    axes.set(xlabel="worker processes", ylabel="items of 1 ms per second", title="Scaling", ylim=(0, None))
    return bool(points)


def cost(group: str, what: str, title: str, value: Callable[[Series], float]) -> Draw:
    """Microseconds per item against something that a group of workloads varies."""

    def plot(outcome: Outcome, axes: Any) -> bool:
        points: dict[str, list[tuple[float, float]]] = {}
        for series in outcome.series:
            if series.workload.group == group and series.repetitions and not series.failure:
                points.setdefault(series.contender, []).append((value(series), 1e6 / series.rate))
        for style, (name, line) in zip(_styles(), points.items(), strict=False):
            axes.plot(*zip(*sorted(line), strict=True), label=CONTENDERS[name].title, **style)
        axes.set(xscale="log", yscale="log", xlabel=what, ylabel="µs per item", title=title)
        return bool(points)

    return plot


def _styles() -> Iterator[dict[str, Any]]:
    """Endless, so that no contender is left out: where colours come again, the line is another one."""
    for line in ("-", ":", "-."):
        for colour, mark in zip(COLOURS, MARKS, strict=True):
            yield {"color": colour, "marker": mark, "linestyle": line, "linewidth": 1.6, "markersize": 5}


PLOTS: Final[dict[str, Draw]] = {
    "throughput": throughput,
    "latency": latency,
    "memory": memory,
    "scaling": scaling,
    "batch-size": cost(
        "batch size", "items per envelope", "Cost of an item against the batch size",
        lambda series: float(series.workload.batch_size or 1),
    ),
    "queue-depth": cost(
        "depth", "items waiting in the queue (1: none)", "Cost of an item against the depth of the queue",
        lambda series: float(series.workload.items.count if series.workload.shape == "depth" else 1),
    ),
}  # fmt: skip
