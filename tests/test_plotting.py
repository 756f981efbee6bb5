"""Pictures that no global state knows of, with labels, on the scales they promise."""

from __future__ import annotations

import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import spatialdiff as sd
from spatialdiff import plotting, style
from spatialdiff.evaluation import spectrum
from spatialdiff.evaluation.curves import spectrum_curve, variogram_curve
from spatialdiff.kernels import Matern
from spatialdiff.plotting import Panel

F64 = torch.float64
GRID = sd.Grid((6, 8), spacing=(0.5, 1.0))
STEPS = {"one": [(i, 1.0 / (i + 1)) for i in range(100)], "other": [(i, 2.0) for i in range(60)]}


@pytest.fixture(autouse=True)
def _no_pyplot(monkeypatch):
    """An import of pyplot fails, even where another test has imported it."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.delattr(matplotlib, "pyplot", raising=False)


def fields(number=5, grid=GRID, channels=1):
    return torch.randn(number, channels, *grid.shape, dtype=F64)


def gamma(grid=GRID, channels=None):
    return sd.covariance(Matern(nu=1.5, lengthscale=1.5), grid, channels).double()


def drawn(figure):
    """The figure drawn, so that what fails only then fails here."""
    assert type(figure) is Figure
    FigureCanvasAgg(figure).draw()
    return figure


def images(figure):
    return [axis.images[0] for axis in figure.axes if axis.images and axis.get_label() != "<colorbar>"]


EVERY = [
    pytest.param(lambda: plotting.gallery(fields(), label="metres", grid=GRID), id="gallery"),
    pytest.param(lambda: plotting.panels([diagram()], {"a": "red", "b": "blue"}), id="panels"),
    pytest.param(lambda: plotting.spectra({"a": fields(), "b": fields()}, GRID), id="spectra"),
    pytest.param(lambda: plotting.variograms({"a": fields(), "b": fields()}, GRID), id="variograms"),
    pytest.param(lambda: plotting.covariance_section(gamma()), id="covariance"),
    pytest.param(lambda: plotting.training_curves(STEPS), id="training"),
]


def diagram(**options):
    curves = {"a": ([1.0, 2.0, 4.0], [3.0, 2.0, 1.0]), "b": ([1.0, 2.0, 4.0], [6.0, 2.0, 0.5])}
    return Panel("Title", "abscissa", "ordinate", curves, **options)


@pytest.mark.parametrize("make", EVERY)
def test_every_picture_is_a_figure_and_leaves_no_trace(make):
    before = matplotlib.rcParams.copy()
    drawn(make())
    assert matplotlib.rcParams.copy() == before


def test_style_is_left_behind():
    size = matplotlib.rcParams["axes.linewidth"]
    with plotting.style():
        assert matplotlib.rcParams["axes.linewidth"] == 0.7 != size
    assert matplotlib.rcParams["axes.linewidth"] == size


def test_colors():
    names = [str(i) for i in range(9)]
    found = plotting.colors(names)
    assert found["0"] == style.REAL
    assert len({found[name] for name in names[:7]}) == 7
    assert found["7"] == found["1"]


# -- gallery ------------------------------------------------------------------------------------------------


def test_gallery_has_the_scale_of_its_first_row():
    rows = {"real": fields(6), "wild": 10 * fields(3)}
    figure = drawn(plotting.gallery(rows, columns=4, label="metres", grid=GRID))
    limits = np.quantile(rows["real"].numpy(), [0.005, 0.995])
    shown = images(figure)
    assert len(shown) == 4 + 3
    for image in shown:
        np.testing.assert_allclose(image.get_clim(), limits)
    np.testing.assert_array_equal(shown[1].get_array(), rows["real"][1, 0])
    np.testing.assert_array_equal(shown[4].get_array(), rows["wild"][0, 0])
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert [label for label in labels if label] == ["real", "wild", "metres"]


def test_gallery_of_other_dimensions():
    line = fields(2, sd.Grid(12))
    (image, _) = images(drawn(plotting.gallery(line)))
    assert (np.asarray(image.get_array()) == line[0, 0].numpy()).all()
    block = fields(2, sd.Grid((5, 4, 3)), channels=2)
    (image, _) = images(drawn(plotting.gallery(block, grid=sd.Grid((5, 4, 3)))))
    np.testing.assert_array_equal(image.get_array(), block[0, 0, 2])


def test_gallery_in_units_of_length():
    image = images(plotting.gallery(fields(), grid=GRID))[0]
    assert tuple(image.get_extent()) == (0.0, 8.0, 3.0, 0.0)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({}, {}, "at least one row"),
        (torch.zeros(2, 1, 6, 8), {"columns": 0}, "one column"),
        ({"x": torch.zeros(0, 1, 6, 8)}, {}, "'x' have shape"),
        ({"x": torch.zeros(6, 8)}, {}, r"needed \(n, C, \*grid\)"),
        ({"x": torch.zeros(2, 1, 8, 6)}, {"grid": GRID}, r"with grid = \(6, 8\)"),
    ],
)
def test_gallery_refuses(rows, options, message):
    with pytest.raises(ValueError, match=message):
        plotting.gallery(rows, **options)


# -- diagrams -----------------------------------------------------------------------------------------------


def test_panel_with_a_ratio():
    panel = diagram(log_x=True, log_y=True, ratio_to="a", bands=[([1.0, 2.0, 4.0], [3.3, 2.2, 1.1])])
    figure = drawn(plotting.panels([panel], {"a": "#000000", "b": "#ff0000"}, dashed=["b"]))
    top, bottom = figure.axes
    assert top.get_title(loc="left") == "Title"
    assert top.get_ylabel() == "ordinate"
    assert bottom.get_xlabel() == "abscissa"
    assert "ratio" in bottom.get_ylabel()
    assert top.get_xscale() == top.get_yscale() == "log"
    lines = {line.get_label(): line for line in top.lines}
    assert set(lines) == {"halves of the real data", "a", "b"}
    assert lines["b"].get_linestyle() == "--"
    assert to_hex(lines["b"].get_color()) == "#ff0000"
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), 1.0)
    np.testing.assert_allclose(bottom.lines[1].get_ydata(), [2.0, 1.0, 0.5])
    (legend,) = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["a", "b", "halves of the real data"]


def test_panels_go_three_in_a_row():
    figure = drawn(plotting.panels([diagram()] * 4, {"a": "red", "b": "blue"}))
    assert len(figure.axes) == 4
    assert all(axis.get_xlabel() == "abscissa" for axis in figure.axes)
    places = [axis.get_position() for axis in figure.axes]
    assert places[0].y0 == pytest.approx(places[2].y0)
    assert places[3].y1 < places[0].y0


def test_spectra_and_variograms_draw_what_is_computed():
    sets = {"a": fields(), "b": 2 * fields()}
    for draw, compute in ((plotting.spectra, spectrum_curve), (plotting.variograms, variogram_curve)):
        figure = draw({name: x.float().requires_grad_() for name, x in sets.items()}, GRID)
        top, bottom = figure.axes
        assert bottom.get_xlabel()
        assert top.get_ylabel()
        for line, x in zip(top.lines, sets.values(), strict=True):
            place, value = compute(x, GRID)
            np.testing.assert_allclose(line.get_xdata(), place, rtol=1e-5)
            np.testing.assert_allclose(line.get_ydata(), value, rtol=1e-5)
    place, power = spectrum(sets["a"], GRID)
    x, y = spectrum_curve(sets["a"], GRID)
    np.testing.assert_allclose(x, place[1:])
    np.testing.assert_allclose(y, power.mean((0, 1))[1:])


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="no diagrams"):
        plotting.panels([], {})
    for draw in (plotting.spectra, plotting.variograms):
        with pytest.raises(ValueError, match="no fields"):
            draw({}, GRID)
    with pytest.raises(ValueError, match="no curves"):
        plotting.training_curves({})
    with pytest.raises(ValueError, match="no curves"):
        plotting.training_curves({"one": STEPS["one"], "none": []})


# -- covariance and training --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [None, 2])
def test_covariance_section_shows_the_kernel(channels):
    law = gamma(channels=channels)
    figure = drawn(plotting.covariance_section(law))
    kernel = gamma().to_dense().detach().reshape(6, 8, 6, 8)[3, 4].numpy()
    curves, picture = figure.axes[:2]
    assert curves.get_xlabel()
    assert picture.get_xlabel()
    assert picture.get_ylabel()
    down, across = curves.lines
    np.testing.assert_allclose(down.get_xdata(), (np.arange(6) - 3) * 0.5)
    np.testing.assert_allclose(down.get_ydata(), kernel[:, 4], rtol=1e-9)
    np.testing.assert_allclose(across.get_ydata(), kernel[3], rtol=1e-9)
    (image,) = picture.images
    np.testing.assert_allclose(image.get_array(), kernel, rtol=1e-9)
    # the middle of the middle site's pixel is at distance 0
    left, right, bottom, top = image.get_extent()
    assert left + 4.5 * (right - left) / 8 == pytest.approx(0.0, abs=1e-12)
    assert top + 3.5 * (bottom - top) / 6 == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("grid", [sd.Grid(9, spacing=0.5), sd.Grid((3, 4, 3))])
def test_covariance_section_in_other_dimensions(grid):
    figure = drawn(plotting.covariance_section(gamma(grid)))
    (axis,) = figure.axes
    assert len(axis.lines) == grid.ndim
    for line in axis.lines:
        assert np.max(line.get_ydata()) == pytest.approx(1.0, rel=1e-5)
        assert line.get_xdata()[np.argmax(line.get_ydata())] == 0


def test_training_curves_and_their_running_mean():
    figure = drawn(plotting.training_curves(STEPS))
    (axis,) = figure.axes
    assert axis.get_xlabel() == "training step"
    assert axis.get_ylabel().startswith("loss")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["one", "other"]
    raw, smooth = axis.lines[:2]
    losses = np.array([loss for _, loss in STEPS["one"]])
    np.testing.assert_allclose(raw.get_ydata(), losses)
    np.testing.assert_allclose(smooth.get_ydata(), [losses[i - 3 : i + 1].mean() for i in range(3, 100)])
    np.testing.assert_allclose(smooth.get_xdata(), np.arange(3, 100))
