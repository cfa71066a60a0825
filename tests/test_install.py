"""The Dockerfiles say what README and docs say: there is one way to install, written once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def steps(text: str) -> list[str]:
    """The commands of a text in order, one for each side of &&, without comments and packages of the system."""
    parts = [part.strip() for line in text.splitlines() for part in line.split(" #")[0].split("&&")]
    return [part for part in parts if part and not part.startswith(("apt-get", "rm -rf /var"))]


def run_steps(dockerfile: str) -> list[str]:
    lines = re.findall(r"^RUN (.*)$", dockerfile, re.MULTILINE)
    return [step for line in lines for step in steps(line)]


def first_block(page: str) -> list[str]:
    found = BLOCK.search((ROOT / page).read_text())
    assert found is not None
    return steps(found[1])


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_a_container_installs_by_the_words_of_the_readme(name: str) -> None:
    dockerfile, readme = (ROOT / name).read_text(), first_block("README.md")
    *install, make = readme
    found = run_steps(dockerfile)
    assert found[: len(install)] == install and len(install) == 2
    gpu = [step for step in first_block("docs/speed.md") if step.startswith("pip")]
    more = [f".venv/bin/{step}" for step in gpu] if name.endswith("cuda") else []
    assert found[len(install) :] == more and len(gpu) == 1
    entry = re.search(r'^ENTRYPOINT \["(.*)"\]$', dockerfile, re.MULTILINE)
    assert entry is not None and make.startswith(f"{entry[1]} train ")
    assert "g++" in dockerfile and "COPY . ." in dockerfile


def test_another_word_is_noticed() -> None:
    """The control."""
    assert run_steps("RUN apt-get update && a && b\nCOPY x\nRUN c\n") == ["a", "b", "c"]
    assert run_steps("RUN python3 -m venv env") != first_block("README.md")[:1]


def test_the_parts_that_a_container_copies_do_not_include_what_git_ignores() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "build", "outputs", "**/*.so"} <= set(ignored)
