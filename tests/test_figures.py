"""The figures' hand: light to import, the same each time, and drawn on a card of its own."""

import json
import subprocess
import sys

import matplotlib
import pytest

from ichimon import figures

matplotlib.use("Agg")


def test_importing_it_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, ichimon.figures; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_a_figure_has_its_title_its_labels_and_its_card() -> None:
    fig, ax = figures.new("What to see", x="words, n", y="time (s)")
    assert (fig.get_suptitle(), ax.get_xlabel(), ax.get_ylabel()) == ("What to see", "words, n", "time (s)")
    assert matplotlib.colors.to_hex(fig.get_facecolor()).upper() == figures.CARD


def test_estimates_draw_the_mean_and_the_interval() -> None:
    _, ax = figures.new("A curve")
    curve = [{"mean": 1.0, "low": 0.5, "high": 1.5}, {"mean": 2.0, "low": 1.0, "high": 3.0}]
    figures.estimates(ax, [1, 2], curve, "attention", nth=1)
    assert list(ax.lines[0].get_ydata()) == [1.0, 2.0]
    assert ax.lines[0].get_color() == figures.PALETTE[1]
    assert len(ax.collections) == 1


def test_an_attention_map_names_its_rows_and_columns() -> None:
    _, ax = figures.new("A map")
    figures.weights(ax, [[1.0, 0.0], [0.4, 0.6]], rows=["a", "b"], columns=["a", "b"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]


def test_a_sentence_is_tiled_line_by_line() -> None:
    _, ax = figures.new("A sentence")
    figures.words(ax, ["the", "cat", "sat"], [0.1, 0.9, 0.0], a_line=2)
    assert [text.get_text() for text in ax.texts] == ["the", "cat", "sat"]
    assert [text.get_position()[0] for text in ax.texts] == [0.48, 1.48, 0.48]


@pytest.mark.parametrize("colour", [*figures.PALETTE, figures.INK, figures.MUTED])
def test_every_colour_stands_out_from_the_card(colour: str) -> None:
    def luminance(name: str) -> float:
        channels = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(name)]
        return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]

    contrast = (luminance(figures.CARD) + 0.05) / (luminance(colour) + 0.05)
    assert contrast > 2


def test_numbers_for_a_script_are_whole_and_cannot_end_it() -> None:
    shown: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", lambda found: shown.append(found.data))
        figures.data("routing", {"tokens": ["</script>", "é"], "share": 0.25})
    start, end = '<script type="application/json" id="routing-data">', "</script>"
    assert shown[0].startswith(start)
    assert shown[0].endswith(end)
    assert end not in shown[0][:-1]
    assert json.loads(shown[0].removeprefix(start).removesuffix(end)) == {"tokens": [end, "é"], "share": 0.25}
