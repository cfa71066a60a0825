"""The studio's page: the viewer's scene and view controls, a form for prompts, and a gallery of the folder's runs."""

from __future__ import annotations

import html
import queue
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import viser
from torch import Tensor

from gscfd.config import Config, MethodName, check, load_run, presets
from gscfd.distil.noises import painted_noise
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians
from gscfd.runs.options import default_preset
from gscfd.studio import cards
from gscfd.studio.gallery import Entry, Gallery, command, delete
from gscfd.studio.options import StudioOptions
from gscfd.studio.orders import Making, Orders, Wish
from gscfd.studio.progress import Progress
from gscfd.toybox.kinds import CATALOGUE, COLORS
from gscfd.toybox.words import Caption, write_caption
from gscfd.types import Cameras, Render
from gscfd.viewer import content, server
from gscfd.viewer.display import TICK_SECONDS, Display
from gscfd.viewer.door import Door
from gscfd.viewer.pace import Pace
from gscfd.viewer.panel import BLUE, ORANGE, add_plot
from gscfd.viewer.saved import Showcase

LOOK_SECONDS = 1.0
"""Interval at which the folder and the run in progress are looked at."""
GALLERY_WIDTH = 360
BALL, NOTHING = "a gray ball", "nothing"
"""First options of the splat to start from, and of the run to show beside the chosen one."""
ANY = "…"
"""First option of the words to pick."""


class Form:
    """What is typed and picked for the next run."""

    def __init__(self, gui: viser.GuiApi, preset: str, make: Callable[[], None]):
        """make: called when the form is submitted."""
        with gui.add_form("New run") as form:
            self.prompt = gui.add_text("Prompt", "", hint="What to make, such as: a red car")
            self.color = gui.add_dropdown("Color", (ANY, *COLORS), hint="Picked words are written into the prompt.")
            self.kind = gui.add_dropdown("Object", (ANY, *CATALOGUE), hint="Picked words are written into the prompt.")
            gui.add_html(cards.known_words())
            with gui.add_folder("Settings", expand_by_default=False):
                self.preset = gui.add_dropdown("Preset", presets(), initial_value=preset, hint="Teachers and lengths.")
                self.method = gui.add_dropdown("Method", get_args(MethodName), hint="cfd is gscfd's own.")
                self.seed = gui.add_number("Seed", 0, min=0, step=1, hint="Another seed makes another object.")
                self.start = gui.add_dropdown("Start from", (BALL,), hint="Splat that the run changes.")
            button = gui.add_button("Make", icon=viser.Icon.SPARKLES)
            self.answer = gui.add_html("")
        for words in (self.color, self.kind):
            words.on_update(lambda _: self.write())
        button.on_click(lambda _: form.submit())
        form.on_submit(lambda _: make())

    def write(self) -> None:
        """Writes the picked words into the prompt."""
        if self.kind.value != ANY:
            color = None if self.color.value == ANY else self.color.value
            self.prompt.value = write_caption(Caption(kind=self.kind.value, color=color))

    def wish(self, folder: Path) -> Wish:
        """Returns what is typed. Raises UserError for a seed or a start that a browser may send and no page offers."""
        seed, start = self.seed.value, None if self.start.value == BALL else folder / self.start.value / "splat.ply"
        check(self.start.value in self.start.options, "start", "a run of the folder", self.start.value)
        check(float(seed).is_integer(), "seed", "a whole number", seed)
        prompt = " ".join(self.prompt.value.split())
        return Wish(
            prompt=prompt,
            preset=self.preset.value,
            seed=int(seed),
            guidance=self.method.value,
            start=start,
        )

    def fill(self, entry: Entry, start: str) -> None:
        """Fills the form with the settings of a run."""
        self.prompt.value = entry.prompt
        self.seed.value = int(entry.seed)
        self.start.value = start
        if entry.preset in self.preset.options:
            self.preset.value = entry.preset
        if entry.guidance in self.method.options:
            self.method.value = entry.guidance
        set_content(self.answer, "")

    def offer(self, names: list[str]) -> None:
        """Offers the splats of these runs to start from."""
        set_options(self.start, (BALL, *names))


