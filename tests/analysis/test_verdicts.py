"""Tests and their families: exact at their size whatever the null's shape and wherever drawing stops, and said in words."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from posthoc.analysis.axes import AXES
from posthoc.analysis.measures import MEASURES
from posthoc.analysis.nulls import deciding
from posthoc.analysis.records import load_metrics
from posthoc.analysis.verdicts import (
    Outcome,
    Verdict,
    corrected,
    least_p,
    rejected,
    two_sided_p,
    verdict,
    wanting,
    worth_drawing,
)

V1 = Path(__file__).parents[1] / "fixtures" / "v1"
SHAPES = {
    "normal": lambda random, size: random.standard_normal(size),
    "lognormal": lambda random, size: np.exp(2 * random.standard_normal(size)),
    "near one": lambda random, size: 1 - 1e-3 * random.exponential(size=size),
    "two values": lambda random, size: random.integers(0, 2, size).astype(float),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("B", "size"), [(19, 0.0), (39, 0.05), (99, 0.04), (199, 0.05)])
def test_a_test_rejects_no_more_than_it_says(shape, B, size):
    """`size` is what ranks allow: 2 floor(0.025 (B + 1)) / (B + 1)."""
    random = np.random.default_rng(B)
    drawn = SHAPES[shape](random, (4000, B + 1))
    share = np.mean([two_sided_p(row[0], row[1:]) <= 0.05 for row in drawn])
    error = 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert share <= size + error
    if shape != "two values":
        assert share >= size - error


def test_a_low_value_on_a_skewed_null_is_seen():
    random = np.random.default_rng(0)
    low = np.exp(scipy.stats.norm.ppf(0.001))
    p = [two_sided_p(low, np.exp(random.standard_normal(99))) for _ in range(300)]
    assert np.mean(np.array(p) <= 0.05) > 0.95


def staged(value, draw, most, stop):
    """Drawing in doubling stages until `stop` says so of p, or a draw lies beyond the value on both sides, or at most."""
    drawn, stages = draw(39), [39]
    while (p := two_sided_p(value, drawn, stages)) <= least_p(len(drawn)) and len(drawn) < most and not stop(p):
        drawn = np.concatenate([drawn, draw(min(len(drawn) + 1, most - len(drawn)))])
        stages.append(len(drawn))
    return p, len(drawn)


@pytest.mark.parametrize("level", [0.05, 0.01, 0.002])
def test_drawing_on_until_it_pleases_does_not_cheat(level):
    random = np.random.default_rng(1)
    p = [staged(random.standard_normal(), random.standard_normal, 639, lambda p: p <= level)[0] for _ in range(4000)]
    assert np.mean(np.array(p) <= level) <= level + 3 * np.sqrt(level / 4000)


def test_only_what_lies_beyond_every_draw_is_drawn_again():
    random = np.random.default_rng(2)
    counts = [staged(random.standard_normal(), random.standard_normal, 9999, lambda p: False)[1] for _ in range(500)]
    assert np.mean(np.array(counts) == 39) > 0.9
    p, count = staged(100.0, random.standard_normal, 9999, lambda p: p <= 0.05 / 116)
    assert (p, count) == (pytest.approx(2 / 5120), 5119)


def test_a_closed_tail_keeps_its_stage():
    drawn = np.concatenate([np.zeros(9), [5.0], np.zeros(9), np.full(100, 9.0)])
    assert two_sided_p(3.0, drawn, [9, 19, 119]) == pytest.approx(2 * 2 / 20)
    assert two_sided_p(3.0, drawn, [119]) == pytest.approx(2 * 19 / 120)
    assert two_sided_p(3.0, [np.nan, 1.0, 2.0, np.nan]) == pytest.approx(2 / 3)
    assert np.isnan(two_sided_p(np.nan, drawn))
    assert np.isnan(two_sided_p(1.0, []))


def test_families_are_corrected_and_want_of_draws_is_no_answer():
    B, E = 99, 58
    p = np.full(E, 0.5)
    p[:11] = least_p(B)
    drawn = np.full(E, B)
    assert not rejected(p).any()
    assert wanting(p, drawn).sum() == 11
    assert worth_drawing(p, drawn, 9999).sum() == 11
    assert not worth_drawing(p, drawn, 150).any()  # even 150 draws could not decide: 11 of 58 need 2 / 212
    p[:] = least_p(B)
    assert rejected(p).all()
    assert not wanting(p, drawn).any()
    assert rejected([0.001, np.nan, 0.9]).tolist() == [True, False, False]
    np.testing.assert_allclose(corrected([0.01, 0.04, np.nan, 0.03]), [0.03, 0.04, np.nan, 0.04])
    p = np.random.default_rng(0).integers(1, 12, 40) / 12
    np.testing.assert_array_equal(corrected(p), scipy.stats.false_discovery_control(p))
    assert not rejected([]).any()


def test_a_family_with_nothing_in_it_is_seldom_rejected():
    """25 epochs and two measures under their nulls, drawn on where the family wants it."""
    random = np.random.default_rng(3)
    any_rejected = 0
    for _ in range(400):
        values = random.standard_normal(50)
        drawn = [random.standard_normal(39) for _ in values]
        stages = [[39] for _ in values]
        while True:
            p = np.array([two_sided_p(*test) for test in zip(values, drawn, stages, strict=True)])
            more = worth_drawing(p, np.array([len(draws) for draws in drawn]), 2559)
            if not more.any():
                break
            for k in np.flatnonzero(more):
                drawn[k] = np.concatenate([drawn[k], random.standard_normal(len(drawn[k]) + 1)])
                stages[k].append(len(drawn[k]))
        any_rejected += bool(rejected(p).any())
    assert any_rejected / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


VERDICT = Verdict("H_eff", "order", "another order of the same images", differs=3, epochs=25, draws=99)


@pytest.mark.parametrize(("changes", "outcome", "words", "mostly"), [
    ({}, Outcome.DIFFERS, "H_eff differs from that of another order of the same images in 3 of 25 epochs", False),
    ({"differs": 0}, Outcome.INDISTINGUISHABLE,
     "H_eff cannot be distinguished from that of another order of the same images in any of 25 epochs", False),
    ({"differs": 0, "epochs": 1}, Outcome.INDISTINGUISHABLE,
     "H_eff cannot be distinguished from that of another order of the same images in the only epoch that has it", False),
    ({"differs": 0, "wanting": 20}, Outcome.UNDETERMINED,
     "whether H_eff differs from that of another order of the same images cannot be told: too few draws in 20 of 25 epochs "
     "(99 draws: no p below 0.02)", None),
    ({"wanting": 1}, Outcome.DIFFERS,
     "H_eff differs from that of another order of the same images in 3 of 25 epochs; too few draws in 1 of 25 epochs "
     "(99 draws: no p below 0.02)", False),
    ({"differs": 13}, Outcome.DIFFERS,
     "H_eff differs from that of another order of the same images in 13 of 25 epochs, which all see one order: it may be that "
     "order", True),
    ({"count": 100}, Outcome.DIFFERS,
     "H_eff differs from that of another order of the same images in 3 of 25 epochs; that null was drawn in 25 of 100", False),
    ({"epochs": 0}, Outcome.NOT_DRAWN,
     "whether H_eff differs from that of another order of the same images is not known: that null was not drawn", None),
])  # fmt: skip
def test_words_follow_the_outcome(changes, outcome, words, mostly):
    result = dataclasses.replace(VERDICT, **changes)
    assert result.outcome is outcome
    assert result.sentence() == words
    assert result.mostly is mostly


def test_a_file_says_which_null_decides():
    metrics = load_metrics(V1 / "metrics.json")
    result = verdict(metrics, "integration")
    assert (result.null, result.decides, result.epochs, result.outcome) == (
        "order",
        True,
        11,
        Outcome.INDISTINGUISHABLE,
    )
    assert not verdict(metrics, "integration", "white").decides
    assert verdict(metrics, "hurst", "channel").outcome is Outcome.NOT_DRAWN
    by_axis = {
        axis.key: {deciding(measure, axis) for measure in MEASURES.values() if measure.default} - {""}
        for axis in AXES.values()
    }
    assert by_axis == {"image": {"order"}, "depth": {"time"}, "epoch": {"time"}, "token": {"time"}}


def test_of_a_measure_without_a_value_it_is_not_said_that_nothing_was_drawn():
    result = Verdict("H", "order", "another order", undefined=True)
    assert result.sentence("epoch").endswith("is not known: it is undefined in every epoch")
    assert dataclasses.replace(result, undefined=False).sentence().endswith("is not known: that null was not drawn")
    alone = Verdict("dM", "signs", "signs at random", value="0")
    assert alone.sentence().endswith(
        "is not known: signs are flipped of two documents or more, with differences other than 0"
    )
    lone = Verdict("M", "order", "another order", undefined=True, untrained=True)
    assert lone.sentence().endswith("is not known: only checkpoints of step 0 have it")
