"""The picture of a run shows what the run measured, and says in words what it means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from told_runs import free, run, steered

from ppo_kl.diagnostics.canvas import smooth
from ppo_kl.diagnostics.plot import draw, save
from ppo_kl.diagnostics.plot_several import MEAN_POINTS, Curve, draw_several, mean_of
from ppo_kl.diagnostics.story import tell
from ppo_kl.errors import ConfigError, OutputError

N = 60
MEASURED = {
    "rollout/return_last100": np.linspace(10, 200, N),
    "rollout/return_mean": np.linspace(10, 300, N),
    "ratio/clip_fraction": 0.1,
    "ratio/min": 0.5,
    "ratio/max": 2.0,
    "policy/entropy": np.linspace(1, 0.5, N),
    "value/explained_variance": 0.9,
}
STEERED = tell(
    run(steered(np.tile([0.008, 0.013], N // 2), np.linspace(1, 2, N), **MEASURED, **{"penalty/share": 0.4}), N)
)
CLIPPED = tell(run(free(np.tile([0.003, 0.005], N // 2), **MEASURED), N, objective="clip"))
PROFILE = {f"kl/epoch_{i}": 0.001 * (i + 1) for i in range(11)}
WITH_PROFILE = tell(run(steered(np.full(N, 0.01), **MEASURED, **PROFILE), N))
BROKEN = tell(run({"kl/forward": np.nan}, N, nonfinite={"kl/forward": N}, config=False))
ONE_UPDATE = tell(run(steered(np.array([0.0])), 1))


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_a_file_of_the_size_of_a_screen_with_something_on_it(tmp_path):
    save([STEERED], tmp_path / "story.png")
    pixels = imread(tmp_path / "story.png")
    assert pixels.shape[:2] == (900, 1400)
    assert 0.01 < (pixels[..., :3].min(axis=2) < 0.9).mean() < 0.5


@pytest.mark.parametrize("stories", [[STEERED], [CLIPPED], [WITH_PROFILE], [BROKEN], [ONE_UPDATE]], ids="abcde")
@pytest.mark.parametrize("copies", [1, 3])
def test_whatever_a_run_measured_can_be_drawn(tmp_path, stories, copies):
    save(stories * copies, tmp_path / "story.png")
    assert (tmp_path / "story.png").stat().st_size > 1000


def test_the_page_names_the_run_and_says_the_verdict():
    heading, verdict = (text.get_text() for text in draw(STEERED).texts)
    assert heading == "CartPole-v1 · kl_adaptive · seed 0 · 15,360 steps, finished"
    assert verdict.startswith("The KL was held at its target of 0.01 nats")


def test_six_panels_are_chosen_by_what_there_is():
    steered, clipped, profile = (titles(draw(story)) for story in (STEERED, CLIPPED, WITH_PROFILE))
    assert all(len(shown) == 6 for shown in (steered, clipped, profile))
    assert "λ, the weight of the penalty" in steered
    assert not [title for title in clipped if "λ" in title]
    assert "KL within an update, by epoch" in profile
    assert "KL within an update, by epoch" not in steered


def test_the_kl_is_drawn_as_it_was_with_its_shares_beside_the_band():
    kl = draw(STEERED).axes[1]
    assert kl.get_yscale() == "log"
    assert {"above 0%", "inside 100%", "below 0%"} <= set(lines(kl))
    np.testing.assert_allclose(lines(kl)["inside 100%"].get_ydata(), np.tile([0.008, 0.013], N // 2))
    (band,) = kl.collections
    low, high = band.get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((0.01 / 1.5, 0.015))


def test_a_band_far_below_the_kl_is_on_the_axis_all_the_same():
    far = tell(run(steered(np.full(N, 5.0)) | {"kl/target_low": 1e-6, "kl/target_high": 2e-6}, N))
    assert draw(far).axes[0].get_ylim()[0] < 1e-6


def test_the_profile_has_its_epochs_in_their_order():
    profile = draw(WITH_PROFILE).axes[4]
    first = lines(profile)["first third"]
    assert first.get_xdata().tolist() == list(range(1, 12))
    np.testing.assert_allclose(first.get_ydata(), 0.001 * np.arange(1, 12))


def test_several_runs_have_a_colour_for_each_objective_and_a_thick_line_where_there_are_several():
    returns, kl, kl_lambda = draw_several([STEERED, CLIPPED, CLIPPED]).axes
    drawn = [(line.get_color(), line.get_linewidth()) for line in returns.get_lines()]
    assert len(drawn) == 4  # a run, and two with their mean
    assert len({colour for colour, _ in drawn}) == 2
    assert max(drawn, key=lambda line: line[1])[0] == drawn[-1][0]
    assert kl.get_yscale() == kl_lambda.get_yscale() == "log"
    assert len(kl_lambda.get_lines()) == 1  # clip has none


def test_environments_stand_side_by_side():
    other = STEERED._replace(run=STEERED.run._replace(env="Pendulum-v1"))
    figure = draw_several([STEERED, other])
    assert [title.split(":")[0] for title in titles(figure)[::3]] == ["CartPole-v1", "Pendulum-v1"]
    assert figure.texts[0].get_text() == "2 environments · 2 runs"


def test_the_mean_of_runs_is_taken_where_all_of_them_are():
    a = Curve(np.array([0.0, 10.0]), np.array([0.0, 10.0]))
    b = Curve(np.array([2.0, 4.0, 8.0]), np.array([3.0, 3.0, 3.0]))
    steps, values = mean_of([a, b], logarithmic=False)
    assert (steps[0], steps[-1], len(steps)) == (2, 8, MEAN_POINTS)
    assert (values[0], values[-1]) == pytest.approx((2.5, 5.5))


def test_on_a_logarithmic_axis_the_mean_is_geometric():
    a, b = (Curve(np.array([0.0, 1.0]), np.full(2, value)) for value in (1.0, 100.0))
    assert mean_of([a, b], logarithmic=True).values[0] == pytest.approx(10)


def test_runs_that_do_not_overlap_have_no_mean():
    a, b = (Curve(np.array([begin, begin + 1.0]), np.ones(2)) for begin in (0.0, 5.0))
    assert len(mean_of([a, b], logarithmic=False).steps) == 0


@given(st.lists(st.floats(-1e6, 1e6) | st.just(np.nan), min_size=1, max_size=200).map(np.array))
def test_smoothing_stays_within_what_it_smooths(values):
    smoothed = smooth(values)
    assert len(smoothed) == len(values)
    assert np.isfinite(smoothed[np.isfinite(values)]).all()
    known = smoothed[np.isfinite(smoothed)]
    if len(known):
        assert np.nanmin(values) <= known.min() <= known.max() <= np.nanmax(values)


def test_a_name_that_is_no_picture_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"story\.doc: cannot be drawn; give a name that ends in \.png"):
        save([STEERED], tmp_path / "story.doc")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(OutputError, match="name a file in a folder that exists"):
        save([STEERED], tmp_path / "nowhere/story.png")
