"""The studio without a browser: the queue survives a kill, other pages are kept out, and no path leaves the folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch
from viewing import until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from gscfd.config import Config, Edit, to_yaml
from gscfd.distil.preflight import preflight
from gscfd.errors import UserError
from gscfd.export.turntable import turntable_frames
from gscfd.gaussians import Gaussians, ball
from gscfd.pictures import write_contact_sheet
from gscfd.runs.names import FINISHED_FILE
from gscfd.runs.options import parse
from gscfd.studio import cards, orders
from gscfd.studio.gallery import Entry, Gallery, command, delete, strip
from gscfd.studio.options import StudioOptions
from gscfd.studio.orders import JOURNAL, Making, Order, Orders, Wish
from gscfd.studio.page import Studio
from gscfd.studio.progress import Progress
from gscfd.sweeps.journal import read_rows
from gscfd.teachers import find
from gscfd.viewer.page import document

STAND_IN = """
import fcntl, pathlib, signal, sys, time
path = pathlib.Path(next(a.split("=", 1)[1] for a in sys.argv if a.startswith(("--out=", "--resume="))))
resumed = any(a.startswith("--resume=") for a in sys.argv)
prompt = next((a.split("=", 1)[1] for a in sys.argv if a.startswith("--prompt=")), "")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if not resumed:
    path.mkdir()
    (path / "config.yaml").write_text(f"prompt: {prompt}\\nseed: 0\\npreset: toybox\\nguidance: cfd\\n")
stats = open(path / "stats.jsonl", "ab")
fcntl.flock(stats, fcntl.LOCK_EX)
(path / "log.txt").write_text("resumed" if resumed else "started")
while not (path.parent / "go").exists():
    time.sleep(0.02)
word = (path.parent / "go").read_text()
if word:
    print(word, flush=True)
    sys.exit(1)
(path / "turntable.png").write_text("")
"""
"""A run that makes nothing, and ends when the file "go" appears: with its text as an error, or finished."""


def stand_in(arguments: tuple[str, ...], output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-S", "-c", STAND_IN, "gscfd.train", *arguments]
    with open(output, "wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are stand-ins, and every preset's teachers are here."""
    monkeypatch.setattr(orders, "launch", stand_in)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], Orders]]:
    """Opens the queue of one folder, as often as it is asked; what is left running at the end is killed."""
    queues: list[Orders] = []

    def of() -> Orders:
        queues.append(Orders(tmp_path))
        return queues[-1]

    yield of
    for queue in queues:
        queue.journal.close()
        if queue.making is not None and not queue.making.ended(tmp_path):
            os.kill(queue.making.pid, signal.SIGKILL)


def wish(prompt: str = "a red car", **changes: Any) -> Wish:
    return Wish(**{"prompt": prompt, "preset": "toybox", **changes})


def log_of(run: Path) -> str:
    """What a stand-in has logged, "" before it has."""
    path = run / "log.txt"
    return path.read_text() if path.exists() else ""


def started(queue: Orders, name: str) -> None:
    """Waits until the run of this name holds its folder."""
    queue.tick()
    assert queue.making is not None and queue.making.order.name == name
    until(lambda: queue.is_made_elsewhere(name))


def killed(queue: Orders, *, with_run: bool = False) -> None:
    """Does to the queue what a kill of the studio does: nothing is written, and locks are gone."""
    if with_run and queue.making is not None:
        os.kill(queue.making.pid, signal.SIGKILL)
        assert queue.making.process is not None
        queue.making.process.wait()
    queue.journal.close()


def ticked_until(queue: Orders, true: Callable[[], object]) -> None:
    def tick() -> object:
        queue.tick()
        return true()

    until(tick)


# The queue.


