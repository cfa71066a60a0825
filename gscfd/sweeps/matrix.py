"""The axes of a sweep: prompts, methods, seeds and settings, from a matrix file or from options."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from gscfd.config import MethodName, check
from gscfd.errors import UserError
from gscfd.sweeps.options import SweepOptions

MOST_SEEDS = 100_000
AXES = ("prompts", "methods", "seeds", "settings")
"""Keys of a matrix file."""
SET_BY_SWEEP = ("prompt", "seed", "guidance", "out", "preset", "resume", "overwrite", "viewer", "device")
"""Settings of a run that the settings of a matrix cannot change: other axes, the sweep or its options set them."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A sweep makes a run for every combination."""

    prompts: dict[str, str]
    """Places of the prompts, for errors."""
    methods: list[str | None]
    """None: the preset's."""
    seeds: list[int]
    settings: dict[str, dict[str, Any]]
    """Changes of the preset by the name of the setting."""


def read_axes(options: SweepOptions) -> Axes:
    """Returns the axes of the matrix file, or else those of the options. Raises UserError."""
    if (options.prompts is None) == (options.matrix is None):
        raise UserError("prompts: expected either --prompts FILE or --matrix FILE, got both or neither; use one")
    if options.matrix is not None:
        for name in ("seeds", "guidance"):
            if getattr(options, name) is not None:
                key = "methods" if name == "guidance" else name
                raise UserError(f"{name}: expected no --{name} beside --matrix; write {key!r} into {options.matrix}")
        return read_matrix(options.matrix)
    assert options.prompts is not None
    return Axes(
        prompts=read_prompts(options.prompts),
        methods=read_methods(options.guidance),
        seeds=read_seeds(options.seeds or "0"),
        settings={"": {}},
    )


# --------------------------------------------------------------------------------------------------------- matrix file


class UniqueKeys(yaml.SafeLoader):
    """Loader that refuses a mapping with the same key twice, of which yaml keeps the last, and reads 4:8 as text, which
    yaml 1.1 takes for a number to base 60."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise UserError(f"matrix: expected each key once, got {key!r} twice; remove one")
        return super().construct_mapping(node, deep)


def read_int(loader: UniqueKeys, node: yaml.ScalarNode) -> int | str:
    return str(node.value) if ":" in node.value else loader.construct_yaml_int(node)


UniqueKeys.add_constructor("tag:yaml.org,2002:int", read_int)


def read_matrix(path: Path) -> Axes:
    """Returns the axes of a yaml file with the keys of AXES, of which only `prompts` is required.

    Raises UserError for a file that cannot be read, unknown keys, empty axes and values given twice.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), UniqueKeys)
    except OSError as error:
        raise UserError(f"matrix: expected a yaml file, got {path} ({error.strerror}); check the path") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"matrix: expected yaml in {path}, got {reason}; correct the file") from None
    check(isinstance(content, dict), "matrix", f"a mapping with the keys {', '.join(AXES)} in {path}", content)
    for key in content:
        check(key in AXES, "matrix", f"the keys {', '.join(AXES)} in {path}", key)
    if "prompts" not in content:
        raise UserError(f"matrix: expected 'prompts' in {path}, got none; add a list of them")
    prompts = [str(prompt).strip() for prompt in axis(content, "prompts", path)]
    methods = axis(content, "methods", path) if "methods" in content else [None]
    settings = content.get("settings", {"": {}})
    check(isinstance(settings, dict) and len(settings) > 0, "matrix", "settings by name, at least one", settings)
    return Axes(
        prompts={prompt: f"{path}, prompt {i}" for i, prompt in enumerate(prompts, 1)},
        methods=[None if method is None else known_method(method, "matrix") for method in methods],
        seeds=matrix_seeds(content, path),
        settings={str(name): checked_setting(str(name), changes) for name, changes in settings.items()},
    )


def axis(content: dict[str, Any], name: str, path: Path) -> list[Any]:
    """Returns an axis of the file. Raises UserError if it is no list, is empty or holds an entry twice or blank."""
    entries: list[Any] = content[name]
    check(isinstance(entries, list) and len(entries) > 0, "matrix", f"a list of {name} in {path}, not empty", entries)
    texts = [str(entry).strip() for entry in entries]
    for i, text in enumerate(texts):
        check(bool(text) and isinstance(entries[i], (str, int)), "matrix", f"texts as {name} in {path}", entries[i])
        if text in texts[:i]:
            raise UserError(f"matrix: expected each of the {name} once in {path}, got {text!r} twice; remove one")
    return entries


def matrix_seeds(content: dict[str, Any], path: Path) -> list[int]:
    """Returns the seeds: a list of numbers, or a number or text as for --seeds."""
    seeds = content.get("seeds", "0")
    if isinstance(seeds, list):
        seeds = ",".join(map(str, axis(content, "seeds", path)))
    return read_seeds(str(seeds))


def checked_setting(name: str, content: Any) -> dict[str, Any]:
    """Returns the changes of a setting; an empty one is the preset. Raises UserError for settings of the sweep."""
    changes: dict[str, Any] = {} if content is None else content
    check(
        isinstance(changes, dict), f"settings, {name!r}", "changes as in a preset, such as noise: {beta: 1.0}", changes
    )
    for key in changes:
        if key in SET_BY_SWEEP:
            raise UserError(f"settings, {name!r}: expected no {key!r}, which the sweep or another axis sets; remove it")
    return changes


# -------------------------------------------------------------------------------------------------------------- options


def read_prompts(path: Path) -> dict[str, str]:
    """Returns the prompts of the file with their places, file and line counted from 1, in order.

    Raises UserError if the file cannot be read, is empty or contains a prompt twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"prompts: expected a text file with one prompt per line, got {path} ({reason})") from None
    prompts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        prompt = line.strip()
        if not prompt or prompt.startswith("#"):
            continue
        if prompt in prompts:
            raise UserError(f"prompts: expected each once, got {prompt!r} in lines {prompts[prompt]} and {number}")
        prompts[prompt] = number
    if not prompts:
        raise UserError(f"prompts: expected at least one in {path}, got none; write one per line")
    return {prompt: f"{path}, line {number}" for prompt, number in prompts.items()}


def read_seeds(text: str) -> list[int]:
    """Parses seeds and ranges, whose end is excluded: "0,3,7:9" is 0, 3, 7, 8. Raises UserError."""
    expected = "seeds and ranges, each seed once, such as 0:8 (0 to 7) or 0,3,7"
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?::(\d+))?\s*", part)
        if match is None:
            raise UserError(f"seeds: expected {expected}, got {part!r} in {text!r}")
        first = int(match[1])
        end = int(match[2]) if match[2] else first + 1
        check(first < end, "seeds", f"{expected}, and each range ascending", part)
        check(end - first <= MOST_SEEDS, "seeds", f"at most {MOST_SEEDS}", part)
        seeds += range(first, end)
    check(len(set(seeds)) == len(seeds), "seeds", expected, text)
    return seeds


def read_methods(text: str | None) -> list[str | None]:
    """Returns the method names of --guidance; None stands for the preset's method. Raises UserError for an unknown
    name."""
    if text is None:
        return [None]
    names: list[str | None] = [known_method(name.strip(), "guidance") for name in text.split(",")]
    check(len(set(names)) == len(names), "guidance", "each method once", text)
    return names


def known_method(name: str, option: str) -> str:
    """Returns the name. Raises UserError, which names the option, if it is no method."""
    check(name in get_args(MethodName), option, f"methods among {', '.join(get_args(MethodName))}", name)
    return name
