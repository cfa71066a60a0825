"""Runs of the command line in processes of their own, which start at once: everything is loaded before they fork.

Reads a JSON list of a command's arguments, a function of gscfd and a number, answers with the child's process id; reads
another line, waits for the child's end and answers with its exit status. So the id stays the child's for as long as the
asker may kill it. The child kills itself before that call of the function, such as "gscfd.files:os.replace", if one is
named.
"""

import functools
import importlib
import itertools
import json
import os
import signal
import sys
from typing import NoReturn

import torch

from gscfd import train
from gscfd.distil import loading
from gscfd.runs import folder as runs_folder
from gscfd.teachers.load import load_teacher


def die_at(function: str, number: int) -> None:
    """Make the process kill itself before its `number`-th call of a function, counted from 1."""
    module, _, path = function.partition(":")
    *outer, name = path.split(".")
    place = functools.reduce(getattr, outer, importlib.import_module(module))
    original, calls = getattr(place, name), itertools.count(1)

    def call(*arguments: object, **options: object) -> object:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(place, name, call)


def live(arguments: list[str], function: str, number: int) -> NoReturn:
    """In the child: the command, silent."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    if function:
        die_at(function, number)
    os._exit(train.main(arguments))


def main() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    load = functools.cache(load_teacher)
    vars(runs_folder)["TURN_SIZE"] = 64
    vars(loading)["load_teacher"] = load
    for name in ("toybox/multiview", "toybox/singleview"):
        load(name, device=torch.device("cpu"), dtype=torch.float32)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            live(*json.loads(line))
        print(child, file=answers)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers)


if __name__ == "__main__":
    main()