def test_runs_are_made_one_after_another_in_the_order_of_the_queue(
    opened: Callable[[], Orders], tmp_path: Path
) -> None:
    queue = opened()
    names = [queue.add(wish(prompt), "auto").name for prompt in ("a red car", "a blue mug", "a red car")]
    assert names == ["a-red-car-0", "a-blue-mug-0", "a-red-car-0-2"]
    started(queue, names[0])
    queue.tick()
    assert queue.waiting == names[1:] and not (tmp_path / names[1]).exists(), "one at a time"
    (tmp_path / "go").write_text("")
    ticked_until(queue, lambda: queue.making is None and not queue.waiting)
    assert [queue.is_finished(name) for name in names] == [True] * 3
    begun = [row["run"] for row in read_rows(tmp_path / JOURNAL) if row["event"] == "started"]
    assert begun == names


def test_twenty_prompts_survive_a_kill(opened: Callable[[], Orders]) -> None:
    queue = opened()
    names = [queue.add(wish(seed=seed), "auto").name for seed in range(20)]
    queue.remove(names[3])
    killed(queue)
    again = opened()
    assert again.waiting == [name for name in names if name != names[3]]
    assert [again.known[name] for name in again.waiting] == [queue.known[name] for name in again.waiting]


@pytest.mark.parametrize("torn", [b'{"run": "x", "ev', b"\xff\xfe\x00", b"[1]\n3\nnull\n"])
def test_a_row_cut_short_by_a_kill_spoils_no_other(opened: Callable[[], Orders], tmp_path: Path, torn: bytes) -> None:
    queue = opened()
    queue.add(wish(), "auto")
    killed(queue)
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(torn)
    again = opened()
    second = again.add(wish("a blue mug"), "auto").name
    killed(again)
    assert opened().waiting == ["a-red-car-0", second]


def test_a_run_that_outlives_a_killed_studio_is_watched_by_the_next(
    opened: Callable[[], Orders], tmp_path: Path
) -> None:
    queue = opened()
    first, second = (queue.add(wish(prompt), "auto").name for prompt in ("a red car", "a blue mug"))
    started(queue, first)
    killed(queue)
    again = opened()
    assert again.making is not None and again.making.order.name == first and again.waiting == [second]
    again.tick()
    assert again.waiting == [second], "it waits for the run of the other studio"
    again.stop()
    assert queue.making is not None and queue.making.process is not None
    assert queue.making.process.wait(120) == 143, "and stops it when it is asked to"
    ticked_until(again, lambda: again.making is not None and again.making.order.name == second)
    assert first not in again.waiting, "a run that was stopped is not resumed by itself"


def test_a_run_that_was_cut_off_is_resumed_before_all_others(opened: Callable[[], Orders], tmp_path: Path) -> None:
    queue = opened()
    first, second = (queue.add(wish(prompt), "auto").name for prompt in ("a red car", "a blue mug"))
    started(queue, first)
    killed(queue, with_run=True)
    again = opened()
    assert again.making is None and again.waiting == [first, second]
    started(again, first)
    until(lambda: log_of(tmp_path / first) == "resumed")


def test_a_run_cut_off_before_its_settings_were_written_starts_again(
    opened: Callable[[], Orders], tmp_path: Path
) -> None:
    queue = opened()
    name = queue.add(wish(), "auto").name
    queue.write(name, "starting")
    (tmp_path / name).mkdir()
    killed(queue)
    again = opened()
    started(again, name)
    until(lambda: log_of(tmp_path / name) == "started")


def test_a_run_that_finished_without_a_studio_is_finished(opened: Callable[[], Orders], tmp_path: Path) -> None:
    queue = opened()
    name = queue.add(wish(), "auto").name
    started(queue, name)
    killed(queue)
    (tmp_path / "go").write_text("")
    assert queue.making is not None and queue.making.process is not None
    queue.making.process.wait(120)
    again = opened()
    assert again.making is None and not again.waiting and again.is_finished(name)


