"""`gscfd COMMAND`: the same commands as `python -m gscfd.COMMAND`, under one name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gscfd import train
from gscfd.__main__ import COMMANDS, main
from gscfd.completion import completion, options_of
from gscfd.config import Config, flat, plain, presets
from gscfd.runs.options import HELP, parse_command
from gscfd.version import __version__

ROOT = Path(__file__).parents[1]


def test_every_command_is_listed_and_shows_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in listed
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        shown = capsys.readouterr().out
        assert stopped.value.code == 0 and f"usage: gscfd {name}" in shown


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"gscfd {__version__}\n"


def test_an_unknown_command_is_one_line_that_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "train, view" in error and "'trian'; did you mean 'train'?" in error
    assert main(["foo"]) == 2 and "did you mean" not in capsys.readouterr().err, "control"


def test_arguments_and_exit_code_pass_through() -> None:
    done = subprocess.run([sys.executable, "-m", "gscfd", "train", "--prompt", ""], capture_output=True, text=True)
    assert done.returncode == 2 and "prompt: expected" in done.stderr


# The prompt.


@pytest.mark.parametrize(
    "arguments",
    [
        ["a red car", "--seed", "3"],
        ["--seed", "3", "a red car"],
        ["--seed", "3", "--coarse.fov", "30", "45", "a red car", "--coarse.no-perp-neg"],
        ["--prompt", "a red car", "--seed", "3"],
        ["--seed", "3", "--prompt=a red car"],
    ],
)
def test_the_prompt_stands_alone_or_behind_its_option(arguments: list[str]) -> None:
    config = parse_command(arguments)
    assert (config.prompt, config.seed) == ("a red car", 3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a red car", "--sed", "3"], "--sed"),
        (["a red car", "--seed", "x"], "x"),
    ],
)
def test_unknown_options_and_values_are_refused_and_the_prompt_is_no_part_of_them(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and named in error and "a red car" not in error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a", "red", "car"], "got 'a', 'red', 'car'; put it in quotes"),
        (["--prompt", "a", "red", "car", "--seed", "3"], "got 'a', 'red', 'car'"),
        (["a mug", "--prompt", "a red car"], "got 'a red car', 'a mug'"),
        ("an orange cactus in a green pot".split(), "'in', 'a', ...; put"),
    ],
)
def test_a_prompt_without_quotes_is_one_line_that_says_so(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: prompt: expected one text") and named in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["preview", "image"])
@pytest.mark.parametrize("arguments", [["a zeppelin"], ["--prompt", "a zeppelin"], ["--seed", "3", "a zeppelin"]])
def test_other_commands_of_a_prompt_take_it_the_same_way(
    name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The toybox's teachers do not know the word: the error shows that the prompt has arrived."""
    out = ["--out", str(tmp_path / "a.png")]
    assert main([name, *arguments, *out]) == 2 and "zeppelin" in capsys.readouterr().err
    assert main([name, *out]) == 2 and "prompt: expected a description" in capsys.readouterr().err, "control"
    assert main([name, "a", "zeppelin", *out]) == 2 and "got 'a', 'zeppelin'" in capsys.readouterr().err


# The help of a run, in two depths.


