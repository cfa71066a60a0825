"""Generated parts of the documentation: a hook of mkdocs.yml, and a docstring extension.

README.md is the first page and CHANGELOG.md the last. Repository files that a page links to become part of the site at
their own path, so that links work in the repository and on the site. Lines `<!-- presets -->`, `<!-- settings -->` and
`<!-- commands -->` are replaced by content generated from the code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import json
import os
import posixpath
import re
import runpy
import sys
import types
import typing
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import griffe
import tyro
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from gscfd.__main__ import COMMANDS
from gscfd.config import Config, TeacherStage, load_preset, presets

ROOT = Path(__file__).parents[1]
SITE = {"README.md": "index.md", "CHANGELOG.md": "changes.md"}
"""Site path of repository files that differ from their own path or, for docs/, from the path below it."""
LINK = re.compile(r"\]\((?!\w+:)([^)\s#]+)(#[^)\s]*)?\)")
HELP_WIDTH = "80"
GALLERY_CAPTION = (
    "*By the built-in teachers with the default settings of 2026-11-29, one seed each, not cherry-picked. The last ten "
    "are pairs of object and color that the teachers never saw. One of the twenty has wrong parts "
    "([which one, and figures](docs/results.md)). Drag one to turn it.*"
)
PICTURE = re.compile(r"^!\[[^]]*\]\(docs/images/gallery\.png\)\n\n\*.*?\*\n\n", re.MULTILINE | re.DOTALL)
"""The picture of the gallery in README.md, with its caption; the site has the splats themselves."""


# ------------------------------------------------------------------------------------------------------------- the hook


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds README, the changelog and all files outside docs/ that the pages link to."""
    waiting = [*SITE, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(File.generated(config, SITE.get(path, path), abs_src_path=str(ROOT / path)))
        targets = links(path) if path.endswith(".md") else []
        waiting += (new := [t for t in dict.fromkeys(targets) if t not in seen and not t.startswith("docs/")])
        seen.update(new)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns the page with generated parts inserted and links converted to site links."""
    if page.file.src_uri == SITE["README.md"]:
        markdown = PICTURE.sub(lambda _: gallery(), markdown, count=1)
    for name, make in GENERATED.items():
        marker = f"<!-- {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return relinked(markdown, repository_path(page.file.src_uri))


# ---------------------------------------------------------------------------------------------------------------- links


def repository_path(uri: str) -> str:
    """Returns the repository path of a page of the site."""
    named = {site: path for path, site in SITE.items()}
    return named.get(uri) or (f"docs/{uri}" if (ROOT / "docs" / uri).exists() else uri)


def site_path(path: str) -> str:
    """Returns the site path of a file of the repository."""
    return SITE.get(path, path.removeprefix("docs/"))


def target(path: str, link: str) -> str | None:
    """Returns the repository file that a link in the file `path` refers to; None if there is none."""
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return found if (ROOT / found).is_file() else None


def links(path: str) -> list[str]:
    """Returns the repository files that a page links to."""
    found = [target(path, match[1]) for match in LINK.finditer((ROOT / path).read_text())]
    return [name for name in found if name is not None]


def relinked(markdown: str, path: str) -> str:
    """Returns the text of the repository file `path` with site links."""

    def of_site(match: re.Match[str]) -> str:
        found = target(path, match[1])
        if found is None:
            return match[0]
        here = posixpath.dirname(site_path(path)) or "."
        return f"]({posixpath.relpath(site_path(found), here)}{match[2] or ''})"

    return LINK.sub(of_site, markdown)


# -------------------------------------------------------------------------------------------------------------- gallery


def gallery() -> str:
    """Returns the splats of docs/gallery as figures; gallery.js puts their pages in place of the pictures."""
    figures = []
    for splat in json.loads((ROOT / "docs" / "gallery" / "gallery.json").read_text()):
        prompt, command, place = html.escape(splat["prompt"]), html.escape(splat["command"]), f"gallery/{splat['name']}"
        picture = f'<img src="{place}.webp" alt="{prompt}" width="256" height="256" loading="lazy">'
        caption = f"<figcaption>{prompt}, seed {splat['seed']}<code>{command}</code></figcaption>"
        figures.append(f'<figure data-page="{place}.html"><div>{picture}</div>{caption}</figure>')
    whole = "\n".join(figures)
    return f'<div class="gallery">\n{whole}\n</div>\n\n{GALLERY_CAPTION}\n\n'


# -------------------------------------------------------------------------------------------------------------- presets


def presets_page() -> str:
    """Returns a table of all presets, then each file unchanged, with the sources of its values."""
    folder = ROOT / "configs"
    rows = [["preset", "coarse", "refine", "Gaussians at the start", "at most"]]
    parts = []
    for name in sorted(presets(), key=lambda name: (name != "toybox", name)):
        config, text = load_preset(name), (folder / f"{name}.yaml").read_text()
        most = max(stage.densify.max_count for stage in (config.coarse, config.refine) if stage.steps)
        stages = [stage_text(config.stage("coarse")), stage_text(config.stage("refine"))]
        rows.append([f"[`{name}`](#{name})", *stages, str(config.init.count), str(most)])
        parts.append(f"## {name}\n\n```yaml\n{text}```\n")
    return table(rows) + "\n" + "\n".join(parts)


def stage_text(stage: TeacherStage) -> str:
    if not stage.steps:
        return "none"
    return f"`{stage.teacher}`, {stage.steps} steps, views: {stage.views}, guidance: {stage.scale:g}"


# ------------------------------------------------------------------------------------------------------------- settings


def settings_page() -> str:
    """Returns every setting with its values, default and meaning: one table per dataclass of gscfd.config."""
    config, module = Config(), griffe.load("gscfd.config", search_paths=[str(ROOT)])
    nested = [f.name for f in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, f.name))]
    nested = [name for name in nested if name not in ("coarse", "refine")]
    sections = [section("The run", "", [config], module)]
    sections += [section(name.capitalize(), f"{name}.", [getattr(config, name)], module) for name in nested]
    stages = [config.coarse, config.refine]
    sections.append(section("The stages", "coarse.", stages, module))
    for f in dataclasses.fields(config.coarse):
        parts = [getattr(stage, f.name) for stage in stages]
        if dataclasses.is_dataclass(parts[0]):
            sections.append(section(f"The stages: {f.name}", f"coarse.{f.name}.", parts, module))
    sections.append(section("The polish: lr", "polish.lr.", [config.polish.lr], module))
    return "\n".join(sections)


def section(title: str, prefix: str, values: Sequence[Any], module: griffe.Object | griffe.Alias) -> str:
    """Returns the table of one dataclass. values: the defaults, one per column."""
    kind = type(values[0])
    hints, annotated = typing.get_type_hints(kind), typing.get_type_hints(kind, include_extras=True)
    described = module[kind.__name__]
    columns = ["default"] if len(values) == 1 else ["coarse", "refine"]
    rows = [["setting", "value", *columns, "meaning"]]
    for f in dataclasses.fields(kind):
        hidden = tyro.conf.Suppress in getattr(annotated[f.name], "__metadata__", ())
        if hidden or dataclasses.is_dataclass(getattr(values[0], f.name)):
            continue
        name = alias(annotated[f.name])
        option = f"`--{prefix.rstrip('.') if name == '' else name or prefix + f.name.replace('_', '-')}`"
        defaults = [default_text(getattr(value, f.name)) for value in values]
        rows.append([option, kind_text(hints[f.name]), *defaults, meaning(described, f.name)])
    return f"## {title}\n\n{described.docstring.value}\n\n{table(rows)}"


def meaning(described: griffe.Object | griffe.Alias, name: str) -> str:
    """Returns the docstring below a field as one line."""
    docstring = described.all_members[name].docstring
    if docstring is None:
        raise ValueError(f"{described.path}.{name}: expected a docstring below it")
    return html.escape(" ".join(docstring.value.split()), quote=False)


def alias(hint: Any) -> str | None:
    """Returns the option's name if it differs from the setting's; "" if it is named after the enclosing settings."""
    names = [getattr(data, "name", None) for data in getattr(hint, "__metadata__", ())]
    return next((name for name in names if isinstance(name, str)), None)


def kind_text(hint: Any) -> str:
    """Returns the values of a setting, as written on the command line."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return kind_text(next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        return " ".join("..." if a is Ellipsis else kind_text(a) for a in arguments)
    return {bool: "flag", str: "text", Path: "path", int: "integer", float: "number"}[hint]


def default_text(value: Any) -> str:
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(default_text(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else f"{value}"


# ------------------------------------------------------------------------------------------------------------- commands


def commands_page() -> str:
    """Returns the help of every gscfd command, as printed."""
    titles = {module.removesuffix(".__main__"): f"gscfd {name}" for name, (module, _) in COMMANDS.items()}
    titles["gscfd"] = "gscfd"
    parts = []
    for name in commands():
        text = help_of(name)
        lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
        title = titles.get(name, f"python -m {name}")
        parts.append(f"## {title}\n\n```text\n{lines}\n```\n")
        if name == "gscfd.train":
            parts.append("All its options are the [settings](settings.md).\n")
        for part in subcommands(text):
            own = "\n".join(line.rstrip() for line in help_of(name, part).strip().splitlines())
            parts.append(f"### {title} {part}\n\n```text\n{own}\n```\n")
    return "\n".join(parts)


def commands() -> list[str]:
    """Returns the modules that `python -m` runs."""
    found = []
    for path in sorted((ROOT / "gscfd").rglob("*.py")):
        if '\nif __name__ == "__main__":' in path.read_text():
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    return sorted(found, key=lambda name: (name != "gscfd.train", "toybox" in name, name))


def subcommands(text: str) -> list[str]:
    """Returns the parts of a command whose help names parts: usage: ... {papers,pipeline}."""
    found = re.search(r"^usage: .*\{([\w,-]+)\}$", text, re.MULTILINE)
    return found[1].split(",") if found else []


def help_of(name: str, *part: str) -> str:
    """Returns the output of `python -m NAME PART --help`."""
    said = io.StringIO()
    with arguments([name, *part, "--help"]), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    return said.getvalue()


@contextlib.contextmanager
def arguments(words: list[str]) -> Iterator[None]:
    """Sets the command line of a module run inside this process, in a terminal of fixed width."""
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ, COLUMNS=HELP_WIDTH),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


# ----------------------------------------------------------------------------------------------------------- docstrings


class Arguments(griffe.Extension):
    """Formats the arguments in a docstring as a list: sentences that start with an argument's name and a colon."""

    def on_function(self, *, func: griffe.Function, **others: Any) -> None:
        names = "|".join(re.escape(parameter.name) for parameter in func.parameters)
        if func.docstring is not None and names:
            begin = rf"(?:^|(?<=\.)\s)((?:{names})(?:, (?:{names}))*): "
            func.docstring.value = re.sub(begin, r"\n\n- **\1**: ", func.docstring.value, flags=re.MULTILINE)


# --------------------------------------------------------------------------------------------------------------- tables


def table(rows: list[list[str]]) -> str:
    """Returns a Markdown table; the first row is the header."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


GENERATED = {"presets": presets_page, "settings": settings_page, "commands": commands_page}
