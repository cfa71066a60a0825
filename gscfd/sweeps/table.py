"""The results of a sweep as one table with a row per run."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from gscfd.config import check
from gscfd.errors import UserError
from gscfd.files import atomic_write, write_rows
from gscfd.sweeps.journal import JOURNAL, last_failures, read_rows
from gscfd.sweeps.make import Run, last_row, states_of


def check_table(path: Path) -> None:
    """Raises UserError if a table cannot be written to this path."""
    check(path.suffix in (".csv", ".parquet"), "table", "a .csv or .parquet file", str(path))
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError("table: expected pyarrow for a .parquet file, not installed: pip install 'gscfd[sweep]'")


def table_rows(out: Path, runs: list[Run]) -> list[dict[str, Any]]:
    """Returns a row for every run. out: folder of the journal.

    Columns: run (folder), prompt, method, setting, seed, a column for every setting that the matrix changes, state,
    attempts, seconds (of all attempts, without those lost with their workers), gaussians (at the last step), host (of
    the last attempt) and error (if failed). Raises UserError for a run with other settings.
    """
    failures, history = last_failures(out / JOURNAL), defaultdict[str, list[dict[str, Any]]](list)
    for row in read_rows(out / JOURNAL):
        history[row["run"]].append(row)
    states = states_of(runs, failures)
    columns = list(dict.fromkeys(name for run in runs for name in run.changes))
    rows = []
    for run in runs:
        starts = [row for row in history[run.name] if row.get("event") == "started"]
        rows.append(
            {
                "run": str(run.folder),
                "prompt": run.config.prompt,
                "method": run.config.guidance,
                "setting": run.setting,
                "seed": run.config.seed,
                **{name: plain_value(run.changes.get(name)) for name in columns},
                "state": states[run.name],
                "attempts": len(starts),
                "seconds": round(sum(float(row.get("seconds", 0)) for row in history[run.name]), 3),
                "gaussians": last_row(run.folder / "stats.jsonl").get("gaussians"),
                "host": starts[-1].get("host") if starts else None,
                "error": failures.get(run.name) if states[run.name] == "failed" else None,
            }
        )
    return rows


def plain_value(value: Any) -> Any:
    """Returns a value that fits a cell: lists become text."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def write_table(out: Path, runs: list[Run], path: Path) -> None:
    """Writes the table of all runs as .csv or .parquet, by the ending of the path, and keeps the rows that it has of
    other runs. out: as for `table_rows`."""
    found = [*kept_rows(path, out), *table_rows(out, runs)]
    rows = list({os.path.abspath(row["run"]): row for row in found}.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        write_rows(rows, path)
        return
    import pyarrow
    import pyarrow.parquet

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: one_type([row.get(name) for row in rows]) for name in names}
    with atomic_write(path) as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)


def kept_rows(path: Path, out: Path) -> list[dict[str, Any]]:
    """Returns the rows of an earlier table whose runs are still there; none of a file that is no table of a sweep.

    out: as above; a run in it is found from any working folder.
    """
    if not path.is_file():
        return []
    rows: list[dict[str, Any]]
    try:
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                rows = list(csv.DictReader(file))
        else:
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(path).to_pylist()
    except (csv.Error, ValueError, OSError):  # pyarrow's errors are of the last two
        return []
    told = {"run", "prompt", "method", "setting", "seed", "state"}
    rows = [row for row in rows if told <= row.keys()]
    for row in rows:
        here = out / Path(str(row["run"])).name
        if not Path(str(row["run"])).is_dir() and here.is_dir():
            row["run"] = str(here)
    return [row for row in rows if Path(str(row["run"])).is_dir()]


def one_type(values: list[Any]) -> list[Any]:
    """Returns the values, as text if they are of several types, which a column of parquet cannot hold."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and not kinds <= {int, float}:
        return [None if value is None else str(value) for value in values]
    return [float(value) if kinds == {int, float} and value is not None else value for value in values]
