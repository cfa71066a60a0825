"""Makes a run for every prompt, method, setting and seed, in parallel: `gscfd sweep --matrix FILE`.

The run folders alone determine the remaining work, so repeating the command continues a stopped sweep.
"""

from __future__ import annotations

import sys
from contextlib import suppress

import tyro

from gscfd.cli import exit_code
from gscfd.sweeps.options import SweepOptions


def sweep(options: SweepOptions, arguments: list[str]) -> int:
    """Makes the runs, or lists them. Returns the exit code: 1 if any run failed."""
    from gscfd.errors import UserError
    from gscfd.sweeps.journal import JOURNAL, Busy
    from gscfd.sweeps.make import make_runs
    from gscfd.sweeps.plan import list_runs, plan_runs
    from gscfd.sweeps.table import check_table, write_table

    path = options.table or options.out / "runs.csv"
    check_table(path)
    runs = plan_runs(options, arguments)
    if options.dry_run:
        list_runs(options.out, runs)
        return 0
    try:
        progress = make_runs(options.out, runs, options)
    except Busy:
        raise  # the other sweep writes the table
    except (KeyboardInterrupt, UserError):
        if (options.out / JOURNAL).is_file():  # else nothing was started
            with suppress(UserError):
                write_table(options.out, runs, path)
        raise
    write_table(options.out, runs, path)
    print(f"{path}  {progress}")
    for name, error in progress.failed.items():
        print(f"  {options.out / name}: {error}")
    return 1 if progress.failed else 0


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments

    def command() -> int:
        options, rest = tyro.cli(SweepOptions, args=arguments, prog="gscfd sweep", return_unknown_args=True)
        return sweep(options, rest)

    return exit_code(command, interrupted="interrupted; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
