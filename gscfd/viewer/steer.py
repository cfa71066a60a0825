"""Carries out requests from the page between two steps."""

from __future__ import annotations

import logging
import signal
from dataclasses import replace

from gscfd.config import Edit
from gscfd.distil.edits import LiveSettings, changes, edited
from gscfd.distil.preflight import check_prompt
from gscfd.distil.stage import StepReport
from gscfd.errors import UserError
from gscfd.runs.folder import RunFolder
from gscfd.runs.make import Interrupt
from gscfd.runs.signals import Interrupted
from gscfd.viewer.live import LiveViewer

log = logging.getLogger("gscfd")


def steer(
    viewer: LiveViewer,
    live: LiveSettings,
    run: RunFolder,
    report: StepReport,
    interrupt: Interrupt,
) -> None:
    """Shows a step in the browser and carries out requests until the next step may begin.

    Raises Interrupted, as Ctrl-C does, if the page asks the run to stop.
    """
    controls = viewer.controls
    viewer.on_step(report, live)
    while True:
        for edit in controls.take_edits():
            controls.answer = make_edit(live, run, report, edit)
        if controls.stopping:
            run.save(report)
            raise Interrupted(signal.SIGINT)
        if controls.may_step():
            return
        viewer.offer(report, live)
        interrupt(report)
        controls.wait()


def make_edit(live: LiveSettings, run: RunFolder, report: StepReport, edit: Edit) -> str:
    """Applies an edit from the page before the next step if it is valid; returns the message for the page."""
    edit = replace(edit, rollbacks=report.state.rollbacks, step=report.state.step)
    try:
        if edit.stage != report.stage or edit.step == report.steps:
            raise UserError(f"the {edit.stage} stage has made its last step; try again in the next stage")
        check_prompt(edited(live.now, edit))
        live.edit(edit, run.record)
    except UserError as error:
        return f"Not changed. {error}"
    text = ", ".join(f"{name} {value}" for name, value in changes(edit).items())
    log.info("%s: from step %d on %s", edit.stage, edit.step, text)
    return f"From step {edit.step + 1} on: {text}"
