"""Checkpoints of a run: written atomically and verified by checksums.

A checkpoint consists of two files, `000012.safetensors` with the tensors and `000012.json` with everything else. The
.json is written last, which makes the checkpoint valid; it holds the checksums of the tensors and of its own facts.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import safetensors.torch
from safetensors import SafetensorError

from gscfd.config import StageName
from gscfd.distil.state import Checkpoint, StateDict
from gscfd.errors import UserError, warn
from gscfd.files import atomic_write
from gscfd.version import __version__

FORMAT = 1
"""Format version, increased by every change to the content or meaning of a checkpoint."""
NAME = re.compile(r"(\d{6,})\.(json|safetensors)")
"""File names of a checkpoint."""


class DamagedError(ValueError):
    """The checkpoint differs from what was written."""


class Checkpoints:
    """The newest `keep` checkpoints, in a folder that is created for the first one."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes the checkpoint, then removes the oldest. Raises OSError on failure; earlier checkpoints remain."""
        self.folder.mkdir(exist_ok=True)
        number = max(self.numbers(), default=0) + 1
        checkpoint.state.wait()
        tensors = {name: value.contiguous() for name, value in checkpoint.state.tensors.items()}
        data = safetensors.torch.save(tensors)
        facts = {**vars(checkpoint), "state": checkpoint.state.numbers}
        sums = {"tensors": digest(data), "facts": digest(canonical(facts))}
        with atomic_write(self.path(number, "safetensors")) as file:
            file.write(data)
        head = {"format": FORMAT, "gscfd": __version__, "sha256": sums, "facts": facts}
        with atomic_write(self.path(number, "json")) as file:
            file.write(json.dumps(head, indent=1).encode())
        self.remove_all_but(self.numbers()[-self.keep :])

    def newest(self) -> Checkpoint | None:
        """Returns the newest intact checkpoint, or None if none was written. Removes newer, damaged ones.

        Raises UserError if all are damaged, or if one has another format.
        """
        numbers = self.numbers()
        for number in reversed(numbers):
            try:
                checkpoint = self.read(number)
            except DamagedError as error:
                warn(f"resume: {error}; trying the checkpoint before it")
                continue
            self.remove_all_but([n for n in numbers if n <= number])
            if (version := self.written_by(number)) != __version__:
                warn(
                    f"resume: gscfd {version} wrote the checkpoint, and this is {__version__}: the run may end "
                    "otherwise than one that was never stopped"
                )
            return checkpoint
        if numbers:
            raise UserError(
                f"resume: expected an intact checkpoint in {self.folder}, got {len(numbers)} that are damaged; "
                "start again with the run's config.yaml as --preset and another --out"
            )
        return None

    def read(self, number: int) -> Checkpoint:
        """Returns a checkpoint. Raises DamagedError, or UserError if it has another format."""
        path = self.path(number, "json")
        try:
            head = json.loads(path.read_bytes())
            check_format(head, path)
            data = self.path(number, "safetensors").read_bytes()
            facts = head["facts"]
            sums = {"tensors": digest(data), "facts": digest(canonical(facts))}
            if head["sha256"] != sums:
                raise ValueError("its checksums do not match")
            check_facts(facts)
            return Checkpoint(**{**facts, "state": StateDict(safetensors.torch.load(data), facts["state"])})
        except (DamagedError, UserError):
            raise
        except (OSError, LookupError, TypeError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
            raise DamagedError(f"{path.with_suffix('')} is damaged: {error!r:.200}") from error

    def written_by(self, number: int) -> str:
        """Returns the version of gscfd that wrote an intact checkpoint."""
        return str(json.loads(self.path(number, "json").read_bytes()).get("gscfd", "unknown"))

    def numbers(self) -> list[int]:
        """Returns the numbers of the completely written checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        names = [NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted(int(name[1]) for name in names if name and name[2] == "json")

    def path(self, number: int, kind: str) -> Path:
        return self.folder / f"{number:06d}.{kind}"

    def remove_all_but(self, numbers: list[int]) -> None:
        """Removes all checkpoints except those with these numbers."""
        kept = {self.path(number, kind).name for number in numbers for kind in ("json", "safetensors")}
        # In sorted order a .json is removed before its .safetensors, and so never remains without its tensors.
        for path in sorted(self.folder.iterdir()):
            if NAME.fullmatch(path.name) and path.name not in kept:
                path.unlink()

    def clear(self) -> None:
        """Removes all checkpoints, after the run has finished."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)


def check_format(head: Any, path: Path) -> None:
    if not isinstance(head, dict) or "format" not in head:
        raise DamagedError(f"{path.with_suffix('')} is damaged: it names no format")
    if head["format"] != FORMAT:
        raise UserError(
            f"resume: expected checkpoints of format {FORMAT}, got format {head['format']!r} in {path}, written by "
            f"gscfd {head.get('gscfd', 'unknown')}; resume with that version, or start again"
        )


def check_facts(facts: dict[str, Any]) -> None:
    """Raises ValueError, TypeError or KeyError unless the facts of a checkpoint have the types of `Checkpoint`."""
    counts = [facts["rows"], *(facts["state"][name] for name in ("step", "good_step", "rollbacks"))]
    known = facts["stage"] in get_args(StageName) and isinstance(facts["config"], dict)
    if not known or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"unknown stage {facts['stage']!r:.40}, or numbers {counts!r:.80} that no run has")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True).encode()
