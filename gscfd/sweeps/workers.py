"""Worker processes that make runs, managed by Ray, on this machine or on a cluster."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gscfd.config import Config
from gscfd.distil.preflight import KeptTeachers
from gscfd.errors import UserError, warn
from gscfd.runs.folder import Busy, Stopped
from gscfd.runs.names import check_folder, next_config
from gscfd.teachers.weights import first_line
from gscfd.version import __version__

LOCK_SECONDS = 120
"""Seconds a run waits for the release of a dead process's lock on its folder; on NFS the server releases it after 90
s."""
STORE_BYTES = 100 * 2**20
"""Size of Ray's object store on this machine; it only holds settings and results, which are small."""
QUIET_RAY: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
ANSWER_SECONDS = 10
"""Timeout for a cluster's first answer, seconds."""
LOCAL_STARTS = 5
"""Number of attempts to start Ray on this machine: its own limit of 30 s is too short on a busy one."""
FAILED_STARTS = 3
"""Failed starts tolerated per worker. If more workers die before they are ready, the sweep ends."""


@dataclass(frozen=True)
class Place:
    """Host and process of a worker."""

    host: str
    pid: int


@dataclass(frozen=True)
class Outcome:
    """Result of an attempt at a run."""

    state: Literal["finished", "failed", "refused", "lost"]
    """refused: a UserError, which a retry would raise again. lost: the worker died."""
    error: str = ""
    seconds: float = 0.0
    """Time spent in the worker."""


class Worker:
    """Makes runs one after another and keeps teachers loaded."""

    def __init__(self, home: Path, journal: Path, version: str):
        """home: base of relative paths. journal: the sweep's. version: the sweep's gscfd version."""
        self.home, self.journal, self.version = home, journal, version
        self.teachers: KeptTeachers = {}

    def place(self) -> Place:
        """Changes to the home folder. Raises UserError if this machine does not see the same files or has another gscfd
        version."""
        host = socket.gethostname()
        if __version__ != self.version:
            raise UserError(f"address: expected gscfd {self.version} on every machine, got {__version__} on {host}")
        if not self.home.is_dir() or not (self.home / self.journal).is_file():
            raise UserError(
                f"out: expected a folder that all machines share, but {host} does not see {self.home / self.journal}; "
                "start the sweep in a folder of a shared file system"
            )
        os.chdir(self.home)
        return Place(host, os.getpid())

    def make(self, config: Config) -> Outcome:
        """Starts or continues the run in `config.out`, after waiting for the worker of an earlier sweep to release
        it."""
        began = time.monotonic()
        state: Literal["finished", "failed", "refused"] = "finished"
        error = ""
        try:
            while not self.made(config, patient=time.monotonic() - began < LOCK_SECONDS):
                time.sleep(1)
        except UserError as refusal:
            state, error = "refused", str(refusal)
        except Stopped as stopped:
            state, error = "failed", str(stopped)
        return Outcome(state, error, time.monotonic() - began)

    def made(self, config: Config, *, patient: bool) -> bool:
        """Returns whether the run is finished. Returns False if it is Busy and `patient` is set; otherwise raises
        Busy."""
        # These load the libraries of the teachers, which the sweep's own process does without.
        from gscfd.distil.loading import load_teachers
        from gscfd.runs.make import make_run

        todo = next_config(config)
        if todo is None:
            return True
        check_folder(todo)
        teachers = load_teachers(todo, self.teachers)
        try:
            make_run(todo, teachers)
        except Busy:
            if not patient:
                raise
            return False
        return True


def import_ray() -> Any:
    """Imports Ray. Raises UserError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"sweep: expected Ray, but it cannot be imported ({error}); install it: pip install 'gscfd[sweep]', or "
            "pip install -e '.[sweep]' in a checkout"
        ) from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return ray


SOCKET_ROOM = 40
"""Longest folder for Ray's temporary files, characters: a socket's path has at most 107, and Ray adds up to 67."""


def ray_folder() -> dict[str, str]:
    """Returns Ray's option for its temporary folder, /tmp/ray if $TMPDIR, as batch systems set it, is too long for
    sockets. $RAY_TMPDIR stays the user's."""
    too_long = "RAY_TMPDIR" not in os.environ and len(tempfile.gettempdir()) > SOCKET_ROOM
    return {"_temp_dir": "/tmp/ray"} if too_long else {}


