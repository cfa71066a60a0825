"""`gscfd COMMAND`: the same commands as `python -m gscfd.COMMAND`, under one name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gscfd.__main__ import COMMANDS, main
from gscfd.version import __version__


def test_every_command_is_listed_and_shows_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in listed
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0 and "usage:" in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"gscfd {__version__}\n"


def test_an_unknown_command_is_one_line_that_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "train, view" in error and "'trian'" in error


def test_arguments_and_exit_code_pass_through() -> None:
    done = subprocess.run([sys.executable, "-m", "gscfd", "train", "--prompt", ""], capture_output=True, text=True)
    assert done.returncode == 2 and "prompt: expected" in done.stderr
