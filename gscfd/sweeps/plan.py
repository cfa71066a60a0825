"""The runs of a sweep, from its axes."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from gscfd.config import Config, ViewerConfig, flat, merged, to_yaml
from gscfd.distil.preflight import check_prompt
from gscfd.errors import UserError
from gscfd.runs.names import slug
from gscfd.runs.options import parse
from gscfd.sweeps.journal import JOURNAL, last_failures
from gscfd.sweeps.make import Run, State, check_starts, reached, states_of
from gscfd.sweeps.matrix import read_axes
from gscfd.sweeps.options import SweepOptions

PER_RUN = ("prompt", "seed", "resume", "overwrite", "viewer")
"""Options of a run that a sweep sets itself."""


def run_name(config: Config, setting: str) -> str:
    """Returns the name of a run's folder: the prompt, with a part of its checksum where the words alone do not tell it,
    the method, the setting unless it changes nothing, and the seed."""
    words = slug(config.prompt)
    if words.replace("-", " ") != config.prompt:
        words += "-" + hashlib.sha256(config.prompt.encode()).hexdigest()[:8]
    return "-".join([words, config.guidance, *([slug(setting)] if setting else []), str(config.seed)])


def plan_runs(options: SweepOptions, arguments: list[str]) -> list[Run]:
    """Returns all runs of the sweep, grouped by prompt so that each text is encoded once.

    arguments: for gscfd.train. Raises UserError for errors that can be detected before the first run.
    """
    for name in PER_RUN:
        if any(re.split("[=.]", a)[0] in (f"--{name}", f"--no-{name}") for a in arguments):
            raise UserError(f"{name}: expected no --{name} in a sweep; it applies to a single run")
    axes = read_axes(options)
    parsed = [parse([*arguments, *(["--guidance", name] if name else [])]) for name in axes.methods]
    bases = [replace(config, resume=None, overwrite=False, viewer=ViewerConfig()) for config in parsed]
    check_prompts(axes.prompts, bases[0])
    varied = [
        (changed(base, name, changes), name, changes) for name, changes in axes.settings.items() for base in bases
    ]
    check_distinct(varied)
    runs = []
    for prompt in axes.prompts:
        for base, setting, changes in varied:
            for seed in axes.seeds:
                config = replace(base, prompt=prompt, seed=seed)
                folder = options.out / run_name(config, setting if changes else "")
                runs.append(Run(folder, replace(config, out=folder), setting, flat(changes)))
    return runs


def changed(config: Config, name: str, changes: dict[str, Any]) -> Config:
    """Returns the config with the changes of a setting. Raises UserError that names the setting."""
    try:
        return merged(config, changes)
    except UserError as error:
        raise UserError(f"settings, {name!r}: {error}") from None


def check_distinct(varied: list[tuple[Config, str, dict[str, Any]]]) -> None:
    """Raises UserError if two of the configs, with names and changes of their settings, give equal runs or folders."""
    seen: dict[str, str] = {}
    for config, name, changes in varied:
        for key in (to_yaml(config), run_name(config, name if changes else "")):
            if key in seen:
                told = f"the same run or folder with {seen[key]!r} and {name!r}"
                raise UserError(f"settings: expected each run once, got {told}; change or rename one")
            seen[key] = name


def check_prompts(prompts: dict[str, str], config: Config) -> None:
    """Raises a UserError that names every place with words unknown to the toybox teachers. prompts: with places."""
    errors = []
    for prompt, place in prompts.items():
        try:
            check_prompt(replace(config, prompt=prompt))
        except UserError as error:
            errors.append(f"{place}: {error}")
    if errors:
        raise UserError("\n".join(errors))


def list_runs(out: Path, runs: list[Run]) -> None:
    """Prints every run with its state. out: the sweep's folder. Raises UserError for a run with other settings, and for
    a new one that starts from a file that is not there."""
    failures = last_failures(out / JOURNAL)
    states = states_of(runs, failures)
    check_starts(runs, states)
    for run in runs:
        state = states[run.name]
        more = {"failed": failures.get(run.name, ""), "stopped": reached(run.folder), "running": reached(run.folder)}
        print(f"{state:9} {run.folder}  {more.get(state, '')}".rstrip())
    counts = Counter(states.values())
    print(f"{len(runs)} runs: " + ", ".join(f"{counts[state]} {state}" for state in get_args(State) if counts[state]))
