"""Measures a sweep on a local Ray cluster of several nodes: `python scripts/sweep_cluster.py --out FILE`. Writes
Markdown.

Tiny tasks stand for runs, so that what is measured is the sweep itself: overhead per run, the object store, the head
node, a node that is killed, and one that joins late. The last table applies the figures to 1 000 GPUs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from gscfd.config import Config
from gscfd.sweeps.journal import JOURNAL, Journal
from gscfd.sweeps.make import Progress, Run, carry_out
from gscfd.sweeps.workers import Outcome, RayPool, Worker

SECONDS_OF_RUN = 21 * 60
"""Of a run with mvdream-sd21 on an RTX 4090 (docs/sweeps.md), which the paper estimate assumes."""
GPUS = 1000
TICK = os.sysconf("SC_CLK_TCK")
KILL_TASKS = 300
"""Tasks of a sweep whose node is killed. Those that are left when the late node is at work take no time."""
OVER = "over"
"""File in the home folder that ends all tasks."""
PENDING = 1000
"""Answers that the sweep waits for at a time with 1 000 workers."""
LOOKS_PER_RUN = 2
"""Of the pool, for each answer at the worst."""
LATE_SECONDS = 900
"""Limit for the start of a late node on a busy machine."""
STORE_BYTES = 80 * 2**20
"""Size of a node's object store, near Ray's minimum."""
PATIENCE = {
    "RAY_agent_register_timeout_ms": "1800000",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_register_timeout_seconds": "1800",
}
"""Ray's limits for the start of its own processes: 30 to 60 s are too short on a busy machine. The second is also how
long a raylet that has died is waited for."""


class TinyWorker(Worker):
    """Sleeps as long as the prompt says instead of making a run, or until the file OVER exists, and adds a line to
    made.txt in the home folder."""

    def make(self, config: Config) -> Outcome:
        began = time.monotonic()
        while time.monotonic() - began < float(config.prompt) and not (self.home / OVER).exists():
            time.sleep(0.1)
        with open(self.home / "made.txt", "a") as file:
            file.write(f"{config.out}\n")
        return Outcome("finished", seconds=time.monotonic() - began)


def start_cluster() -> Any:
    """Returns a cluster with a head that makes no runs."""
    os.environ.update(PATIENCE)
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    cluster.add_node(num_cpus=0, object_store_memory=STORE_BYTES, include_dashboard=False)
    return cluster


def add_node(cluster: Any) -> Any:
    """Adds a node with one core."""
    return cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


def tiny_runs(folder: Path, count: int, seconds: float) -> list[Run]:
    return [
        Run(folder / f"run-{i}", Config(prompt=str(seconds), seed=i, out=folder / f"run-{i}")) for i in range(count)
    ]


def events(folder: Path) -> list[dict[str, Any]]:
    """Returns the whole rows of the journal, also while it is written."""
    lines = (folder / JOURNAL).read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def process_figures(pid: int) -> tuple[float, float]:
    """Returns the processor seconds and the resident MiB of a process."""
    stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return (int(stat[11]) + int(stat[12])) / TICK, resident / 2**20


def head_processes(cluster: Any) -> dict[str, int]:
    """Returns the processes of the head node whose load grows with the sweep, by name."""
    found = cluster.head_node.all_processes
    return {"GCS": found["gcs_server"][0].process.pid, "raylet": found["raylet"][0].process.pid, "sweep": os.getpid()}


def store_bytes(ray: Any) -> float:
    """Returns the bytes in the object stores of all nodes."""
    total, free = (ray.cluster_resources(), ray.available_resources())
    return float(total["object_store_memory"] - free.get("object_store_memory", 0.0))


def made_twice(folder: Path) -> int:
    """Returns the number of tasks that were completed more than once."""
    made = (folder / "made.txt").read_text().split()
    return len(made) - len(set(made))


def sweep(folder: Path, pool: RayPool, runs: list[Run]) -> tuple[float, Progress]:
    """Makes the runs with the pool. Returns the seconds from the first start to the end, and the progress."""
    journal, progress = Journal(folder / JOURNAL), Progress(len(runs))
    while not pool.free():
        pool.wait(1.0)
    start = time.perf_counter()
    carry_out(runs, pool, journal, progress, retries=2, say=lambda text: None, show=lambda: None)
    spent = time.perf_counter() - start
    journal.close()
    return spent, progress


def pool_of(folder: Path, cluster: Any, workers: int) -> RayPool:
    """Connects to the cluster from the folder, which becomes the home of the workers."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    Journal(folder / JOURNAL).close()
    return RayPool(
        folder / JOURNAL, "cpu", workers=workers, threads=1, gpus=0, address=cluster.address, worker=TinyWorker
    )


