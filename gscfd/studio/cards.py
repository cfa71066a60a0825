"""The studio's HTML: the gallery's cards, the chosen run, the run in progress and the known words."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from gscfd.studio.gallery import Entry
from gscfd.toybox.kinds import CATALOGUE, COLORS, SUPPORTS

MOST_CARDS = 200
"""Maximum number of cards; the others are counted."""
STATES = {
    "queued": "in the queue",
    "running": "being made",
    "elsewhere": "being made elsewhere",
    "finished": "finished",
    "stopped": "stopped",
    "failed": "failed",
}
LOOKS = {"failed": " gs-bad", "running": " gs-now", "elsewhere": " gs-now"}


def gallery(
    entries: Sequence[Entry], chosen: str | None, pictures: Mapping[str, int], shares: Mapping[str, str]
) -> str:
    """Returns the cards of the runs. pictures: version of each run's picture, by name. shares: progress in words."""
    if not entries:
        return '<div class="gs-text">No runs yet. Type a prompt, and press <b>Make</b>.</div>'
    cards = [card(entry, entry.name == chosen, pictures.get(entry.name), shares) for entry in entries[:MOST_CARDS]]
    more = len(entries) - MOST_CARDS
    rest = f'<div class="gs-text">and {more} older ones in the folder</div>' if more > 0 else ""
    return f'<div class="gs-cards" role="group" aria-label="Runs">{"".join(cards)}</div>{rest}'


def card(entry: Entry, pressed: bool, version: int | None, shares: Mapping[str, str]) -> str:
    state = shares.get(entry.name) or STATES[entry.state]
    if entry.state == "queued":
        state = f"{state}, {entry.note}"
    prompt, look = html.escape(entry.prompt or entry.name), LOOKS.get(entry.state, "")
    words = f'<span class="gs-state{look}">{html.escape(state)}</span>'
    if version is None:
        picture, words = f'<span class="gs-picture gs-none">{words}</span>', ""
    else:
        picture = f'<img class="gs-picture" loading="lazy" alt="" src="picture/{quote(entry.name, safe="")}?{version}">'
        words = f" · {words}"
    return (
        f'<button type="button" class="gs-card" data-do="choose" data-value="{html.escape(entry.name)}" '
        f'aria-pressed="{"true" if pressed else "false"}">{picture}<span class="gs-words"><b>{prompt}</b>'
        f"seed {html.escape(entry.seed)}{words}</span></button>"
    )


def facts(entry: Entry, where: str, command: str) -> str:
    """Returns what is known of the chosen run. where: its folder. command: that makes it, or ""."""
    state = STATES[entry.state]
    if entry.state in ("finished", "stopped"):
        state += f", {entry.note or f'saved in {where}'}"
    lines = [
        f"<b>{html.escape(entry.prompt or entry.name)}</b>",
        html.escape(f"seed {entry.seed} · {entry.preset} · {entry.guidance}"),
        f'<span class="gs-state{LOOKS.get(entry.state, "")}">{html.escape(state)}</span>',
    ]
    if entry.note and entry.state == "failed":
        lines.append(f'<span class="gs-bad">{html.escape(entry.note)}</span>')
    text = "<br>".join(lines)
    if command:
        text += f"<details><summary>Command</summary><code>{html.escape(command)}</code></details>"
    return said(text)


def said(content: str, *, bad: bool = False) -> str:
    """Returns HTML in the style of the panel. bad: whether something was refused."""
    return f'<div class="gs-text{" gs-bad" if bad else ""}" role="status">{content}</div>'


def known_words() -> str:
    """Returns the words that the toybox's teachers know, with one example of each kind of sentence."""
    objects = [f"{name} ({kind.part.format('…')})" if kind.part else name for name, kind in CATALOGUE.items()]
    rows = [
        ("Objects", ", ".join(objects)),
        ("Colors", ", ".join(COLORS)),
        ("On something", ", ".join(f"on a … {support}" for support in SUPPORTS)),
    ]
    lines = "".join(f"<b>{name}</b>: {html.escape(words)}<br>" for name, words in rows)
    examples = "a red mushroom with a white stem · a yellow duck on a brown table"
    return said(f"<details><summary>Words that the toybox knows</summary>{lines}<i>{examples}</i></details>")
