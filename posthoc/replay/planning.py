"""From checkpoints and options to a plan: torch, which takes seconds to import, is imported once the run is found."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from posthoc.replay.duplicates import settle_duplicates
from posthoc.replay.layout import find_run
from posthoc.replay.request import PlanOptions, Request, require_options
from posthoc.replay.weights import Pick

if TYPE_CHECKING:
    from posthoc.replay.plan import Extraction
    from posthoc.replay.request import ProbeLike


def plan_extraction(
    checkpoints: Path | Sequence[Path],
    probe: "ProbeLike",
    *,
    skip_damaged: bool = False,
    trial: bool = True,
    before: "Extraction | None" = None,
    **options: Unpack[PlanOptions],
) -> "Extraction":
    """Find the run, its model, the probe and the hook points, and try the model on a few samples; nothing is written.

    `checkpoints` is the folder of a run, one checkpoint, or several of one folder; the options are those of `Request`.
    `skip_damaged` sets checkpoints apart whose headers cannot be read, and goes on where the model cannot run with the
    weights of one. Without `trial` nothing is run: enough to count what there is to do. `before`: a plan of the same
    run as it was, whose trial holds if all else is as it was. Raises PosthocError for whatever does not fit.
    """
    require_options(options)
    request = Request(probe, **options)
    request.check()
    pick = Pick(request.weights_key, request.ema)
    run = find_run(checkpoints, request.select, pick, skip_damaged, request.order, request.placed)
    run = settle_duplicates(run, pick, request.on_duplicate)
    from posthoc.replay.plan import plan_of

    return plan_of(request, run, pick, skip_damaged=skip_damaged, trial=trial, before=before)
