"""A sweep on a local Ray cluster of several nodes: one is killed, one joins late, and every run is made once."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(60 * 40)  # a minute on an idle machine


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The benchmark, whose workers Ray pickles by value, since they cannot import it."""
    ray = pytest.importorskip("ray")
    spec = importlib.util.spec_from_file_location(
        "sweep_cluster", Path(__file__).parents[1] / "scripts" / "sweep_cluster.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sweep_cluster", module)
        spec.loader.exec_module(module)
        ray.cloudpickle.register_pickle_by_value(module)
        home = os.getcwd()
        yield module
        os.chdir(home)


@pytest.fixture(scope="module")
def cluster(bench: ModuleType) -> Iterator[Any]:
    started = bench.start_cluster()
    yield started
    started.shutdown()


def test_no_run_is_lost_or_made_twice_when_a_node_is_killed_and_one_joins_late(
    bench: ModuleType, cluster: Any, tmp_path: Path
) -> None:
    nodes = [bench.add_node(cluster) for _ in range(2)]
    found = bench.killed_and_joined(tmp_path / "killed", cluster, nodes, 4.0)
    rows = bench.events(tmp_path / "killed")
    finished = [row["run"] for row in rows if row["event"] == "finished"]
    made = (tmp_path / "killed" / "made.txt").read_text().split()
    assert len(finished) == len(set(finished)) == len(made) == bench.KILL_TASKS
    assert [row["event"] for row in rows].count("lost") == 1 and found["again"] > found["lost"] > 0
    assert found["joined"] > 0, "the late node makes runs"
    with open(tmp_path / "killed" / "made.txt", "a") as file:
        file.write(f"{tmp_path / 'killed' / finished[0]}\n")
    assert bench.made_twice(tmp_path / "killed") == 1, "the control"
