"""The table of axes: what may play the part of time."""

from posthoc.analysis.axes.axis import Axis, Factor, Material, OverTime, Recorded, Redraw, Source, Subject
from posthoc.analysis.axes.depth import DEPTH
from posthoc.analysis.axes.epoch import EPOCH
from posthoc.analysis.axes.image import IMAGE
from posthoc.analysis.axes.token import TOKEN

__all__ = ["AXES", "Axis", "Factor", "Material", "OverTime", "Recorded", "Redraw", "Source", "Subject"]

AXES: dict[str, Axis] = {axis.key: axis for axis in (IMAGE, DEPTH, EPOCH, TOKEN)}
