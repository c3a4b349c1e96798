"""Every figure: no legend lies on what is drawn, nothing is cut, and it can be read from the back of a room."""

from collections.abc import Callable
from pathlib import Path

import examples
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from reports import adapted, base_model, demo_report, sweep_report

from minilora.adapters import peft
from minilora.cli import main
from minilora.display import plots
from minilora.jobs.classification_figure import classification_figure
from minilora.jobs.demo_figure import report_figure
from minilora.jobs.forgetting_figure import forgetting_figure
from minilora.jobs.rank import study
from minilora.jobs.rank_figures import rank_figures
from minilora.jobs.sweep_figure import sweep_figure
from minilora.models import saving

SMALLEST = 14  # points, in a figure that is 11 to 19 inches wide


def demo(folder: Path) -> None:
    """Curves as long as real ones: the training loss is noisy, and the first validation loss is the base's."""
    report, rng = demo_report(), np.random.default_rng(0)
    falling = 2.4 + np.exp(-np.arange(81) / 15)
    train = falling[1:] - 0.4 + 0.1 * rng.standard_normal(80)
    curve = {"train": train.tolist(), "held_out": [(step, falling[step]) for step in range(0, 81, 20)]}
    for name, rank in (("full", 64), ("lora", 8)):
        report[name] |= {"curve": curve, "trainable": 940_416}
        report["rank"][name] = report["rank"][name] | {"mean_spectrum": np.exp(-np.arange(rank) / 20).tolist()}
    report_figure(report)


def sweep(folder: Path) -> None:
    title = "Rank 8 did best, and no smaller one is within one standard error of it"
    sweep_figure(sweep_report([2.70, 2.65, 2.61, 2.59], 0.01), title)


def rank(folder: Path) -> None:
    saving.save_pretrained(base_model(), folder / "base")
    for seed in (1, 2):
        peft.save_adapter(adapted(seed=seed), folder / str(seed))
    rank_figures(study(str(folder / "1"), base=str(folder / "base"), compare=str(folder / "2")))


def count(folder: Path) -> None:
    main(["count", "--model", "gpt2", "--compare", "full,lora,qlora,bitfit", "--plot", str(folder / "x.png")])


def forgetting(folder: Path) -> None:
    """The longest names, and a text that is forgotten."""
    report = {"bits_per_byte": {0: 3.3, 50: 2.6, 100: 2.4}, "watched": {0: 2.0, 50: 2.3, 100: 2.2}}
    forgetting_figure(report | {"names": ("a/long/path/to/a/text/that/is/learned.txt", "x" * 200)})


@pytest.fixture(scope="module", params=[demo, sweep, rank, count, forgetting], ids=lambda draw: draw.__name__)
def figures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Figure]:
    draw: Callable[[Path], None] = request.param
    drawn: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, *arguments, **options: drawn.append(figure))
        draw(tmp_path_factory.mktemp("figures"))
    for figure in drawn:
        figure.draw_without_rendering()
    assert len(drawn) == (4 if draw is rank else 1)
    return drawn


def legends(figure: Figure) -> list[Legend]:
    return [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]


