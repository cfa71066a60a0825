"""The runs of a sweep, from prompts, seeds and methods."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

from gscfd.config import Config, MethodName, ViewerConfig, check
from gscfd.distil.preflight import check_prompt
from gscfd.errors import UserError
from gscfd.runs.names import slug
from gscfd.runs.options import parse
from gscfd.sweeps.journal import JOURNAL, last_failures
from gscfd.sweeps.make import Run, State, reached, states_of
from gscfd.sweeps.options import SweepOptions

MOST_SEEDS = 100_000
PER_RUN = ("prompt", "seed", "resume", "overwrite", "viewer")
"""Options of a run that a sweep sets itself."""


def read_prompts(path: Path) -> dict[str, int]:
    """Returns the prompts of the file with their line numbers, counted from 1, in order.

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
    return prompts


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
    names: list[str | None] = [name.strip() for name in text.split(",")]
    for name in names:
        check(name in get_args(MethodName), "guidance", f"{', '.join(get_args(MethodName))}, separated by commas", name)
    check(len(set(names)) == len(names), "guidance", "each method once", text)
    return names


def run_name(config: Config) -> str:
    """Of its folder: the prompt, with a part of its checksum where the words alone do not tell it, method and seed."""
    words = slug(config.prompt)
    if words.replace("-", " ") != config.prompt:
        words += "-" + hashlib.sha256(config.prompt.encode()).hexdigest()[:8]
    return f"{words}-{config.guidance}-{config.seed}"


def plan_runs(options: SweepOptions, arguments: list[str]) -> list[Run]:
    """Returns all runs of the sweep, grouped by prompt so that each text is encoded once.

    arguments: for gscfd.train. Raises UserError for errors that can be detected before the first run.
    """
    for name in PER_RUN:
        if any(re.split("[=.]", a)[0] in (f"--{name}", f"--no-{name}") for a in arguments):
            raise UserError(f"{name}: expected no --{name} in a sweep; it applies to a single run")
    prompts, seeds = read_prompts(options.prompts), read_seeds(options.seeds)
    parsed = [parse([*arguments, *(["--guidance", name] if name else [])]) for name in read_methods(options.guidance)]
    bases = [replace(config, resume=None, overwrite=False, viewer=ViewerConfig()) for config in parsed]
    check_prompts(prompts, options.prompts, bases[0])
    runs = []
    for prompt in prompts:
        for base in bases:
            for seed in seeds:
                config = replace(base, prompt=prompt, seed=seed)
                folder = options.out / run_name(config)
                runs.append(Run(folder, replace(config, out=folder)))
    return runs


def check_prompts(prompts: dict[str, int], path: Path, config: Config) -> None:
    """Raises a UserError that names every line with words unknown to the toybox teachers."""
    errors = []
    for prompt, line in prompts.items():
        try:
            check_prompt(replace(config, prompt=prompt))
        except UserError as error:
            errors.append(f"{path}, line {line}: {error}")
    if errors:
        raise UserError("\n".join(errors))


def list_runs(out: Path, runs: list[Run]) -> None:
    """Prints every run with its state. out: the sweep's folder. Raises UserError for a run with other settings."""
    failures = last_failures(out / JOURNAL)
    states = states_of(runs, failures)
    for run in runs:
        state = states[run.name]
        more = {"failed": failures.get(run.name, ""), "stopped": reached(run.folder), "running": reached(run.folder)}
        print(f"{state:9} {run.folder}  {more.get(state, '')}".rstrip())
    counts = Counter(states.values())
    print(f"{len(runs)} runs: " + ", ".join(f"{counts[state]} {state}" for state in get_args(State) if counts[state]))
