"""A measure, a null, a figure and a stopping rule that are not of the package; the recipes are in CONTRIBUTING.md."""

import altair
import numpy as np

from posthoc.analysis.measures import MEASURES, Measure
from posthoc.analysis.nulls import NULLS, Null
from posthoc.analysis.stopping import RULES, Rule
from posthoc.report.figures import FIGURES, Figure, Kind


def roughness(series):
    """Mean absolute step of the units [U, T] over time."""
    return np.abs(np.diff(series.values)).mean()


def reversed_images(material, random, live):
    """The images in reverse, within their classes as everywhere."""
    return material.in_order(material.live(live)[:, ::-1], material.labels[::-1])


def build(metrics, epoch, width):
    rows = [{"at": at, "Q": float(value)} for at, value in zip(metrics.when, metrics.column("roughness"), strict=True)]
    chart = altair.Chart(altair.Data(values=rows)).mark_line().encode(x="at:Q", y="Q:Q").properties(width=width)
    return Figure("toy", "Roughness over time", "A line.", "", chart)


MEASURES["roughness"] = Measure("roughness", "Q", "roughness Q", "mean absolute step", of_series=roughness)
NULLS["reversed"] = Null("reversed", "the same images in reverse", "images reversed", {"image": reversed_images})
FIGURES["toy"] = Kind("toy", "Roughness over time", build)
RULES["third"] = Rule("third", "toy", of_run=lambda run: 2)