def test_no_text_is_too_small_for_the_back_of_a_room(figures):
    texts = [text for figure in figures for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert not {text.get_text(): text.get_fontsize() for text in texts if text.get_fontsize() < SMALLEST}


def test_no_title_label_or_legend_is_cut_at_the_edge(figures):
    for figure in figures:
        titles = [text for ax in figure.axes for text in (ax.title, ax.xaxis.label, ax.yaxis.label)]
        for artist in (figure._suptitle, *titles, *legends(figure)):
            box = artist.get_window_extent()
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
            assert inside or not box.width, artist


@pytest.mark.parametrize("ranks", examples.some_of([[1, 2, 4, 8], [1, 16], [64, 128]]))
def test_the_name_of_every_rank_of_a_sweep_is_inside_its_frame(ranks, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **options: drawn.append(figure))
    report = sweep_report([2.70, 2.65, 2.61, 2.59][: len(ranks)], 0.01)
    for row, rank in zip(report["ranks"], ranks, strict=True):
        row["rank"] = rank
    sweep_figure(report | {"best": ranks[-1], "chosen": ranks[-1], "pareto": ranks}, "a title")
    drawn[0].draw_without_rendering()
    close = drawn[0].axes[1]
    named = {text.get_text(): text.get_window_extent() for text in close.texts}
    assert list(named) == [f"r = {rank}" for rank in ranks]
    for box in named.values():
        assert close.bbox.x0 < box.x0
        assert box.x1 < close.bbox.x1
        assert box.y1 < close.bbox.y1


def test_no_line_runs_through_a_legend(figures):
    for figure in figures:
        for line in (line for ax in figure.axes for line in (*ax.lines, *ax.collections)):
            for path in line.get_paths() if hasattr(line, "get_paths") else [line.get_path()]:
                points = path.interpolated(50).transformed(line.get_transform()).vertices
                for legend in legends(figure):
                    x, y = points.T
                    box = legend.get_window_extent()
                    through = (box.x0 < x) & (x < box.x1) & (box.y0 < y) & (y < box.y1)
                    assert not through.any(), (line, legend)


def classifier(labels: list[str], steps: int) -> bytes:
    n = len(labels)
    report = {"labels": labels, "confusion": np.eye(n, dtype=int).tolist(), "accuracy": 1.0, "trainable": 8}
    return classification_figure([1.0] * steps, report | {"losses": [[0, 1.0], [steps, 0.5]]})


def test_letters_that_the_usual_font_lacks_are_drawn_with_an_installed_one_that_has_them():
    from matplotlib import font_manager, rcParams

    usual, other = (
        set(font_manager.get_font(font_manager.findfont(font_manager.FontProperties(name))).get_charmap())
        for name in (None, "STIXGeneral")
    )
    letter = chr(max(code for code in other - usual if code < 0xE000))
    assert plots.fonts_for("abc") == rcParams["font.family"]
    assert len(plots.fonts_for("abc" + letter)) == 2
    assert classifier(["a", letter], 2) != classifier(["a", "b"], 2)  # and no warning is an error here


def test_letters_that_no_font_has_are_one_line_that_says_what_to_install(monkeypatch):
    from matplotlib import font_manager

    bundled = [font for font in font_manager.fontManager.ttflist if font.name in ("DejaVu Sans", "DejaVu Serif")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    with pytest.warns(UserWarning, match="no installed font has 体学科育, .*: install one, such as") as told:
        classifier(["科学", "体育"], 2)
    assert len(told) == 1


@pytest.mark.parametrize("steps", examples.some_of([1, 2, 3, 7]))
def test_steps_have_no_fractions(steps, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **options: drawn.append(figure))
    classifier(["a", "b"], steps)
    drawn[0].draw_without_rendering()
    ticks = drawn[0].axes[0].get_xticks()
    assert len(ticks) >= 1
    assert all(tick == round(tick) for tick in ticks)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("label", "drawn"), [("\x1b[31mred", "\\x1b[31mred"), ("two\nlines", "two lines"), ("$5 to $\\x", "$5 to $\\x")]
)
def test_a_label_of_a_classifier_is_drawn_in_one_line_without_control_characters(label, drawn, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **options: figures.append(figure))
    report = {
        "labels": [label, "b"], "confusion": [[1, 0], [0, 1]], "losses": [(0, 1.0)], "accuracy": 1, "trainable": 1,
    }  # fmt: skip
    classification_figure([1.0], report)
    figures[0].draw_without_rendering()
    assert [tick.get_text() for tick in figures[0].axes[1].get_xticklabels()] == [drawn, "b"]


def test_a_confusion_matrix_of_many_labels_has_colors_and_numbers_alone(monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **options: figures.append(figure))
    n = 200
    report = {"labels": [f"a long name, {i}" for i in range(n)], "confusion": np.eye(n, dtype=int).tolist()}
    classification_figure([1.0], report | {"losses": [(0, 1.0)], "accuracy": 1, "trainable": 1})
    figures[0].draw_without_rendering()
    assert not figures[0].axes[1].texts
    assert len(figures[0].axes[1].get_xticklabels()) < 20