class Chosen:
    """The chosen run: what is known of it, and what can be done with it."""

    def __init__(self, gui: viser.GuiApi):
        self.folder = gui.add_folder("Chosen run")
        with self.folder:
            self.facts = gui.add_html(cards.said("Nothing is chosen."))
            self.buttons = {
                name: gui.add_button(name, icon=icon, hint=hint, color="red" if name == "Delete" else None)
                for name, icon, hint in ACTIONS
            }
            self.beside = gui.add_dropdown("Compare with", (NOTHING,), hint="Shows both, the chosen one on the left.")
            self.answer = gui.add_html("")

    def show(self, entry: Entry | None, text: str, can: set[str]) -> None:
        """Shows a run, and the buttons named in `can`."""
        set_content(self.facts, text)
        for name, button in self.buttons.items():
            if button.visible != (name in can):
                button.visible = name in can
        self.beside.visible = entry is not None and entry.state != "queued"


ACTIONS = (
    ("Stop and save", viser.Icon.PLAYER_STOP, "Ends the run after its step; Continue goes on with it later."),
    ("Continue", viser.Icon.PLAYER_PLAY, "Puts the run into the queue again, from its last saved step."),
    ("Take out of the queue", viser.Icon.X, "The run is not made."),
    ("Another seed", viser.Icon.DICE, "The same prompt once more, as another object."),
    ("Refine", viser.Icon.SPARKLES, "A new run that sharpens this splat, without the coarse stage."),
    ("Change the prompt", viser.Icon.PENCIL, "Writes this run into the form, to start from its splat."),
    ("Delete", viser.Icon.TRASH, "Removes the run's folder, after a question."),
)
"""Name, icon and explanation of the buttons of a chosen run."""
ALLOWED: dict[str, set[str]] = {
    "queued": {"Take out of the queue"},
    "running": {"Stop and save"},
    "elsewhere": set(),
    "finished": {"Another seed", "Refine", "Change the prompt", "Delete"},
    "stopped": {"Continue", "Another seed", "Change the prompt", "Delete"},
    "failed": {"Continue", "Another seed", "Change the prompt", "Delete"},
}
"""Buttons by the state of the chosen run."""