def start_here(ray: Any, cpus: int) -> None:
    """Starts Ray on this machine with the given number of cores. Raises UserError if it does not start."""
    reason = ""
    for _ in range(LOCAL_STARTS):
        try:
            store = {"object_store_memory": STORE_BYTES, **ray_folder()}
            ray.init("local", num_cpus=cpus, include_dashboard=False, **store, **QUIET_RAY)
            return
        except Exception as error:  # Ray raises a bare Exception on a timeout
            ray.shutdown()
            reason = first_line(error)
    raise UserError(
        f"sweep: expected Ray to start on this machine, got: {reason}; its logs are in /tmp/ray, or in $RAY_TMPDIR"
    )


def join(ray: Any, address: str) -> None:
    """Connects to a cluster. Raises UserError if that fails."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():
            # Without this check, Ray would retry for many minutes.
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        ray.init(address, **QUIET_RAY)
    except Exception as error:  # of any class
        raise UserError(
            f"address: expected the address of a Ray cluster, got {address}: {first_line(error)}; `ray status` on its "
            "head node shows whether it runs; RAY_AUTH_TOKEN must match; without --address this machine is used"
        ) from None


@dataclass
class Slot:
    """A worker and its current task."""

    actor: Any
    reference: Any
    """Reference of the pending answer; None if the worker is idle."""
    place: Place | None = None
    """None until the worker is ready."""
    run: str | None = None


class RayPool:
    """Workers as Ray actors. A worker that dies is replaced, and its run is reported as lost."""

    def __init__(
        self,
        journal: Path,
        device: str,
        *,
        workers: int,
        threads: int | None,
        gpus: float | None,
        address: str | None,
        worker: type[Worker] = Worker,
    ):
        """journal: of the sweep; must exist. device: of the runs. threads: per worker; None divides the nodes' cores.
        gpus: per worker; None is one if the cluster has any and the device is not cpu. address: of a cluster; None
        starts Ray on this machine with room for all workers. worker: class of the workers."""
        self.ray = import_ray()
        if address is None:
            start_here(self.ray, workers * (threads or 1))
        else:
            join(self.ray, address)
        try:
            nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            gpus = gpus_per_run(gpus, device, sum(node.get("GPU", 0) for node in nodes))
            threads = threads or threads_per_worker(nodes, workers, gpus)
            check_room(nodes, workers, threads, gpus)
            self.make_actor = self.ray.remote(worker).options(
                num_cpus=threads,
                num_gpus=gpus,
                # Set before the worker starts, because OpenMP reads it once. Progress bars of workers would only fill
                # Ray's logs.
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}},
            )
            self.arguments = (Path.cwd(), journal, __version__)
            self.failed_starts, self.most_failed_starts = 0, FAILED_STARTS * workers
            self.slots = [Slot(*self.new_actor()) for _ in range(workers)]
        except BaseException:
            self.ray.shutdown()
            raise

    def new_actor(self) -> tuple[Any, Any]:
        """Starts a worker; returns it and the reference of its place."""
        actor = self.make_actor.remote(*self.arguments)
        return actor, actor.place.remote()

    def free(self) -> bool:
        """Returns whether a worker is idle."""
        return any(slot.reference is None for slot in self.slots)

    def start(self, run: str, config: Config) -> Place:
        """Assigns the run to an idle worker."""
        slot = next(slot for slot in self.slots if slot.reference is None)
        slot.run, slot.reference = run, slot.actor.make.remote(config)
        assert slot.place is not None
        return slot.place

    def wait(self, seconds: float) -> dict[str, Outcome]:
        """Waits at most `seconds`; returns the outcomes of the runs that ended. Raises UserError if workers cannot be
        started."""
        busy = {slot.reference: slot for slot in self.slots if slot.reference is not None}
        self.ray.wait(list(busy), timeout=seconds)
        done, _ = self.ray.wait(list(busy), num_returns=len(busy), timeout=0)
        outcomes = {}
        for reference in done:
            run = busy[reference].run
            outcome = self.collect(busy[reference])
            if run is not None and outcome is not None:
                outcomes[run] = outcome
        return outcomes

    def collect(self, slot: Slot) -> Outcome | None:
        """Returns the answer of the slot's worker; None if the worker has just become ready."""
        try:
            answer: Place | Outcome = self.ray.get(slot.reference)
        except self.ray.exceptions.RayError as error:
            return self.replace(slot, error)
        slot.reference = slot.run = None
        if isinstance(answer, Place):
            slot.place = answer
            return None
        return answer

    def replace(self, slot: Slot, error: Exception) -> Outcome:
        """Replaces a worker that died or raised an unknown error."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause from None
        if slot.place is None:
            self.failed_starts += 1
            if self.failed_starts > self.most_failed_starts:
                raise UserError(f"workers: {self.failed_starts} died before they were ready; the last error: {error}")
        died = f"its worker died, process {slot.place and slot.place.pid}"
        known = isinstance(error, self.ray.exceptions.RayActorError)
        outcome = Outcome("lost", died if known else f"{died} ({type(error).__name__}: {first_line(error)})")
        if cause is not None:
            outcome = Outcome("failed", f"{type(cause).__name__}: {first_line(cause)}")
        self.ray.kill(slot.actor)
        slot.actor, slot.reference = self.new_actor()
        slot.place = slot.run = None
        return outcome

    def stop(self) -> None:
        """Stops the workers, including busy ones."""
        for slot in self.slots:
            self.ray.kill(slot.actor)
        self.ray.shutdown()


Node = dict[str, float]
"""Resources of a machine according to Ray: "CPU" and, if present, "GPU"."""


def gpus_per_run(gpus: float | None, device: str, there: float) -> float:
    """Returns the requested GPUs per run, by default one if runs on `device` can use one. Raises UserError if Ray has
    too few."""
    if gpus is None:
        gpus = float(device == "cuda" or (device == "auto" and there > 0))
    if gpus > there:
        raise UserError(f"gpus: expected at most {there:g}, as Ray has, got {gpus:g}; use --device cpu --gpus 0")
    return gpus


def room(nodes: list[Node], threads: int, gpus: float) -> int:
    """Returns the number of workers that fit at the same time; a worker stays on one machine, and a share of a GPU on
    one GPU."""

    def fit(node: Node) -> int:
        fit = int(node.get("CPU", 0) // threads)
        if gpus:
            there = int(node.get("GPU", 0))
            fit = min(fit, there * int(1 / gpus) if gpus < 1 else int(there / gpus))
        return fit

    return sum(fit(node) for node in nodes)


def threads_per_worker(nodes: list[Node], workers: int, gpus: float) -> int:
    """Returns the largest thread count with which all workers fit at the same time, or else as many workers as
    possible."""
    most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    possible = [(min(room(nodes, threads, gpus), workers), threads) for threads in range(1, most + 1)]
    return max(possible, default=(0, 1))[1]


def check_room(nodes: list[Node], workers: int, threads: int, gpus: float) -> None:
    """Warns if not all workers fit at the same time (the others wait). Raises UserError if none ever fits."""
    fitting = room(nodes, threads, gpus)
    machines = ", ".join(f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes[:8])
    wanted = f"{threads} threads and {gpus:g} GPUs"
    if fitting == 0:
        raise UserError(
            f"threads: expected a machine with room for a worker of {wanted}, got {machines or 'none'}; "
            "use fewer --threads or --gpus, or start Ray on a larger machine"
        )
    if fitting < workers:
        warn(
            f"workers: {workers} workers of {wanted} each are more than Ray has room for ({machines}); "
            f"{fitting} work at a time"
        )