def test_a_run_made_elsewhere_that_is_gone_at_its_turn_leaves_the_queue(
    opened: Callable[[], Orders], tmp_path: Path
) -> None:
    queue = opened()
    first = queue.add(wish(), "auto").name
    started(queue, first)
    for name in ("lamp", "mug"):
        saved_run(tmp_path, name, finished=False)
        queue.resume(name)
    own = queue.add(wish("a blue mug"), "auto").name
    shutil.rmtree(tmp_path / "lamp")
    (tmp_path / "go").write_text("")
    ticked_until(queue, lambda: queue.making is None and not queue.waiting)
    assert queue.is_finished("mug") and queue.is_finished(own), "control: those on disk or ordered here are made"
    assert not (tmp_path / "lamp").exists()
    killed(queue)
    assert opened().waiting == []


def test_a_run_made_elsewhere_outlives_a_killed_studio_too(opened: Callable[[], Orders], tmp_path: Path) -> None:
    saved_run(tmp_path, "lamp", finished=False)
    queue = opened()
    queue.resume("lamp")
    started(queue, "lamp")
    killed(queue)
    again = opened()
    assert again.making is not None and again.making.order == Order("lamp", ())
    (tmp_path / "go").write_text("")
    assert queue.making is not None and queue.making.process is not None
    queue.making.process.wait(120)
    ticked_until(again, lambda: again.making is None)
    assert again.is_finished("lamp") and not again.waiting