def test_the_help_of_a_run_fits_a_screen_and_names_options_and_defaults_that_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main(["--preset", "fast", "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and len(shown.splitlines()) <= 45
    assert max(map(len, shown.splitlines())) <= 100
    known = {name.removesuffix(".ply").removesuffix(".on").replace("_", "-") for name in flat(plain(Config()))}
    named = set(re.findall(r"--([a-z][\w.-]*)", shown)) - {"help", "help-all", "no-viewer"}
    assert len(named) > 10 and named <= known
    assert all(f"{name}," in HELP for name in ("toybox", "fast")) and {"toybox", "fast"} <= set(presets())
    values = flat(plain(Config()))
    defaults = {name: value for name, value in re.findall(r"--([\w.]+) N .*?\((\d+)\b", HELP)}
    assert defaults == {name: str(values[name]) for name in ("seed", "coarse.steps", "polish.steps", "viewer.port")}


def test_the_help_of_all_options_has_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help-all"])
    shown = capsys.readouterr().out
    names = {name.removesuffix(".ply").removesuffix(".on") for name in flat(plain(Config()))} - {"edits"}
    assert [name for name in names if f"--{name.replace('_', '-')}" not in shown] == []


# Completion.


def complete(script: str, *words: str) -> set[str]:
    """The words that bash offers in place of the last one."""
    program = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _gscfd; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", program, "bash", script, *words], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("columns", ["40", "120"])
def test_bash_completes_commands_options_and_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["completion", "bash"]) == 0
    script = str(tmp_path / "gscfd.bash")
    Path(script).write_text(capsys.readouterr().out)
    assert complete(script, "gscfd", "s") == {"sweep", "show-noise", "studio"}
    assert complete(script, "gscfd", "train", "--see") == {"--seed"}
    assert complete(script, "gscfd", "train", "--guidance", "c") == {"cfd", "cds"}
    assert complete(script, "gscfd", "export", "run", "--to", "sp") == {"splat", "spz"}
    assert complete(script, "gscfd", "export", "--guid") == set(), "an option of another command"
    assert complete(script, "gscfd", "view", "out") == set(), "bash goes on with file names"
    assert complete(script, "gscfd", "export", "run", "--out", "") == set(), "also here, without the word None"
    assert complete(script, "gscfd", "export", "run", "--axes", "") == {"None", "z-up", "y-up", "y-down"}, "control"
    assert complete(script, "gscfd", "comp") == {"completion"}
    assert complete(script, "gscfd", "completion", "") == {"bash", "zsh", "fish"}
    assert complete(script, "gscfd", "bench", "p") == {"papers", "pipeline"}
    assert complete(script, "gscfd", "bench", "papers", "p") == set(), "its part is there already"
    assert complete(script, "gscfd", "bench", "papers", "--si") == {"--size"}
    assert complete(script, "gscfd", "bench", "papers", "--size", "s") == {"smoke"}
    assert complete(script, "gscfd", "train", "--prom") == {"--prompt"}, "without the end of a sentence"
    assert os.environ["COLUMNS"] == columns


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_commands_options_and_values(tmp_path: Path) -> None:
    helps = {"train": "--guidance {cfd,sds}\n--seed INT", "view": "--port INT"}
    (tmp_path / "gscfd.fish").write_text(completion("fish", helps))

    def offered(line: str) -> str:
        program = f'source {tmp_path}/gscfd.fish; complete -C "{line}"'
        return subprocess.run(["fish", "-c", program], capture_output=True, text=True, check=True).stdout

    assert offered("gscfd tr").split() == ["train"] and offered("gscfd train --guidance c").split() == ["cfd"]
    assert "--seed" in offered("gscfd train --s") and "--seed" not in offered("gscfd view --s")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_script(tmp_path: Path) -> None:
    (tmp_path / "gscfd.zsh").write_text(completion("zsh", {"train": "--seed INT"}))
    program = f"source {tmp_path}/gscfd.zsh && print -r -- ${{_comps[gscfd]}}"
    done = subprocess.run(["zsh", "-f", "-c", program], capture_output=True, text=True, check=True)
    assert "_gscfd" in done.stdout and done.stderr == ""


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "powershell"]) == 2 and main(["completion"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "error: shell: expected bash, zsh, fish, got 'powershell'"


def test_options_are_read_from_a_help_text() -> None:
    text = "--to {a,mesh.b} words --no-such-thing, x\n --coarse.lr.shN FLOAT and --to again; a-- b --5"
    assert options_of(text) == {"--to": ["a", "mesh.b"], "--no-such-thing": [], "--coarse.lr.shN": []}


# The folder it runs in.


def test_a_folder_with_files_named_like_modules_does_not_disturb(tmp_path: Path) -> None:
    """types.py aside: `python -m` itself fails there."""
    names = {path.stem for path in (ROOT / "gscfd").glob("*.py")} | {"random", "typing", "dataclasses", "tyro", "yaml"}
    for name in names - {"types", "__init__", "__main__"}:
        (tmp_path / f"{name}.py").write_text("raise ImportError(__file__)")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    assert run("-m", "gscfd", "--version").stdout == f"gscfd {__version__}\n"
    assert "duck" in run("-m", "gscfd.train", "--list-words").stdout
    assert run("-c", "import random").returncode != 0, "control: here the file is found first"
