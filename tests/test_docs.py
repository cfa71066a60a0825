"""The documentation is true as far as a machine can tell: links lead somewhere, commands parse, the site builds."""

import argparse
import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

import gscfd
from gscfd.__main__ import COMMANDS
from gscfd.config import Config, flat, plain, presets, to_yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)[^)]*\)|src=\"(?!\w+:)([^\"]+)\"")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
FILE = re.compile(r"(?:gscfd|scripts|tests|benchmarks|docs)/[\w./-]*\w|\.ci/run")
OPTION = re.compile(r"--[a-zA-Z](?:[\w.-]*\w)?")
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs: pip install 'gscfd[docs]'"
)


# ---------------------------------------------------------------------------------------------------------------- links


def broken_links(page: Path) -> list[str]:
    found = [link or source for link, source in LINK.findall(page.read_text())]
    return [name for name in found if not (page.parent / name).exists()]


def missing_files(text: str) -> list[str]:
    """Files of the repository that are named and not there; generated and compiled ones aside."""
    return [name for name in FILE.findall(" ".join(SPAN.findall(text))) if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_picture_and_file_named_is_there(page: Path) -> None:
    assert broken_links(page) == [] and missing_files(page.read_text()) == []


def test_a_broken_link_and_a_missing_file_are_found(tmp_path: Path) -> None:
    (tmp_path / "here.md").write_text("")
    page = tmp_path / "page.md"
    page.write_text('[a](here.md#x) [b](gone.md) ![c](gone.png) [d](https://x.y/z) [e](#x) <img src="gone.jpg">')
    assert broken_links(page) == ["gone.md", "gone.png", "gone.jpg"]
    assert missing_files("`scripts/gone.py` and `scripts/benchmark.py`, not scripts/gone.py") == ["scripts/gone.py"]


# ------------------------------------------------------------------------------------------------------------- commands


def commands(text: str) -> list[list[str]]:
    """The command lines of gscfd in a page, as words: from its shell blocks, and from spans that begin with python or
    gscfd. `gscfd COMMAND` is the module of the command."""
    blocks = [body for kind, body in FENCE.findall(text) if kind == "bash"]
    spans = [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in lines + [span for span in spans if span.startswith(("python ", "gscfd "))]:
        for part in re.split(r"&&|;", line):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                del words[0]
            if words and Path(words[0]).name == "python" and words[1:2] != ["-c"]:
                found.append(words[1:])
            elif words and Path(words[0]).name == "gscfd":
                found.append(["-m", *module_of(words[1:])])
    return [words for words in found if words[0] != "-m" or words[1].startswith("gscfd")]


def module_of(words: list[str]) -> list[str]:
    """The module and arguments of `gscfd WORDS...`; without a command of this name, gscfd itself."""
    known = COMMANDS.get(words[0]) if words else None
    return ["gscfd", *words] if known is None else [known[0].removesuffix(".__main__"), *words[1:]]


class Parsed(Exception):
    """The command line is one that the command takes."""


def prompt_alone(rest: list[str]) -> bool:
    """Whether a command takes what is no option as its prompt, and reads no further."""
    return len(rest) == 0 or (len(rest) == 1 and not rest[0].startswith("-"))


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[bool, str]:
    """Run `python WORDS...` in this process up to where its arguments have been read, or its help is printed.

    Returns whether there is such a command that takes them, and what it printed.
    """

    def stop_after(read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(*arguments: Any, **options: Any) -> Any:
            result = read(*arguments, **options)
            if options.get("return_unknown_args") and not prompt_alone(result[1]):
                return result  # the command looks at them itself, and reads again
            raise Parsed(result)

        return reading

    module = words[0] == "-m"
    accepted, said = True, io.StringIO()
    with monkeypatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(tyro, "cli", stop_after(tyro.cli))
        patch.setattr(argparse.ArgumentParser, "parse_args", stop_after(argparse.ArgumentParser.parse_args))
        patch.setattr(sys, "argv", words[1:] if module else words)
        patch.setenv("COLUMNS", "200")
        try:
            if module:
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                patch.syspath_prepend(str((ROOT / words[0]).parent))
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except Parsed:
            pass
        except (SystemExit, ImportError, OSError) as error:
            accepted = isinstance(error, SystemExit) and error.code == 0
    return accepted, said.getvalue()


def named_part(words: list[str]) -> list[str]:
    """The command without its options; gscfd.bench has parts with their own."""
    return words[: 3 if words[:2] == ["-m", "gscfd.bench"] else 2 if words[0] == "-m" else 1]


def refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> bool:
    named_alone = len(words) == (2 if words[0] == "-m" else 1)
    return not run([*words, "--help"] if named_alone else words, monkeypatch)[0]


def whole_help(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The text of all options of a command."""
    asked = ["--help", "--help-all"] if name == "-m gscfd.train" else ["--help"]
    return "".join(run([*name.split(), option], monkeypatch)[1] for option in asked)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the files that the documented commands read before anything else."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs" / "a-yellow-duck-0"
    run.mkdir(parents=True)
    for path in (run / "config.yaml", tmp_path / "mine.yaml"):
        path.write_text(to_yaml(Config()))
    (tmp_path / "prompts.txt").write_text("a red mug\n")


@pytest.mark.filterwarnings("ignore::RuntimeWarning:runpy")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists_and_takes_its_arguments(
    page: Path, workplace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [words for words in commands(page.read_text()) if refused(words, monkeypatch)] == []


@pytest.mark.filterwarnings("ignore::RuntimeWarning:runpy")
def test_commands_are_found_in_the_pages_and_wrong_ones_are_refused(
    workplace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "```bash\nA=1 python -m gscfd.train \\\n  --prompt 'a b' && hf get x  # or\n```\n`python\nscripts/x` `ls`"
    assert commands(text) == [["-m", "gscfd.train", "--prompt", "a b"], ["scripts/x"]]
    assert commands("`gscfd train 'a b'` `gscfd trian`") == [["-m", "gscfd.train", "a b"], ["-m", "gscfd", "trian"]]
    assert len(commands((ROOT / "README.md").read_text())) > 5
    wrong = "-m gscfd.trian|-m gscfd.train --promt x|-m gscfd.train --guidance dds|-m gscfd.export x --to stl"
    wrong += "|-m gscfd.train a b|-m gscfd trian"
    wrong += "|scripts/x.py|scripts/benchmark.py stap|scripts/benchmark.py noise --repeat-s 3|-m gscfd.train --preset x"
    for line in wrong.split("|"):
        assert refused(line.split(), monkeypatch), line
    for line in ("-m gscfd.train duck --guidance sds --coarse.no-perp-neg", "-m gscfd.export x --to spz"):
        assert not refused(line.split(), monkeypatch), line


@pytest.mark.filterwarnings("ignore::RuntimeWarning:runpy")
def test_every_option_that_a_page_names_is_one_of_a_command(workplace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [page.read_text() for page in PAGES]
    named = {" ".join(named_part(words)) for text in texts for words in commands(text)}
    known = {option for name in named for option in OPTION.findall(whole_help(name, monkeypatch))}
    spans = [span for text in texts for span in SPAN.findall(FENCE.sub("", text)) if span.startswith("--")]
    options = {option for span in spans for option in OPTION.findall(span)}
    assert {"--guidance", "--coarse.cfg", "--source-axes", "--init"} <= options & known and "--coarse.cgf" not in known
    groups = {option.rsplit(".", i)[0] for option in known for i in (1, 2)}
    assert options - known - groups == set()


# ------------------------------------------------------------------------------------------------------------- the site


def build(config: Path, site: Path) -> tuple[int, str]:
    """mkdocs' exit code and what it says; warnings are errors."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@needs_mkdocs
def test_the_site_builds_without_a_warning_and_its_generated_pages_are_whole(tmp_path: Path) -> None:
    code, said = build(ROOT / "mkdocs.yml", tmp_path)
    assert code == 0, said
    page = {path.stem: path.read_text() for path in tmp_path.glob("*.html")}
    assert "Make a splat" in page["index"] and "Unreleased" in page["changes"]
    assert all(f'id="{name}"' in page["presets"] for name in presets())
    settings = {name.removesuffix(".ply").removesuffix(".on") for name in flat(plain(Config()))} - {"edits"}
    settings = {name for name in settings if not name.startswith("refine.")}
    assert [name for name in settings if f"<code>--{name.replace('_', '-')}</code>" not in page["settings"]] == []
    assert "usage: gscfd export" in page["commands"] and "--source-axes" in page["commands"]
    assert "gscfd bench coverage" in page["commands"] and "--methods" in page["commands"]
    homes = [f"{home}.{name}" for name, home in gscfd._HOMES.items()]
    assert set(gscfd._HOMES) == set(gscfd.__all__)
    assert [name for name in homes if f'id="{name}"' not in page["api"]] == []
    assert "&lt;!-- " not in "".join(page.values()) and "<!-- settings" not in page["settings"]


@needs_mkdocs
@pytest.mark.parametrize(
    "text, words",
    [("[x](gone.md)", "gone.md"), ("[x](#gone)", "#gone"), ("![x](gone.png)", "gone.png"), ("plain words", "")],
)
def test_a_broken_link_stops_the_site(text: str, words: str, tmp_path: Path) -> None:
    """The control: the site's own settings, on one page; the last one is in order."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Title\n\n{text}\n")
    own = "hooks: []\nplugins: []\nextra_css: []\nextra_javascript: []\nnav: [index.md]\n"
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\n{own}")
    code, said = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert (code != 0) == bool(words) and words in said, said
