"""A live viewer on a stage that takes milliseconds, and a browser for it that is none."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from tiny import TinyTeacher, stage_config, tiny_stage

from gscfd.config import Config, ViewerConfig
from gscfd.distil.edits import LiveSettings
from gscfd.runs.folder import RunFolder
from gscfd.teachers.base import Prompt
from gscfd.viewer.live import LiveViewer
from gscfd.viewer.steer import steer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

STEPS = 12


class ToldTeacher(TinyTeacher):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []

    def set_prompt(self, prompt: Prompt) -> None:
        self.prompts.append(prompt)


def settings(**changes: Any) -> Config:
    stage = stage_config(steps=STEPS, **changes)
    return replace(Config(prompt="a mug"), coarse=stage, refine=stage, viewer=ViewerConfig(port=8700))


def paint(cameras: Any, render: Any) -> torch.Tensor:
    shape = (len(cameras), 3, cameras.height // 4, cameras.width // 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def viewing(config: Config | None = None) -> Iterator[LiveViewer]:
    viewer = LiveViewer(config or settings(), paint)
    try:
        yield viewer
    finally:
        viewer.close()


@contextmanager
def browsing(viewer: Any, **options: Any) -> Iterator[Any]:
    """A browser that reads all it is sent."""
    from viewer_client import join

    with join(viewer.address, **options) as connection:
        reader = threading.Thread(target=lambda: [None for _ in connection], daemon=True)
        reader.start()
        until(lambda: viewer.server.get_clients())
        yield connection


def until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for something; fails when it does not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


class Run:
    """A tiny run on a thread of its own, as the training thread would be, steered by a viewer."""

    def __init__(
        self, viewer: LiveViewer, config: Config | None = None, seconds: float = 0.0, gate_at: int | None = None
    ) -> None:
        """seconds: that every step is made to last longer. gate_at: step that ends when the gate is open."""
        self.config, self.seconds, self.gate_at = config or settings(), seconds, gate_at
        self.gate = threading.Event()
        self.teacher = ToldTeacher()
        self.viewer = viewer
        self.live = LiveSettings(self.config, {"coarse": self.teacher, "refine": self.teacher})
        self.kept = SimpleNamespace(save=self.save, record=self.record)
        self.saved: list[int] = []
        self.recorded: list[Config] = []
        self.steps: list[int] = []
        self.looks: list[int] = []
        """Steps after which the run was held, once for every look for a signal."""
        self.signal: BaseException | None = None
        self.ended: BaseException | None = None
        self.gaussians: Any = None
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def save(self, report: Any) -> None:
        self.saved.append(report.step)

    def record(self, config: Config) -> None:
        self.recorded.append(config)

    def interrupt(self, report: Any) -> None:
        self.looks.append(report.step)
        if self.signal is not None:
            raise self.signal

    def on_step(self, report: Any) -> None:
        self.steps.append(report.step)
        time.sleep(self.seconds)
        if report.step == self.gate_at:
            assert self.gate.wait(120), "nobody opened the gate"
        steer(self.viewer, self.live, cast(RunFolder, self.kept), report, self.interrupt)

    def work(self) -> None:
        try:
            self.gaussians = tiny_stage(self.config.coarse, on_step=self.on_step)
        except BaseException as error:
            self.ended = error

    def finish(self) -> Any:
        """The splat."""
        self.thread.join(120)
        assert not self.thread.is_alive(), "the run hangs"
        return self.gaussians


def watched(viewer: LiveViewer, **options: Any) -> Run:
    """A run whose first step the page has shown before the second begins, and whose last step it is shown too."""
    viewer.controls.pause(True)
    run = Run(viewer, **options)
    until(lambda: viewer.shown is not None)
    viewer.controls.pause(False)
    return run


def press(button: Any) -> None:
    """As a click in the browser does."""
    button.value = True
