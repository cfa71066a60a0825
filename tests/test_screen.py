"""A failing screen is not a failing disk: standard output and error that are gone change no result."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import pytest

from gscfd import train
from gscfd.__main__ import COMMANDS, main
from gscfd.cli import exit_code
from gscfd.distil.state import StageState
from gscfd.errors import warn
from gscfd.screen import Screen

RUN = ["--prompt", "a mug", "--coarse.steps", "3", "--refine.steps", "0", "--init.count", "200", "--no-viewer"]
RUN += ["--polish.steps", "0"]


def unread() -> TextIO:
    """Returns a stream into a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", buffering=1)


def full() -> TextIO:
    return open("/dev/full", "w", buffering=1)


def closed() -> TextIO:
    stream = open(os.devnull, "w")
    stream.close()
    return stream


GONE: dict[str, Callable[[], TextIO | None]] = {"unread": unread, "full": full, "closed": closed, "none": lambda: None}


@pytest.fixture(params=GONE)
def gone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    streams = [GONE[request.param](), GONE[request.param]()]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    yield
    for stream in filter(None, streams):
        with suppress(OSError):
            stream.close()


@pytest.mark.parametrize("stream", [unread, full, closed])
def test_without_the_screen_such_a_stream_fails(stream: Callable[[], TextIO]) -> None:
    """The control of the tests below."""
    file = stream()
    with pytest.raises((OSError, ValueError)):
        print("x", file=file, flush=True)
    with suppress(OSError):
        file.close()


def test_what_a_command_says_to_a_screen_that_is_gone_is_lost_and_nothing_else(gone: None) -> None:
    def command() -> int:
        print("said " * 10_000, flush=True)
        warn("warned")
        return 3

    assert exit_code(command) == 3
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()  # as Python does at exit


@pytest.mark.parametrize("name", COMMANDS)
def test_every_door_ends_well_when_nobody_reads_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", unread())
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0


def test_a_run_whose_screen_is_gone_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", unread())
    monkeypatch.setattr("sys.stderr", unread())
    assert train.main([*RUN, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/turntable.mp4").exists() and not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_whose_screen_is_gone_saves_a_checkpoint_when_it_is_stopped(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = StageState.advance

    def interrupted(self: StageState, *args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), number)
        advance(self, *args, **kwargs)

    monkeypatch.setattr(StageState, "advance", interrupted)
    monkeypatch.setattr("sys.stdout", unread())
    monkeypatch.setattr("sys.stderr", unread())
    before = signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.getsignal(number))
    try:  # a suite under nohup has inherited that hangups are ignored
        assert train.main([*RUN, "--out", str(tmp_path / "run")]) == 128 + number
    finally:
        signal.signal(number, before)
    assert (tmp_path / "run/checkpoints/000001.json").exists() and (tmp_path / "run/splat.ply").exists()


def test_an_ignored_hangup_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = StageState.advance

    def hung_up(self: StageState, *args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        advance(self, *args, **kwargs)

    monkeypatch.setattr(StageState, "advance", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train.main([*RUN, "--out", str(tmp_path / "run")]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_python_itself_ends_well_after_a_screen_that_is_gone() -> None:
    """At exit Python writes what is buffered, and a failure of that is exit code 120."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = "import sys; from gscfd.cli import exit_code; sys.exit(exit_code(lambda: print('x' * 99)))"
    for code, expected in ((command, 0), ("print('x' * 99)", 120)):
        done = subprocess.run([sys.executable, "-c", code], stdout=unread(), stderr=subprocess.PIPE, env=buffered)
        assert done.returncode == expected, "120 is the control"


def test_characters_that_the_screen_lacks_become_escapes() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    Screen(stream).write("un café, 馬\n")
    assert stream.buffer.getvalue() == "un café, \\u99ac\n".encode("latin-1")
    with pytest.raises(UnicodeEncodeError):
        stream.write("馬")


def test_ctrl_c_in_any_command_is_one_line_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise KeyboardInterrupt

    assert exit_code(command) == 130
    assert capsys.readouterr().err == "interrupted\n"
