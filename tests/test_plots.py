"""Pictures of learned weights: they are made, they show the numbers, and they leave matplotlib's settings alone."""

import numpy as np
import pytest


matplotlib = pytest.importorskip("matplotlib")
Figure = pytest.importorskip("matplotlib.figure").Figure
plots = pytest.importorskip("amal_hf.plots")
style = pytest.importorskip("amal_hf.plots.style")


@pytest.fixture(autouse=True)
def no_files(monkeypatch):
    """Nothing is written unless a path is given."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **kwargs: pytest.fail(f"wrote {path}"))


def history():
    """A log of two losses' weights, with entries of other kinds between, as a trainer writes it."""
    entries = []
    for step in (10, 20, 30):
        entries.append({"step": step, "loss": 1.0})
        for loss, mean in (("cross_entropy", 0.2), ("distillation", 0.8)):
            marks = {"mean": mean, "p10": mean - 0.2, "p25": mean - 0.1, "p50": mean + 0.01, "p75": mean + 0.1}
            marks["p90"] = mean + 0.15
            entries.append({"step": step} | {f"weight_{loss}_{name}": value for name, value in marks.items()})
    return entries


def named(axes):
    """The lines of a panel that its legend names."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_weight_history_shows_every_loss():
    """A panel a loss, named, with its median and mean at its steps and bands between its quantiles."""
    figure = plots.plot_weight_history(history())
    assert [axes.get_title() for axes in figure.axes] == ["cross_entropy", "distillation"]
    for axes, middle in zip(figure.axes, (0.2, 0.8), strict=True):
        np.testing.assert_allclose(named(axes)["median"].get_xydata(), [[s, middle + 0.01] for s in (10, 20, 30)])
        np.testing.assert_allclose(named(axes)["mean"].get_xydata(), [[s, middle] for s in (10, 20, 30)])
        bands = [band.get_datalim(axes.transData).intervaly for band in axes.collections]
        np.testing.assert_allclose(bands, [[middle - 0.2, middle + 0.15], [middle - 0.1, middle + 0.1]])
        assert axes.get_xlabel() == "training step"
    assert figure.axes[0].get_ylabel() == "weight"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "middle 80 %",
        "middle 50 %",
        "median",
        "mean",
    ]


def test_methods_differ_in_more_than_colour():
    """Lines and markers differ as well as colours, so that a grey print can be read."""
    looks = [look for look, _ in zip(style.looks(), range(7), strict=False)]
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == 7
    assert len({look.line for look in looks}) == 4


def test_history_without_weights():
    """A log of an ordinary run is refused with what is missing, instead of giving an empty picture."""
    with pytest.raises(ValueError, match="weight_<loss>_p50"):
        plots.plot_weight_history([{"step": 1, "loss": 0.5}])


def area(patch):
    """The area of a polygon (shoelace formula)."""
    x, y = patch.get_path().vertices.T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def test_histograms_are_shares_of_their_group():
    """Both groups' bars sum to one however few are flipped, over common bins: else their shapes would not compare."""
    clean = np.arange(100) < 90
    weights = {"labels": np.where(clean, 0.8, 0.1), "teacher": np.linspace(0, 1, 100)}
    weights["teacher"][5] = np.nan
    figure = plots.plot_clean_against_flipped(weights, clean)
    assert [panel.get_title() for panel in figure.axes] == ["labels", "teacher"]
    assert len({patch.get_hatch() for patch in figure.axes[0].patches}) > 1
    for panel, values in zip(figure.axes, weights.values(), strict=True):
        width = np.ptp(values[np.isfinite(values)]) / 30
        sums = [area(patch) / width for patch in panel.patches if patch.get_fill()]
        np.testing.assert_allclose(sums, [1, 1])


@pytest.mark.parametrize(
    ("weights", "clean", "message"),
    [
        ({"labels": np.zeros(3)}, np.array([True, False]), "2 examples"),
        ({"labels": np.zeros(2)}, np.array([True, True]), "2 of 2"),
        ({}, np.array([True, False]), "came"),
    ],
)
def test_histograms_need_two_groups(weights, clean, message):
    """Arrays that do not belong together, or one group alone, would give a misleading picture and are refused."""
    with pytest.raises(ValueError, match=message):
        plots.plot_clean_against_flipped(weights, clean)


def test_global_settings_stay(tmp_path, monkeypatch):
    """Neither backend nor style changes: a notebook's own figures must look after the call as before."""
    monkeypatch.undo()
    before = dict(matplotlib.rcParams)
    plots.plot_weight_history(history(), tmp_path / "weights.png")
    assert (tmp_path / "weights.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_blends_show_every_pair():
    """One cell a pair, its λ written in it, both axes named by the labels."""
    shares = np.linspace(0.5, 1, 9).reshape(3, 3)
    axes = plots.plot_blends(shares, ["a", "b", "c"]).axes[0]
    assert [text.get_text() for text in axes.texts] == [f"{share:.2f}" for share in shares.flatten()]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="2 x 2"):
        plots.plot_blends(shares, ["a", "b"])