@pytest.mark.parametrize("kill", ["", "before the end", "after the end"])
def test_a_run_stopped_while_it_loads_keeps_its_card_and_can_be_continued(
    opened: Callable[[], Orders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: str
) -> None:
    queue = opened()
    loading = [sys.executable, "-S", "-c", "import time; time.sleep(600)", "gscfd.train"]
    with monkeypatch.context() as slow:
        slow.setattr(orders, "launch", lambda arguments, output: subprocess.Popen([*loading, *arguments]))
        name = queue.add(wish(), "auto").name
        queue.tick()
    queue.stop()
    assert queue.making is not None and queue.making.process is not None
    queue.making.process.wait(120)
    if kill != "before the end":
        queue.tick()
    if kill:
        killed(queue)
        queue = opened()
    entry = next(iter(Gallery(queue).entries()))
    assert (entry.name, entry.state, entry.prompt) == (name, "stopped", "a red car") and not queue.waiting
    assert "nothing is saved yet" in cards.facts(entry, "x", "") and "saved in" not in cards.facts(entry, "x", "")
    other = queue.add(wish("a blue mug"), "auto").name
    queue.remove(other)
    assert [entry.name for entry in Gallery(queue).entries()] == [name], "control: one taken out of the queue has none"
    queue.resume(name)
    started(queue, name)
    until(lambda: log_of(tmp_path / name) == "started")
    (tmp_path / "go").write_text("")
    ticked_until(queue, lambda: queue.making is None)
    shutil.rmtree(tmp_path / name)
    assert not Gallery(queue).entries(), "control: a finished run whose folder was removed has none"


def test_a_run_stopped_while_it_loads_can_be_forgotten(opened: Callable[[], Orders]) -> None:
    queue = opened()
    names = [queue.add(wish(prompt), "auto").name for prompt in ("a red car", "a blue mug")]
    for name in names:
        queue.write(name, "stopped")
    killed(queue)
    again = opened()
    assert [entry.name for entry in Gallery(again).entries()] == names
    again.remove(names[0])
    assert [entry.name for entry in Gallery(again).entries()] == names[1:]
    killed(again)
    assert [entry.name for entry in Gallery(opened()).entries()] == names[1:]


def test_a_failure_is_named_kept_and_can_be_tried_again(opened: Callable[[], Orders], tmp_path: Path) -> None:
    queue = opened()
    name = queue.add(wish(), "auto").name
    (tmp_path / "go").write_text("error: coarse.teacher: expected one that fits")
    ticked_until(queue, lambda: name in queue.failures)
    killed(queue)
    again = opened()
    assert again.failures == {name: "coarse.teacher: expected one that fits"} and not again.waiting
    (tmp_path / "go").write_text("")
    again.resume(name)
    with pytest.raises(UserError, match="in the queue already"):
        again.resume(name)
    ticked_until(again, lambda: again.is_finished(name) and again.making is None)
    assert not again.failures


def test_a_run_killed_by_the_system_says_so(opened: Callable[[], Orders]) -> None:
    queue = opened()
    name = queue.add(wish(), "auto").name
    started(queue, name)
    assert queue.making is not None
    os.kill(queue.making.pid, signal.SIGKILL)
    ticked_until(queue, lambda: name in queue.failures)
    assert "SIGKILL" in queue.failures[name]


def test_a_full_disk_is_said_and_nothing_is_lost(
    opened: Callable[[], Orders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = opened()
    name = queue.add(wish(), "auto").name
    with monkeypatch.context() as full:
        full.setattr(queue.journal, "file", open("/dev/full", "ab", buffering=0))
        with pytest.raises(UserError, match="cannot be written"):
            queue.add(wish("a blue mug"), "auto")
        queue.tick()
        assert "No space left" in queue.trouble and queue.waiting == [name] and queue.making is None
    started(queue, name)
    assert not queue.trouble


def test_the_studio_ends_its_run_and_the_next_resumes_it(opened: Callable[[], Orders]) -> None:
    queue = opened()
    name = queue.add(wish(), "auto").name
    started(queue, name)
    queue.close()
    assert queue.making is not None and queue.making.process is not None and queue.making.process.returncode == 143
    assert opened().waiting == [name]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"prompt": ""}, "prompt: expected a description"),
        ({"prompt": "a yelow duck"}, "do not know 'yelow'"),
        ({"prompt": "x" * 3000}, "do not know 'x{40}' "),
        ({"prompt": " ".join(f"x{i}" for i in range(90))}, "'x4' .* and 85 more; "),
        ({"prompt": "a red\x00car"}, "prompt: expected one line"),
        ({"seed": -1}, "seed: expected"),
        ({"preset": "../secret"}, "preset: expected"),
        ({"guidance": "magic"}, "guidance: expected"),
    ],
)
def test_what_cannot_be_made_is_refused_and_not_queued(
    opened: Callable[[], Orders], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    queue = opened()
    with pytest.raises(UserError, match=words):
        queue.add(wish(**changes), "cpu")
    assert not queue.waiting and not read_rows(tmp_path / JOURNAL)


def test_the_page_does_not_wait_for_the_hub(opened: Callable[[], Orders], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run fetches its teachers, and says so if it cannot."""

    def fetched(repo: str, local_files_only: bool) -> Path:
        assert local_files_only, "asked the hub"
        raise UserError("teacher: not on this machine")

    monkeypatch.setattr(find, "fetched", fetched)
    asked = wish("a blue dragon", preset="mvdream-sd21")
    assert opened().add(asked, "cpu").name == "a-blue-dragon-0"
    assert asked.fetches and not wish("a red car").fetches
    with pytest.raises(AssertionError, match="asked the hub"):
        preflight(replace(asked.config("cpu"), device="cpu"))  # the control


@pytest.mark.parametrize("prompt", ["", "a yelow duck"])
def test_the_page_names_no_option_of_the_command_line(prompt: str) -> None:
    with pytest.raises(UserError) as refusal:
        wish(prompt).config("cpu")
    assert "--" not in str(refusal.value)
    with pytest.raises(UserError) as command:
        preflight(parse([f"--prompt={prompt}", "--preset=toybox", "--device=cpu"]))
    assert "--" in str(command.value), "control"


@pytest.mark.parametrize("prompt", ["--help", "a red car", "-red car"])
def test_a_prompt_is_never_read_as_an_option(prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "check_settings", lambda *arguments: None)
    asked = wish(prompt, seed=7, guidance="sds", start=Path("/x y/splat.ply"), refine=True)
    made = parse(list(asked.arguments("cpu")))
    expected = replace(asked.config("cpu"), device="cpu", checkpoint=made.checkpoint, viewer=made.viewer)
    assert made == expected and made.prompt == prompt and made.coarse.steps == 0


# Two studios, foreign folders.


def test_a_second_studio_on_the_folder_is_told_where_the_first_is(opened: Callable[[], Orders], tmp_path: Path) -> None:
    opened().write("", "serving", address="http://127.0.0.1:9999")
    with pytest.raises(UserError, match="another studio serves .*open http://127.0.0.1:9999"):
        Orders(tmp_path)


def test_a_run_and_a_file_are_no_folders_of_runs(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(Config(prompt="a mug")))
    with pytest.raises(UserError, match="expected a folder of runs, got the run"):
        Orders(tmp_path)
    with pytest.raises(UserError, match="expected a folder of runs, got the file"):
        Studio(StudioOptions(folder=tmp_path / "config.yaml"))


@pytest.fixture
def gallery(opened: Callable[[], Orders]) -> Gallery:
    return Gallery(opened())


def saved_run(folder: Path, name: str, *, finished: bool = True) -> Path:
    path = folder / name
    path.mkdir()
    (path / "config.yaml").write_text(to_yaml(Config(prompt=f"a {name}")))
    (path / "stats.jsonl").write_text("")
    splat = ball(30, radius=0.6, opacity=0.9, generator=torch.Generator().manual_seed(0))
    splat.save_ply(path / "splat.ply")
    if finished:
        (path / FINISHED_FILE).write_bytes(b"")
    return path


def test_the_gallery_has_the_runs_of_the_folder_and_nothing_else(gallery: Gallery, tmp_path: Path) -> None:
    saved_run(tmp_path, "mug")
    saved_run(tmp_path, "lamp", finished=False)
    outside = saved_run(tmp_path.parent, f"outside-{tmp_path.name}")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "notes").mkdir()
    (tmp_path / "thesis.txt").write_text("mine")
    broken = saved_run(tmp_path, "broken")
    (broken / "config.yaml").write_text("{:")
    gallery.orders.add(wish(), "auto")
    states = {entry.name: entry.state for entry in gallery.entries()}
    assert states == {"a-red-car-0": "queued", "mug": "finished", "lamp": "stopped", "broken": "finished"}


def test_a_card_has_the_prompt_that_was_given_last(gallery: Gallery, tmp_path: Path) -> None:
    edits = (Edit(step=2, prompt="a blue mug"), Edit(step=5, prompt="a red mug"), Edit(step=6, cfg=2.0))
    for name, config in (("plain", Config(prompt="a mug")), ("steered", Config(prompt="a mug", edits=edits))):
        (saved_run(tmp_path, name) / "config.yaml").write_text(to_yaml(config))
    assert {entry.name: entry.prompt for entry in gallery.entries()} == {"plain": "a mug", "steered": "a red mug"}


def test_a_run_started_elsewhere_is_shown_and_left_alone(gallery: Gallery, tmp_path: Path) -> None:
    process = stand_in((f"--out={tmp_path / 'mug'}", "--prompt=a mug"), tmp_path / "out")
    try:
        until(lambda: (tmp_path / "mug" / "log.txt").exists())
        assert [entry.state for entry in gallery.entries()] == ["elsewhere"]
        with pytest.raises(UserError, match="another program writes to mug"):
            delete(tmp_path, "mug")
    finally:
        process.kill()
        process.wait()
    assert [entry.state for entry in gallery.entries()] == ["stopped"]


def test_only_a_run_is_deleted(gallery: Gallery, tmp_path: Path) -> None:
    path = saved_run(tmp_path, "mug")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="also holds notes.txt"):
        delete(tmp_path, "mug")
    assert (path / "splat.ply").is_file()
    (path / "notes.txt").unlink()
    delete(tmp_path, "mug")
    assert not path.exists() and not gallery.entries() and not list(tmp_path.glob(".*"))


def test_pictures_are_of_the_sheet_or_of_the_splat(tmp_path: Path, gallery: Gallery) -> None:
    path = saved_run(tmp_path, "mug")
    (path / "turntable.png").unlink()
    assert gallery.make_picture(["mug"]) and not gallery.make_picture(["mug"])
    kind, data = gallery.picture("picture/mug") or ("", b"")
    assert kind == "image/jpeg" and data[:2] == b"\xff\xd8"
    frames = turntable_frames(Gaussians.load_ply(path / "splat.ply"), 8, 64)
    write_contact_sheet(frames, path / "turntable.png")
    assert gallery.make_picture(["mug"]), "the sheet is newer"
    assert gallery.picture("picture/../mug") is None and gallery.picture("mug") is None
    (path / "turntable.png").write_bytes(b"no picture")
    assert strip(path / "turntable.png") == b""


def test_whatever_a_run_is_called_is_text_on_the_page() -> None:
    entry = Entry('"><script>alert(1)</script>', "failed", "<img onerror=x>", "0", "toybox", "cfd", "<b>why</b>")
    text = cards.gallery([entry], None, {entry.name: 1}, {}) + cards.facts(entry, "<x>", "<y>")
    assert "<script" not in text and "<img onerror" not in text and "<b>why" not in text and "<x>" not in text


def test_the_command_of_a_run_is_one_that_a_shell_reads(tmp_path: Path) -> None:
    order = orders.Order("a-0", wish("a red car").arguments("auto"))
    assert command(order, Path("/my runs")).startswith("gscfd train --prompt='a red car' --preset toybox --seed 0 ")
    assert command(order, Path("/my runs")).endswith("--out='/my runs/a-0'")


def test_progress_follows_the_rows_and_a_file_that_is_cut(tmp_path: Path) -> None:
    config = Config(prompt="a mug")
    progress = Progress(tmp_path, config)
    assert not progress.look() and str(progress) == "starting"
    rows = [
        {"stage": "coarse", "step": i, "loss": 1.0, "gaussians": 100 + i, "seconds": {"render": 0.1}} for i in range(4)
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "stats.jsonl").write_text("".join(lines) + '{"stage": "coa')
    assert progress.look() and progress.step == 3 and "10.0 steps/s" in str(progress)
    (tmp_path / "stats.jsonl").write_text("".join(lines[:2]))
    assert progress.look() and [point.step for point in progress.points] == [0, 1]
    assert 0 < progress.share < 0.02


# The door.


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    studio = Studio(StudioOptions(folder=tmp_path / "runs", port=8780))
    yield studio
    studio.close()


def get(studio: Studio, path: str, **headers: str) -> tuple[int, bytes]:
    host = studio.address.removeprefix("http://")
    connection = HTTPConnection(host, timeout=60)
    connection.request("GET", path, headers={"Host": host, **{k.replace("_", "-"): v for k, v in headers.items()}})
    answer = connection.getresponse()
    return answer.status, answer.read()


def joins(studio: Studio, **headers: str) -> bool:
    """Whether a websocket with these headers is let in."""
    host = headers.pop("Host", None)
    protocol: Any = ["viser-v1"]
    try:
        address = studio.address.replace("http", "ws", 1)
        extra = {"additional_headers": headers} if host is None else {"additional_headers": {**headers, "Host": host}}
        connect(address, subprotocols=protocol, compression=None, **extra).close()  # type: ignore[arg-type]
    except InvalidStatus as refusal:
        assert refusal.response.status_code == 403
        return False
    return True


def test_only_pages_of_the_studio_may_talk_to_it(studio: Studio) -> None:
    assert joins(studio), "a program that is no browser"
    assert joins(studio, Origin=studio.address), "the page itself"
    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        studio.address.replace("http", "https") + ".evil",
    ):
        assert not joins(studio, Origin=origin), origin


def test_a_foreign_name_for_this_machine_is_refused(studio: Studio) -> None:
    port = studio.address.rpartition(":")[2]
    assert get(studio, "/", Host="evil.example")[0] == 403, "DNS rebinding"
    assert get(studio, "/", Host=f"evil.example:{port}", Origin=f"http://evil.example:{port}")[0] == 403
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert get(studio, "/", Host=host)[0] == 200


def test_controls_need_the_pages_own_header(studio: Studio) -> None:
    assert get(studio, "/do/choose?x")[0] == 403
    assert get(studio, "/do/choose?x", X_Gscfd="1", Origin="http://evil.example")[0] == 403
    assert studio.todo.empty()
    assert get(studio, "/do/choose?x", X_Gscfd="1")[0] == 200 and not studio.todo.empty()
    assert get(studio, "/do/nothing", X_Gscfd="1")[0] == 404


@pytest.mark.parametrize(
    "path", ["/picture/../studio.jsonl", "/picture/%2e%2e%2fstudio.jsonl", "/../../etc/passwd", "/studio.jsonl"]
)
def test_no_path_leaves_the_page(studio: Studio, path: str) -> None:
    assert get(studio, path)[0] == 404


def test_the_document_has_a_title_and_may_not_be_framed(studio: Studio) -> None:
    status, text = get(studio, "/")
    assert status == 200 and b"<title>runs \xc2\xb7 gscfd studio</title>" in text and b'lang="en"' in text
    assert b"<title>a &lt;b&gt;" in document("a <b> & c")


# The page.


def answered(studio: Studio, action: Callable[[], str]) -> str:
    """What the page says to something that is asked."""
    studio.ask(studio.chosen.answer, action)
    studio.tick(time.monotonic())
    return str(studio.chosen.answer.content)


def soon(studio: Studio, true: Callable[[], object]) -> None:
    """Waits with the studio at work."""

    def tick() -> object:
        studio.tick(time.monotonic())
        return true()

    until(tick)


def test_a_prompt_is_queued_made_shown_and_deleted(studio: Studio) -> None:
    studio.form.prompt.value = "  a  red car "
    assert "Put in the queue: a-red-car-0" in answered(studio, studio.make)
    soon(studio, lambda: (studio.folder / "a-red-car-0" / "log.txt").exists())
    assert studio.name == "a-red-car-0" and studio.chosen.buttons["Stop and save"].visible
    assert "expected a stopped run" in answered(studio, studio.resume)
    assert "delete: a-red-car-0 is being made" in answered(studio, lambda: studio.delete("a-red-car-0"))
    (studio.folder / "go").write_text("")
    soon(studio, lambda: studio.orders.making is None)
    studio.looked = 0.0
    studio.tick(time.monotonic())
    assert "saved in" in studio.chosen.facts.content and studio.chosen.buttons["Delete"].visible
    assert "Put in the queue: a-red-car-1" in answered(studio, studio.another_seed)
    assert "is deleted" in answered(studio, lambda: studio.delete("a-red-car-0"))
    assert not (studio.folder / "a-red-car-0").exists()


def test_a_run_made_elsewhere_is_continued_on_the_page(studio: Studio) -> None:
    saved_run(studio.folder, "lamp", finished=False)
    studio.choose("lamp")
    assert "Put in the queue: lamp" in answered(studio, studio.resume)
    soon(studio, lambda: log_of(studio.folder / "lamp") == "resumed")
    assert studio.orders.making is not None and studio.summary().startswith("<b>lamp</b>")
    order = Order("a-mug-0", ("--prompt=a mug", "--seed", "7"))
    assert [order.value(f"--{name}") for name in ("prompt", "seed", "preset")] == ["a mug", "7", ""], "control"


def test_a_run_that_begins_does_not_show_the_steps_of_the_one_before(studio: Studio) -> None:
    row = {"stage": "coarse", "step": 150, "loss": 1.0, "gaussians": 100, "seconds": {"render": 0.1}}
    (saved_run(studio.folder, "mug", finished=False) / "stats.jsonl").write_text(json.dumps(row) + "\n")
    studio.orders.making = Making(Order("mug", ("--prompt=a mug",)), os.getpid(), None)
    studio.look_at_progress()
    assert "step 151" in studio.summary(), "control"
    studio.orders.making = Making(Order("lamp", ("--prompt=a lamp",)), os.getpid(), None)
    studio.look_at_progress()
    assert studio.summary().endswith("a lamp</b><br>starting")
    studio.orders.making = None


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "gone", "", "."])
def test_names_that_are_not_in_the_gallery_are_refused(studio: Studio, name: str) -> None:
    assert "no run" in answered(studio, lambda: studio.choose(name))
    assert "delete:" in answered(studio, lambda: studio.delete(name))
    assert studio.folder.is_dir() and not studio.shown


@pytest.mark.parametrize("field, value", [("start", "../../x"), ("seed", 0.5), ("seed", float("nan"))])
def test_values_that_no_page_offers_are_refused(studio: Studio, field: str, value: object) -> None:
    studio.form.prompt.value = "a red car"
    getattr(studio.form, field)._impl.value = value
    assert f"{field}: expected" in answered(studio, studio.make) and not studio.orders.waiting


def test_clients_that_stall_stop_neither_the_runs_nor_the_page(studio: Studio) -> None:
    from viewer_client import join

    host, _, port = studio.address.removeprefix("http://").rpartition(":")
    with join(studio.address) as deaf, socket.create_connection((host, int(port))) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\nHost: ")  # the rest never comes
        until(lambda: len(studio.server.get_clients()) == 1)
        for _ in range(8):
            studio.server.gui.add_html(os.urandom(4_000_000).hex())
        assert get(studio, "/")[0] == 200
        studio.form.prompt.value = "a red car"
        (studio.folder / "go").write_text("")
        assert "Put in the queue: a-red-car-0" in answered(studio, studio.make)
        soon(studio, lambda: (studio.folder / "a-red-car-0" / FINISHED_FILE).exists())
        assert get(studio, "/")[0] == 200
        deaf.close_socket()


def test_two_are_compared_with_labels_that_differ(studio: Studio) -> None:
    for name in ("mug", "lamp"):
        saved_run(studio.folder, name)
    studio.choose("mug")
    studio.show_state()
    assert "lamp" in studio.chosen.beside.options and "mug" not in studio.chosen.beside.options
    studio.chosen.beside.value = "lamp"
    studio.show()
    assert [source.label for source in studio.showcase.sources] == ["mug", "lamp"]
    assert studio.display.gaussians is not None and len(studio.display.gaussians) == 60


def test_the_download_is_never_the_run_to_compare_with(studio: Studio) -> None:
    for name in ("mug", "lamp"):
        saved_run(studio.folder, name)
    studio.orders.making = Making(Order("busy", ()), os.getpid(), None)  # the queue waits
    queued = studio.orders.add(wish(), "auto").name

    def compare() -> None:
        studio.choose("mug")
        studio.show_state()
        studio.chosen.beside.value = "lamp"
        studio.show()
        studio.show_state()

    def nothing() -> bool:
        return studio.splat() is None and not studio.download.visible and studio.display.gaussians is None

    compare()
    assert len(studio.shown) == 2 and studio.splat() is not None and studio.download.visible, "control"
    studio.choose(queued)
    studio.show_state()
    assert nothing() and studio.name == queued
    compare()
    shutil.rmtree(studio.folder / "mug")
    studio.look_at_folder()
    studio.show()
    studio.show_state()
    assert nothing()
    studio.choose("lamp")
    studio.show_state()
    assert studio.download.visible, "control"
    studio.name = queued  # between a press and the next look
    assert studio.splat() is None
    studio.orders.making = None


def test_a_changed_prompt_starts_from_the_chosen_splat(studio: Studio) -> None:
    saved_run(studio.folder, "mug")
    studio.choose("mug")
    studio.show_state()
    studio.change_prompt()
    studio.form.prompt.value = "a blue mug"
    order = studio.orders.add(studio.form.wish(studio.folder), "auto")
    assert order.value("--init") == str(studio.folder / "mug" / "splat.ply")
    studio.refine()
    assert studio.orders.known["a-mug-0"].value("--coarse.steps") == "0"


def test_a_splat_that_cannot_be_read_is_said_on_the_page(studio: Studio) -> None:
    (saved_run(studio.folder, "mug") / "splat.ply").write_text("ply\nend_header\n")
    assert "expected a 3DGS .ply" in answered(studio, lambda: studio.choose("mug"))
