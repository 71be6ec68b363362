"""The one hand in which every figure of the course is drawn, in the book and in the notebooks.

    from ichimon import figures
    fig, ax = figures.new("Attention looks back, never ahead", x="key position", y="query position")
    figures.weights(ax, matrix)

The background is a light card of its own, so that a figure reads the same on a dark page, on a phone and in print.
Matplotlib is imported by the first figure, not by this module: the grader runs set-up cells and draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which survives colour-blindness; its yellow is left out because it vanishes on a light card.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")  # a second cue beside the colour
CARD, INK, MUTED, GRID = "#FBF8F3", "#26221E", "#6B645C", "#DDD6CB"

STYLE: dict[Any, Any] = {
    "figure.facecolor": CARD,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": CARD,
    "axes.facecolor": CARD,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "font.size": 12,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 2.2,
    "lines.markersize": 6.5,
    "svg.hashsalt": "ichimon",  # the same figure twice is the same file twice
}


def new(title: str, *, x: str = "", y: str = "", size: tuple[float, float] = (5.6, 3.7)) -> tuple[Figure, Axes]:
    """An empty figure. The title says what to see; `x` and `y` name the axes, with units.

    `size` is in inches. Keep the width: its letters are then still readable on a phone.
    """
    fig, (ax,) = panels(1, title, size=size)
    ax.set(xlabel=x, ylabel=y)
    return fig, ax


def panels(n: int, title: str, *, size: tuple[float, float] = (5.6, 5.2)) -> tuple[Figure, list[Axes]]:
    """`n` axes under one title, one below the other: a phone is narrow."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({**STYLE, "axes.prop_cycle": plt.cycler(color=PALETTE)})
    fig, axes = plt.subplots(n, 1, figsize=size, squeeze=False)
    fig.suptitle(title, x=0.02, ha="left")
    return fig, list(axes[:, 0])


def estimates(
    ax: Axes, x: Sequence[float], curve: Sequence[Mapping[str, Any]], label: str, *, nth: int = 0, style: str = "-"
) -> None:
    """One curve of estimates over seeds: the means as a line, the 95 % intervals as a band, in the `nth` colour.

    An estimate is a mapping with `mean`, `low` and `high`, as `ichimon.measure` writes it.
    """
    colour, marker = PALETTE[nth % len(PALETTE)], MARKERS[nth % len(MARKERS)]
    ax.plot(x, [e["mean"] for e in curve], style, color=colour, marker=marker, label=label)
    ax.fill_between(x, [e["low"] for e in curve], [e["high"] for e in curve], color=colour, alpha=0.18, linewidth=0)


def weights(ax: Axes, matrix: Any, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> None:
    """An attention map: one row a query, one column a key, darker where more is taken. Every row sums to 1."""
    ax.imshow(matrix, cmap=_shades(), vmin=0, vmax=1, aspect="auto")
    ax.grid(False)
    ax.tick_params(length=0)
    if len(rows):
        ax.set_yticks(range(len(rows)), rows)
    if len(columns):
        ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")


def words(ax: Axes, tokens: Sequence[str], shares: Sequence[float], *, a_line: int = 8) -> None:
    """A sentence as tiles, to be read line by line: the darker a word, the larger its share of the attention."""
    shade = _shades()
    for i, (token, share) in enumerate(zip(tokens, shares, strict=True)):
        x, y = i % a_line, -(i // a_line)
        ax.fill([x, x + 0.96, x + 0.96, x], [y, y, y + 0.9, y + 0.9], color=shade(share), linewidth=0)
        ax.text(x + 0.48, y + 0.45, token, ha="center", va="center", color=CARD if share > 0.4 else INK)
    ax.set(xlim=(0, a_line), ylim=(-((len(tokens) - 1) // a_line) - 0.05, 1))
    ax.axis("off")


def _shades() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shares", ["#F0EAE0", SKY, BLUE, "#00304D"])


def percent(axis: Axis) -> None:
    """Write an axis of fractions as percentages: `percent(ax.yaxis)`."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=0))


def data(name: str, values: Any) -> None:
    """Give a page's figure to play with its numbers: plain data, which its script finds under `name`."""
    import json

    from IPython.display import HTML, display

    text = json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    display(HTML(f'<script type="application/json" id="{name}-data">{text}</script>'))


def crisp() -> None:
    """Draw this notebook's figures as SVG: sharp at every size, and small."""
    from IPython import get_ipython
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    get_ipython().run_line_magic("matplotlib", "inline")  # also where MPLBACKEND asks for figures that nobody sees
    set_matplotlib_formats("svg", metadata={"Date": None})
