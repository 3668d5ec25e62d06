"""Pictures of learned weights: they are made, they show the numbers, and they leave matplotlib's settings alone."""

import numpy as np
import pytest


matplotlib = pytest.importorskip("matplotlib")
Figure = pytest.importorskip("matplotlib.figure").Figure
plots = pytest.importorskip("amal_hf.plots")


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved during a test, to look at what they hold."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: figures.append(self) or save(self, *args, **kw))
    return figures


def history():
    """A log of two losses' weights, with entries of other kinds between, as a trainer writes it."""
    entries = []
    for step in (10, 20, 30):
        entries.append({"step": step, "loss": 1.0})
        for loss, mean in (("cross_entropy", 0.1), ("distillation", 0.9)):
            marks = {"mean": mean, "p10": mean - 0.1, "p90": mean + 0.1}
            entries.append({"step": step} | {f"weight_{loss}_{name}": value for name, value in marks.items()})
    return entries


def test_weight_history_shows_every_loss(tmp_path, drawn):
    """Each loss has a labelled line through its means at its steps, and a band; the axes say what they show."""
    plots.plot_weight_history(history(), tmp_path / "weights.png")
    assert (tmp_path / "weights.png").read_bytes().startswith(b"\x89PNG")
    axes = drawn[0].axes[0]
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["cross_entropy", "distillation"]
    np.testing.assert_allclose(lines["distillation"].get_xydata(), [[10, 0.9], [20, 0.9], [30, 0.9]])
    assert len(axes.collections) == 2
    assert axes.get_xlabel() and axes.get_ylabel()


def test_losses_differ_in_more_than_colour(tmp_path, drawn):
    """Line styles differ as well as colours, so that a grey print can be read."""
    plots.plot_weight_history(history(), tmp_path / "weights.pdf")
    lines = [line for line in drawn[0].axes[0].lines if not line.get_label().startswith("_")]
    assert len({line.get_linestyle() for line in lines}) == len({line.get_color() for line in lines}) == 2


def test_history_without_weights(tmp_path):
    """A log of an ordinary run is refused with what is missing, instead of giving an empty picture."""
    with pytest.raises(ValueError, match="weight_<loss>_mean"):
        plots.plot_weight_history([{"step": 1, "loss": 0.5}], tmp_path / "weights.png")


def area(patch):
    """The area of a polygon (shoelace formula)."""
    x, y = patch.get_path().vertices.T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def test_histograms_are_shares_of_their_group(tmp_path, drawn):
    """Both groups' bars sum to one however few are flipped, over common bins: else their shapes would not compare."""
    clean = np.arange(100) < 90
    weights = {"labels": np.where(clean, 0.8, 0.1), "teacher": np.linspace(0, 1, 100)}
    plots.plot_clean_against_flipped(weights, clean, tmp_path / "w.png")
    assert [panel.get_title() for panel in drawn[0].axes] == ["labels", "teacher"]
    for panel, values in zip(drawn[0].axes, weights.values(), strict=True):
        sums = [area(patch) / ((values.max() - values.min()) / 30) for patch in panel.patches if patch.get_fill()]
        np.testing.assert_allclose(sums, [1, 1])


@pytest.mark.parametrize(
    ("weights", "clean", "message"),
    [
        ({"labels": np.zeros(3)}, np.array([True, False]), "2 examples"),
        ({"labels": np.zeros(2)}, np.array([True, True]), "2 of 2"),
        ({}, np.array([True, False]), "came"),
    ],
)
def test_histograms_need_two_groups(tmp_path, weights, clean, message):
    """Arrays that do not belong together, or one group alone, would give a misleading picture and are refused."""
    with pytest.raises(ValueError, match=message):
        plots.plot_clean_against_flipped(weights, clean, tmp_path / "w.png")


def test_global_settings_stay(tmp_path):
    """Neither backend nor style changes: a notebook's own figures must look after the call as before."""
    before = dict(matplotlib.rcParams)
    plots.plot_weight_history(history(), tmp_path / "weights.svg")
    assert dict(matplotlib.rcParams) == before


def test_blends_show_every_pair(tmp_path, drawn):
    """One cell a pair, its λ written in it, both axes named by the labels."""
    shares = np.linspace(0.5, 1, 9).reshape(3, 3)
    plots.plot_blends(shares, ["a", "b", "c"], tmp_path / "blends.png")
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == [f"{share:.2f}" for share in shares.flatten()]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="2 x 2"):
        plots.plot_blends(shares, ["a", "b"], tmp_path / "blends.png")


def test_masks_colour_every_token(tmp_path, drawn):
    """Every token is written once, as dark as it is kept; long texts go on in the next line."""
    texts = [["[CLS]", "good", "film"], ["word"] * 60]
    masks = [[1.0, 0.9, 0.1], [0.5] * 60]
    plots.plot_masks(texts, masks, tmp_path / "masks.png")
    written = drawn[0].axes[0].texts
    assert [text.get_text() for text in written] == texts[0] + texts[1]
    assert [text.get_bbox_patch().get_alpha() for text in written[:3]] == masks[0]
    assert len({text.get_position()[1] for text in written}) > 2
    with pytest.raises(ValueError, match="one value for each token"):
        plots.plot_masks(texts, [[1.0], [0.5] * 60], tmp_path / "masks.png")


def test_rule_weights_show_every_rule_that_voted(tmp_path, drawn):
    """A point for every rule with a weight and a precision, with its name."""
    weights, precisions = np.array([0.1, 0.9, np.nan]), np.array([0.3, 0.8, 0.5])
    plots.plot_rule_weights(weights, precisions, ["a", "b", "silent"], tmp_path / "rules.png")
    axes = drawn[0].axes[0]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), [[0.3, 0.1], [0.8, 0.9]])
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.plot_rule_weights(weights * np.nan, precisions, ["a", "b", "c"], tmp_path / "rules.png")
    with pytest.raises(ValueError, match="Expected 2 weights"):
        plots.plot_rule_weights(weights, precisions, ["a", "b"], tmp_path / "rules.png")