class Studio:
    """Serves the page. What a browser asks for is done on the thread that calls `tick`, one thing after another."""

    def __init__(self, options: StudioOptions):
        """Raises UserError if the folder belongs to another studio or cannot be written, or if the page cannot be
        served."""
        self.options, self.folder = options, options.folder.resolve()
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"folder: expected a folder of runs, got the file {options.folder}; choose another one")
        self.orders = Orders(self.folder)
        self.gallery = Gallery(self.orders)
        self.todo: queue.SimpleQueue[tuple[viser.GuiHtmlHandle, Callable[[], str]]] = queue.SimpleQueue()
        """Where to answer, and what to do."""
        door = Door(options.host, f"{self.folder.name} · gscfd studio")
        door.files = self.gallery.picture
        door.actions["choose"] = lambda name: self.ask(self.chosen.answer, partial(self.choose, name))
        try:
            self.server = server.serve(options, door)
        except UserError:
            self.orders.journal.close()
            raise
        self.address = server.address(self.server)
        self.orders.write("", "serving", address=self.address)
        self.entries: list[Entry] = []
        self.name: str | None = None
        """Name of the chosen run."""
        self.shown: list[Path] = []
        self.progress: Progress | None = None
        self.looked, self.pace = 0.0, Pace(1.0, options.bandwidth)
        self.build(door)

    def build(self, door: Door) -> None:
        """Builds the page."""
        gui = self.server.gui
        self.now = gui.add_html(cards.said(""))
        self.bar = gui.add_progress_bar(0.0, visible=False)
        self.form = Form(gui, default_preset(None)[0], lambda: self.ask(self.form.answer, self.make))
        self.chosen = Chosen(gui)
        self.display = Display(self.server, door, self.paint)
        with self.chosen.folder:
            self.download = self.display.add_download(lambda: self.name or "splat", self.splat, lambda: self.prompt)
        self.showcase = Showcase(self.server, self.display, self.chosen.folder)
        column = gui.add_panel()
        with column.add_tab("Runs", icon=viser.Icon.PHOTO):
            self.cards = gui.add_html("")
        with column.add_tab("Progress", icon=viser.Icon.CHART_LINE):
            self.loss, self.count = add_plot(gui, "loss", BLUE), add_plot(gui, "Gaussians", ORANGE)
        column.dock_left()
        column.set_width(GALLERY_WIDTH)
        do = {
            "Stop and save": self.stop,
            "Continue": self.resume,
            "Take out of the queue": self.take_out,
            "Another seed": self.another_seed,
            "Refine": self.refine,
            "Change the prompt": self.change_prompt,
        }
        for name, action in do.items():
            self.chosen.buttons[name].on_click(lambda _, action=action: self.ask(self.chosen.answer, action))
        self.chosen.buttons["Delete"].on_click(lambda event: self.question(event.client))
        self.chosen.beside.on_update(lambda _: self.ask(self.chosen.answer, self.show))

    def paint(self, cameras: Cameras, render: Render) -> Tensor:
        """Paints the noise of the chosen run on its views."""
        return painted_noise(self.settings() or Config(), cameras, render)

    # Called by browsers, on threads of their own.

    def ask(self, answer: viser.GuiHtmlHandle, action: Callable[[], str]) -> None:
        """Has something done at the next tick. answer: where its result is written."""
        self.todo.put((answer, action))

    def question(self, client: viser.ClientHandle) -> None:
        """Asks in the browser whether the chosen run is to be deleted."""
        name = self.name
        if name is None:
            return
        with client.gui.add_modal(f"Delete {name}?") as modal:
            client.gui.add_html(cards.said("Its splat, pictures and settings are removed from the disk."))
            sure = client.gui.add_button("Delete it", color="red", icon=viser.Icon.TRASH)
            keep = client.gui.add_button("Keep it")

        def delete_it() -> None:
            modal.close()
            self.ask(self.chosen.answer, partial(self.delete, name))

        sure.on_click(lambda _: delete_it())
        keep.on_click(lambda _: modal.close())

    # Called by `tick`.

    def make(self) -> str:
        """Queues the run that the form describes."""
        return self.queued(self.form.wish(self.folder))

    def queued(self, wish: Wish) -> str:
        order = self.orders.add(wish, self.options.device)
        before = len(self.orders.waiting) - 1 + (self.orders.making is not None)
        self.looked = 0.0
        if before == 0:
            self.choose(order.name)
        said = f"Put in the queue: {order.name}" + (f", {before} before it" if before else "")
        return f"{said}. It begins by fetching its teachers from the hub." if wish.fetches else said

    def choose(self, name: str) -> str:
        """Shows a run of the gallery."""
        self.look_at_folder()
        if name not in [entry.name for entry in self.entries]:
            raise UserError(f"There is no run {name} in this folder any more.")
        if name != self.name:
            set_content(self.chosen.answer, "")  # it is of another run
        self.name, self.looked = name, 0.0
        return self.show()

    def entry(self) -> Entry:
        """Returns the chosen run. Raises UserError if it is gone."""
        for entry in self.entries:
            if entry.name == self.name:
                return entry
        raise UserError("Choose a run in the gallery first.")

    @property
    def prompt(self) -> str:
        """Prompt of the chosen run, or ""."""
        return next((entry.prompt for entry in self.entries if entry.name == self.name), "")

    def splat(self) -> Gaussians | None:
        """Returns the splat of the chosen run as it is shown, or None if another run is shown or none."""
        shown = bool(self.shown) and self.name is not None and self.shown[0] == self.folder / self.name
        return self.showcase.splat(0) if shown else None

    def settings(self) -> Config | None:
        """Returns the settings of the chosen run, or None if it has none yet, or damaged ones."""
        try:
            return None if self.name is None else load_run(self.folder / self.name)
        except UserError:
            return None

    def show(self) -> str:
        """Shows the chosen run, and the one to compare it with, in the scene; nothing if the chosen one has no splat
        or is gone."""
        there = {entry.name for entry in self.entries if entry.has_splat}
        names = dict.fromkeys([self.name, self.chosen.beside.value]) if self.name in there else ()
        paths = [self.folder / name for name in names if name in there]
        if paths != self.shown:
            self.shown = paths
            self.showcase.show(paths)
        return ""

    def stop(self) -> str:
        self.orders.stop()
        return "It ends after this step, and is saved."

    def resume(self) -> str:
        entry = self.entry()
        if entry.state not in ("stopped", "failed"):
            raise UserError(f"continue: expected a stopped run, got one that is {cards.STATES[entry.state]}")
        self.orders.resume(entry.name)
        self.looked = 0.0
        return f"Put in the queue: {entry.name}"

    def take_out(self) -> str:
        entry = self.entry()
        if entry.state != "queued":
            raise UserError(f"queue: {entry.name} is {cards.STATES[entry.state]}")
        self.orders.remove(entry.name)
        self.looked = 0.0
        return f"{entry.name} is out of the queue."

    def another_seed(self) -> str:
        """Queues the chosen run's prompt with the next seed that no run of it has."""
        entry = self.entry()
        seeds = [int(other.seed) for other in self.entries if other.prompt == entry.prompt and other.seed.isdigit()]
        return self.queued(Wish(**self.like(entry) | {"seed": max(seeds, default=-1) + 1}))

    def refine(self) -> str:
        """Queues a run that starts from the chosen splat and skips the coarse stage."""
        entry = self.entry()
        start = self.folder / entry.name / "splat.ply"
        return self.queued(Wish(**self.like(entry), start=start, refine=True))

    def like(self, entry: Entry) -> dict[str, Any]:
        """Returns the arguments of `Wish` that repeat a run. Raises UserError if its preset is a file of its own."""
        if entry.preset not in presets() or not entry.seed.isdigit() or entry.guidance not in get_args(MethodName):
            raise UserError(f"preset: expected one of {', '.join(presets())}, got {entry.preset}; use the form")
        return {"prompt": entry.prompt, "preset": entry.preset, "seed": int(entry.seed), "guidance": entry.guidance}

    def change_prompt(self) -> str:
        entry = self.entry()
        self.form.fill(entry, entry.name if (self.folder / entry.name / "splat.ply").is_file() else BALL)
        return "The form holds this run: change the prompt there, and press Make."

    def delete(self, name: str) -> str:
        """Removes a run that is neither being made nor in the queue."""
        self.look_at_folder()
        state = {entry.name: entry.state for entry in self.entries}.get(name)
        if state not in ("finished", "stopped", "failed"):
            raise UserError(f"delete: {name} is {cards.STATES.get(state or '', 'gone')}")
        if name in self.gallery.on_disk():
            delete(self.folder, name)
        self.orders.remove(name)
        self.gallery.strips.pop(name, None)
        self.name = None if self.name == name else self.name
        self.looked = 0.0
        self.look_at_folder()
        self.show()
        return f"{name} is deleted."

    def tick(self, now: float) -> None:
        """Does what was asked, looks at the folder and the run, and sends what has changed."""
        self.display.turn(now)
        while not self.todo.empty():
            self.do(*self.todo.get())
        if now - self.looked >= LOOK_SECONDS:
            self.looked = now
            self.do(self.chosen.answer, self.look)
        self.showcase.look(now)
        if self.pace.ready(now):
            self.do(self.chosen.answer, self.send)

    def do(self, answer: viser.GuiHtmlHandle, action: Callable[[], str]) -> None:
        """Does something, and writes its answer or what prevented it; "" leaves the answer as it is."""
        try:
            said = action()
        except (UserError, OSError) as error:
            set_content(answer, cards.said(html.escape(str(error)), bad=True))
            return
        if said:
            set_content(answer, cards.said(html.escape(said)))

    def send(self) -> str:
        self.showcase.update()
        self.pace.worked(time.monotonic(), 0.0, self.display.refresh())
        return ""

    def look(self) -> str:
        """Looks at the queue, the folder and the run in progress."""
        making = self.orders.making
        self.orders.tick()
        if self.orders.making is not making and self.orders.making is not None and self.follows(making):
            self.name = self.orders.making.order.name
        self.look_at_folder()
        if self.name is None and self.entries:
            self.name = self.entries[0].name
        self.look_at_progress()
        self.show_state()
        return self.show()

    def follows(self, before: Making | None) -> bool:
        """Returns whether a run that begins is chosen: if the one before it was, or one that is not made yet."""
        state = {entry.name: entry.state for entry in self.entries}.get(self.name or "")
        return state in (None, "queued") or (before is not None and before.order.name == self.name)

    def look_at_folder(self) -> None:
        self.entries = self.gallery.entries()
        self.gallery.make_picture(entry.name for entry in self.entries if entry.state in ("finished", "stopped"))

    def look_at_progress(self) -> None:
        """Reads the steps of the run in progress and draws their curves."""
        making = self.orders.making
        if making is None:
            self.progress = None
            return
        folder = self.folder / making.order.name
        if self.progress is not None and self.progress.folder != folder:
            self.progress = None
        if self.progress is None and (folder / "config.yaml").is_file():
            self.progress = Progress(folder, load_run(folder))
        if self.progress is not None and self.progress.look():
            steps, losses, counts = content.curves(self.progress.points)
            self.loss.data, self.count.data = (steps, losses), (steps, counts)

    def show_state(self) -> None:
        """Writes the gallery, the run in progress and the chosen run."""
        making, progress = self.orders.making, self.progress
        shares = {} if making is None or progress is None else {making.order.name: f"{100 * progress.share:.0f} %"}
        versions = {name: version for name, (version, data) in self.gallery.strips.items() if data}
        set_content(self.cards, cards.gallery(self.entries, self.name, versions, shares))
        self.bar.visible = making is not None
        self.bar.value = 0.0 if progress is None else round(100 * progress.share, 1)
        set_content(self.now, cards.said(self.summary(), bad=bool(self.orders.trouble)))
        names = [entry.name for entry in self.entries if (self.folder / entry.name / "splat.ply").is_file()]
        self.form.offer(names)
        entry = next((entry for entry in self.entries if entry.name == self.name), None)
        set_options(self.chosen.beside, (NOTHING, *(name for name in names if name != self.name)))
        self.download.visible = entry is not None and self.splat() is not None
        if entry is None:
            self.chosen.show(None, cards.said("Nothing is chosen."), set())
            return
        order = self.orders.known.get(entry.name)
        text = cards.facts(entry, str(self.folder / entry.name), command(order, self.folder) if order else "")
        self.chosen.show(entry, text, ALLOWED[entry.state])

    def summary(self) -> str:
        """Returns HTML on the run in progress and the queue."""
        if self.orders.trouble:
            return html.escape(self.orders.trouble)
        making, waiting = self.orders.making, len(self.orders.waiting)
        if making is None:
            return (
                "No run is being made." if not waiting else f"{waiting} in the queue, which another program holds up."
            )
        prompt = html.escape(making.order.value("--prompt") or making.order.name)
        stage = "stopping" if making.stopping else str(self.progress or "starting")
        rest = f"<br>{waiting} in the queue" if waiting else ""
        return f"<b>{prompt}</b><br>{html.escape(stage)}{rest}"

    def serve(self) -> None:
        """Serves the page until Ctrl-C, then saves the run in progress."""
        try:
            while True:
                self.tick(time.monotonic())
                time.sleep(TICK_SECONDS)
        except KeyboardInterrupt:
            if self.orders.making is not None:
                print(f"saving {self.orders.making.order.name}; the next gscfd studio goes on with it", flush=True)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the run in progress, which the next studio resumes, and the page."""
        self.orders.close()
        server.stop(self.server)


def set_content(handle: viser.GuiHtmlHandle, text: str) -> None:
    """Sends HTML if it has changed."""
    if handle.content != text:
        handle.content = text


def set_options(handle: viser.GuiDropdownHandle[str], options: tuple[str, ...]) -> None:
    """Sends the options if they have changed; a value that is no longer offered becomes the first one."""
    if tuple(handle.options) != options:
        handle.options = options