def test_masks_colour_every_token():
    """Every token is written once, as dark as it is kept; long texts go on in the next line."""
    texts = [["[CLS]", "good", "film"], ["word"] * 60]
    masks = [[1.0, 0.9, 0.1], [0.5] * 60]
    scale, written = np.split(plots.plot_masks(texts, masks).axes[0].texts, [6])
    assert [text.get_text() for text in scale] == ["kept:", "0%", "25%", "50%", "75%", "100%"]
    assert [text.get_text() for text in written] == texts[0] + texts[1]
    assert [text.get_bbox_patch().get_alpha() for text in written[:3]] == masks[0]
    assert len({text.get_position()[1] for text in written}) > 2
    with pytest.raises(ValueError, match="one value for each token"):
        plots.plot_masks(texts, [[1.0], [0.5] * 60])


def test_rule_weights_show_every_rule_that_voted():
    """A numbered point for every rule with a lift and a precision, and its name beside the picture."""
    lifts, precisions = np.array([0.1, 0.9, np.nan]), np.array([0.3, 0.8, 0.5])
    axes = plots.plot_rule_weights(lifts, precisions, ["a", "b", "silent"]).axes[0]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [[0.3, 0.1], [0.8, 0.9]])
    assert [text.get_text() for text in axes.texts] == ["1", "2", "1  b\n2  a"]
    assert [text.xy for text in axes.texts[:2]] == [(0.8, 0.9), (0.3, 0.1)]
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.plot_rule_weights(lifts * np.nan, precisions, ["a", "b", "c"])
    with pytest.raises(ValueError, match="Expected 2 lifts"):
        plots.plot_rule_weights(lifts, precisions, ["a", "b"])


def test_weights_against_agreement():
    """Ten equal groups by the teacher's probability, each with its median; gaps in the data are left out."""
    agreement = np.linspace(0, 1, 1000)
    weights = {"labels": agreement * 2, "teacher": np.where(agreement < 0.5, np.nan, 1.0)}
    figure = plots.plot_weight_against_agreement(weights, agreement)
    first, second = figure.axes
    x, y = named(first)["median"].get_xydata().T
    np.testing.assert_allclose(x, np.arange(0.05, 1, 0.1), atol=1e-3)
    np.testing.assert_allclose(y, 2 * x, atol=1e-3)
    assert named(second)["median"].get_xdata().min() > 0.5
    assert first.get_xlabel() == "teacher's probability of the label"
    assert len(first.collections[0].get_offsets()) == 1000


def test_weights_against_losses():
    """Each loss's weights stand against its own values; what does not belong together is refused. Neither is every
    loss in nats (squared errors, a function of one's own) nor every weight learned.
    """
    losses = {"labels": np.arange(40.0), "teacher": np.arange(40.0) + 100}
    weights = {name: np.ones(40) for name in losses}
    figure = plots.plot_weight_against_loss(weights, losses)
    assert [round(named(axes)["median"].get_xdata().mean()) for axes in figure.axes] == [20, 120]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("loss", "weight")
    with pytest.raises(ValueError, match="the losses"):
        plots.plot_weight_against_loss(weights, {"labels": losses["labels"]})
    with pytest.raises(ValueError, match="shape"):
        plots.plot_weight_against_loss(weights, {**losses, "teacher": np.zeros(3)})
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.plot_weight_against_agreement(weights, np.full(40, np.nan))


def test_accuracy_against_seconds():
    """Every method has a line of its own look in per cent, and its interval at the end."""
    curves = {
        "labels only": plots.Curve([5, 10], [0.5, 0.7]),
        "amal": plots.Curve([20], [0.9], interval=(0.88, 0.91)),
    }
    axes = plots.plot_accuracy_against_seconds(curves).axes[0]
    lines = named(axes)
    np.testing.assert_allclose(lines["labels only"].get_xydata(), [[5, 50], [10, 70]])
    assert lines["labels only"].get_marker() != lines["amal"].get_marker()
    (bar,) = axes.collections
    np.testing.assert_allclose(bar.get_segments()[0][:, 1], [88, 91])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("seconds of training", "accuracy (%)")
    with pytest.raises(ValueError, match="as many seconds"):
        plots.plot_accuracy_against_seconds({"a": plots.Curve([1, 2], [0.5])})


def test_legends_stay_inside_narrow_figures():
    """One loss alone makes a narrow picture, which must not cut off what its colours mean."""
    entries = [{name: entry[name] for name in entry if "distillation" not in name} for entry in history()]
    figure = plots.plot_weight_history(entries)
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1


def test_long_names_keep_their_ends():
    """Rules are often told apart by a number at the end of a long name."""
    names = style.short([f"keyword_of_huggingface_hub_{number}" for number in (1, 2)], 20)
    assert names[0] != names[1] and all(len(name) == 20 for name in names)
    assert style.short(["short"]) == ["short"]


def test_names_are_no_formulas():
    """Dollars in names of classes, rules, tokens and losses are drawn as they are; as formulas these would not do."""
    odd, values = r"a $x^ b $^ c", np.linspace(0, 1, 50)
    for figure in (
        plots.plot_blends(np.eye(2), [odd, "$50% to $100%"]),
        plots.plot_rule_weights(np.array([1.0, 2.0]), np.array([0.5, 0.6]), [odd, "$$$"]),
        plots.plot_masks([["a", "$$", "$x^$"]], [np.array([0.1, 0.5, 0.9])]),
        plots.plot_weight_against_loss({odd: values}, {odd: values}),
        plots.plot_clean_against_flipped({odd: values, "b$": values}, values > 0.5),
    ):
        figure.draw_without_rendering()
