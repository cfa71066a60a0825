"""Makes a run on disk, from its start or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from gscfd.config import Config, StageName
from gscfd.devices import run_device
from gscfd.distil.edits import LiveSettings
from gscfd.distil.pipeline import OutOfMemory, distil
from gscfd.distil.stage import StageError, StepReport
from gscfd.distil.start import read_start
from gscfd.distil.state import Checkpoint
from gscfd.errors import UserError
from gscfd.runs.folder import RunFolder
from gscfd.runs.signals import Interrupted, interrupt_between_steps
from gscfd.teachers.guided import GuidedTeacher

Interrupt = Callable[[StepReport], None]
"""Raises Interrupted when Ctrl-C or SIGTERM has arrived."""
Steer = Callable[[LiveSettings, RunFolder, StepReport, Interrupt], None]
"""Called after every step; returns when the next step may begin."""


def make_run(config: Config, teachers: dict[StageName, GuidedTeacher], steer: Steer | None = None) -> None:
    """Makes a run in its folder, or continues a stopped one.

    teachers: from `load_teachers`. steer: called after every step, for the viewer. Raises Stopped if the run is
    interrupted or cannot continue, and UserError if its folder is in use or cannot be created, or if it cannot be
    resumed.
    """
    live = LiveSettings(config, teachers)
    start = read_start(config.init) if config.resume is None else None
    with RunFolder(config, start) as run:
        try:
            resume = run.rewind() if config.resume is not None else None
            if config.resume is not None and resume is None:
                start = run.read_start()
            check_device(config, resume)
            with interrupt_between_steps(run.save) as interrupt:

                def on_step(report: StepReport) -> None:
                    run.on_step(report)
                    interrupt(report)
                    if steer is not None:
                        steer(live, run, report, interrupt)

                gaussians = distil(config, teachers, on_step, resume, live, start)
            run.finish(gaussians)
        except KeyboardInterrupt as interrupted:
            code = interrupted.code if isinstance(interrupted, Interrupted) else 130
            raise run.stopped(f"interrupted; continue with --resume {run.path}", code=code) from None
        except OutOfMemory as error:
            run.go_back()
            raise run.stopped(f"{error}; or, with more memory, continue with --resume {run.path}", code=1) from error
        except StageError as error:
            raise run.stopped(str(error), code=1) from error
        except OSError as error:
            where = error.filename or run.path
            reason = f"could not write {where} ({error.strerror}); free space and --resume {run.path}"
            raise run.stopped(reason, code=1) from error


def check_device(config: Config, resume: Checkpoint | None) -> None:
    """Raises UserError if the run was started on another type of device, whose arithmetic rounds differently."""
    device = run_device(config).type
    if resume is not None and resume.device != device:
        raise UserError(
            f"resume: expected {resume.device}, where {config.resume} was started, got {device}; "
            f"continue with --device {resume.device} on a machine that has it, or start again"
        )