def tiny_tasks(folder: Path, cluster: Any, workers: int, count: int) -> dict[str, float]:
    """Returns the figures of many tasks that take no time."""
    pool = pool_of(folder, cluster, workers)
    while not all(slot.place for slot in pool.slots):
        pool.wait(1.0)
    before = {name: process_figures(pid) for name, pid in head_processes(cluster).items()}
    stored = store_bytes(pool.ray)
    spent, progress = sweep(folder, pool, tiny_runs(folder, count, 0.0))
    stored = store_bytes(pool.ray) - stored
    assert progress.finished == count and made_twice(folder) == 0
    found = {"seconds": spent, "ms per run": 1000 * spent / count, "stored": stored}
    for name, pid in head_processes(cluster).items():
        cpu, resident = process_figures(pid)
        found |= {f"{name} ms": 1000 * (cpu - before[name][0]) / count, f"{name} MiB": resident - before[name][1]}
    found["look ms"] = look(pool, folder)
    pool.stop()
    return found


def look(pool: RayPool, folder: Path) -> float:
    """Returns the milliseconds of the sweep's look at as many pending answers as 1 000 workers give."""
    (run,) = tiny_runs(folder, 1, 3600.0)
    actor, looks = pool.slots[0].actor, 10
    pending = [actor.make.remote(run.config) for _ in range(PENDING)]
    start = time.perf_counter()
    for _ in range(looks):
        pool.ray.wait(pending, num_returns=len(pending), timeout=0)
    return 1000 * (time.perf_counter() - start) / looks


def killed_and_joined(folder: Path, cluster: Any, nodes: list[Any], seconds: float) -> dict[str, float]:
    """Returns the seconds from a node's kill until its run is reported lost and until it is started again elsewhere,
    and from a late node's start until its first run. Each task takes `seconds`."""
    workers = len(nodes)
    pool = pool_of(folder, cluster, workers)
    times: dict[str, float] = {}

    def at_work(since: float) -> set[int]:
        return {row["pid"] for row in events(folder) if row["event"] == "started" and row["time"] <= since}

    def disturb() -> None:
        while sum(row["event"] == "started" for row in events(folder)) < workers:
            time.sleep(0.1)
        time.sleep(seconds / 4)
        times["killed"] = time.time()
        cluster.remove_node(nodes[0], allow_graceful=False)
        while not any(row["event"] == "lost" for row in events(folder)):
            time.sleep(0.1)
        times["joined"] = time.time()
        add_node(cluster)
        while at_work(time.time()) == at_work(times["joined"]) and time.time() - times["joined"] < LATE_SECONDS:
            time.sleep(0.1)
        (folder / OVER).touch()

    runs = tiny_runs(folder, KILL_TASKS, seconds)
    swept: list[Progress] = []
    thread = threading.Thread(target=lambda: swept.append(sweep(folder, pool, runs)[1]))
    thread.start()
    disturb()  # on the main thread: Ray starts nodes on no other
    thread.join()
    (progress,) = swept
    assert progress.finished == len(runs) and made_twice(folder) == 0, "a run was lost or made twice"
    rows = events(folder)
    (lost,) = [row for row in rows if row["event"] == "lost"]
    again = next(row for row in rows if row["run"] == lost["run"] and row.get("attempt") == 2)
    known = at_work(times["joined"])
    newcomers = [row["time"] for row in rows if row["event"] == "started" and row["pid"] not in known]
    pool.stop()
    return {
        "lost": lost["time"] - times["killed"],
        "again": again["time"] - times["killed"],
        "joined": min(newcomers) - times["joined"] if newcomers else float("nan"),
    }


