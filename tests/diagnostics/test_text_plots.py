"""Curves in characters: as high as the numbers, and nothing where there are none."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppo_kl.diagnostics.text_plots import BLOCKS, Scale, chart, scale_for, sparkline

NUMBERS = st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), min_size=1, max_size=200).map(np.array)


def test_a_line_rises_with_its_numbers():
    assert sparkline(np.arange(8.0), 8) == "▁▂▃▄▅▆▇█"


def test_a_character_stands_for_the_mean_of_its_stretch():
    assert sparkline(np.array([0.0, 2.0, 7.0, 9.0]), 2, low=1, high=8) == "▁█"


def test_decades_are_equal_steps_on_a_logarithmic_scale():
    assert sparkline(10.0 ** np.arange(8), 8, log=True) == "▁▂▃▄▅▆▇█"


def test_a_gap_is_a_space_and_nothing_at_all_is_no_line():
    assert sparkline(np.array([1.0, math.nan, 2.0]), 3) == "▁ █"
    assert sparkline(np.array([math.nan] * 3), 3) == ""
    assert sparkline(np.zeros(3), 3, log=True) == ""


@given(NUMBERS, st.integers(1, 80))
def test_a_line_is_no_longer_than_asked_and_of_blocks(values, width):
    line = sparkline(values, width)
    assert len(line) <= width
    assert set(line) <= {*BLOCKS, " "}


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6), st.integers(2, 40))
def test_every_row_of_a_scale_holds_what_it_stands_for(low, factor, height):
    scale = Scale(low, low * factor, height)
    assert [scale.row(scale.value(row)) for row in range(height)] == list(range(height))


def test_what_is_off_the_scale_lies_on_its_edge():
    scale = Scale(0.1, 10, 5)
    assert (scale.row(1e9), scale.row(0.0), scale.row(1.0)) == (0, 4, 2)


def test_a_scale_holds_all_that_is_positive_within_three_decades():
    scale = scale_for(np.array([0.0, 1e-9, 0.5, math.nan]), 5, 2.0)
    assert scale.high == pytest.approx(2.0, rel=0.1)
    assert scale.low == pytest.approx(0.002, rel=0.1)
    assert scale_for(np.array([0.0, math.nan]), 5) is None


def test_a_scale_reaches_further_for_a_band_that_must_be_on_it():
    assert scale_for(np.array([1e-9, 0.5]), 5, 1e-6).low == pytest.approx(1e-6, rel=0.1)


def test_a_chart_tells_which_medians_lie_in_the_band():
    values, edge = np.array([0.1, 1.0, 10.0, math.nan]), np.ones(4)
    rows = chart(values, 4, Scale(0.1, 10, 5), (edge * 0.5, edge * 2))
    column = ["".join(row[x].character for row in rows) for x in range(4)]
    assert [text.index("●") for text in column[:3]] == [4, 2, 0]
    assert "●" not in column[3]
    assert [next(row[x].place for row in rows if row[x].character == "●") for x in range(3)] == ["below", "in", "above"]
    assert column[3].count("╌") == 2


def test_a_chart_shows_the_quartiles_of_a_stretch():
    rows = chart(np.array([0.1] * 4 + [1.0] * 3 + [10.0] * 4), 1, Scale(0.1, 10, 5))
    assert [row[0].character for row in rows] == ["│", "│", "●", "│", "│"]
