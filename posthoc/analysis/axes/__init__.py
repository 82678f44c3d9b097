"""The table of axes: what may play the part of time."""

from posthoc.analysis.axes.axis import Axis, Material, OverTime, Redraw
from posthoc.analysis.axes.depth import DEPTH
from posthoc.analysis.axes.epoch import EPOCH
from posthoc.analysis.axes.image import IMAGE

__all__ = ["AXES", "Axis", "Material", "OverTime", "Redraw"]

AXES: dict[str, Axis] = {axis.key: axis for axis in (IMAGE, DEPTH, EPOCH)}