def paper(found: dict[str, float], recovery: float) -> str:
    """Returns what the figures mean for 1 000 GPUs."""
    rate = GPUS / SECONDS_OF_RUN
    each = found["ms per run"] + LOOKS_PER_RUN * found["look ms"]
    rows = [
        f"On paper, {GPUS} GPUs with runs of {SECONDS_OF_RUN / 60:.0f} minutes: {rate:.2f} runs end per second.\n",
        "| item | per run | at 1 000 GPUs | bound |\n|---|---:|---:|---:|",
        f"| runs through the sweep, {PENDING} under way | {each:.1f} ms | {rate:.2f} per s | {1000 / each:.0f} per s |",
    ]
    for name in ("sweep", "GCS", "raylet"):
        cost = found[f"{name} ms"] + (LOOKS_PER_RUN * found["look ms"] if name == "sweep" else 0.0)
        share = rate * cost / 1000
        rows.append(f"| processor of {name} on the head | {cost:.1f} ms | {share:.2%} of a core | a core |")
    rows.append(f"| object store | {found['stored'] / 1000:.1f} kB in all | nothing grows | none |")
    rows.append(f"| a killed node | {recovery:.0f} s until its runs go on | of one node | none |")
    return "\n".join(rows)


FIGURES = {
    "ms per run": "overhead per run, ms",
    "sweep ms": "processor time of the sweep per run, ms",
    "GCS ms": "processor time of the head's GCS per run, ms",
    "raylet ms": "processor time of the head's raylet per run, ms",
    "sweep MiB": "growth of the sweep, MiB",
    "GCS MiB": "growth of the head's GCS, MiB",
    "raylet MiB": "growth of the head's raylet, MiB",
    "look ms": f"a look at {PENDING} pending answers, ms",
    "stored": "bytes left in the object stores",
}
"""Rows of the tiny tasks' figures."""


def load() -> str:
    return f"load average {os.getloadavg()[0]:.0f}"


def measure(arguments: argparse.Namespace, folder: Path, out: IO[str]) -> None:
    """Writes the figures as they come."""

    def tell(text: str) -> None:
        print(text, file=out, flush=True)

    tell(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {load()} at the start.\n")
    tell("| figure | value |\n|---|---:|")
    recoveries = []
    for i in range(arguments.rounds):
        cluster = start_cluster()
        nodes = [add_node(cluster) for _ in range(arguments.nodes)]
        if i == 0:
            found = tiny_tasks(folder / "tiny", cluster, arguments.nodes, arguments.tasks)
            tell(f"| {arguments.tasks} tiny tasks, {arguments.nodes} nodes, {load()} | {found['seconds']:.1f} s |")
            for key, title in FIGURES.items():
                tell(f"| {title} | {found[key]:.1f} |")
        times = killed_and_joined(folder / f"killed-{i}", cluster, nodes, arguments.seconds)
        seconds = ", ".join(f"{times[key]:.1f}" for key in ("lost", "again", "joined"))
        tell(f"| kill {i + 1}, {load()}: run reported lost, started again, late node at work | {seconds} s |")
        recoveries.append(times["again"])
        cluster.shutdown()
    tell("| runs lost, runs made twice | 0, 0 |\n")  # or an assertion has failed
    tell(paper(found, statistics.median(recoveries)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=3, help="nodes with one worker each (default 3)")
    parser.add_argument("--tasks", type=int, default=2000, help="tiny tasks (default 2000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a task while a node is killed (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="kills (default 3)")
    parser.add_argument("--out", type=Path, default=None, help="file to write; on the console, Ray's messages mix in")
    arguments = parser.parse_args()
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        try:
            if arguments.out is None:
                measure(arguments, Path(name), sys.stdout)
            else:
                with open(arguments.out, "w") as out:
                    measure(arguments, Path(name), out)
        finally:
            os.chdir(home)


if __name__ == "__main__":
    main()
