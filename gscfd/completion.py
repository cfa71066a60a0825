"""Completion of `gscfd` by the shell: commands, options and their fixed values, read from the help texts."""

from __future__ import annotations

import re
from typing import Literal

from gscfd.errors import UserError

Shell = Literal["bash", "zsh", "fish"]
SHELLS: tuple[Shell, ...] = ("bash", "zsh", "fish")
OPTION = re.compile(r"(?<![\w-])(--[a-zA-Z](?:[\w.-]*\w)?)(?: \{([\w,./-]+)\})?")
"""An option as help texts show it, with its values if they are fixed."""


PARTS = re.compile(r"^usage: gscfd [\w-]+ (?:\[-h\] )?\{([\w,-]+)\}", re.MULTILINE)
"""The words of which one follows a command, as its help text shows them."""


def parts_of(text: str) -> list[str]:
    """Returns the words of which one follows the command, such as bash, or [] if its help text shows none."""
    found = PARTS.search(text)
    return found[1].split(",") if found else []


def options_of(text: str) -> dict[str, list[str]]:
    """Returns the options of a help text with their fixed values, or [] for those that take none or any, whether or not
    they may be unset by None."""
    found: dict[str, list[str]] = {}
    for name, values in OPTION.findall(text):
        found[name] = found.get(name) or (values.split(",") if values not in ("", "None") else [])
    return found


def completion(shell: str, helps: dict[str, str]) -> str:
    """Returns the script that teaches the shell to complete `gscfd`.

    helps: help text of every command. Raises UserError for an unknown shell.
    """
    options = {command: options_of(text) for command, text in helps.items()}
    parts = {command: found for command, text in helps.items() if (found := parts_of(text))}
    if shell == "fish":
        return fish(options, parts)
    if shell == "zsh":
        return "autoload -U +X compinit bashcompinit && compinit -u && bashcompinit\n" + bash(options, parts)
    if shell != "bash":
        raise UserError(f"shell: expected {', '.join(SHELLS)}, got {shell!r}")
    return bash(options, parts)


def bash(options: dict[str, dict[str, list[str]]], parts: dict[str, list[str]]) -> str:
    """Returns the script for bash, and for zsh with bashcompinit. parts: words of which one follows a command."""
    names, values = [], []
    for command, known in options.items():
        names.append(f'    {command}) words="{" ".join(known)}" ;;')
        values += [
            f'    {command}:{name}) words="{" ".join(choices)}" ;;' for name, choices in known.items() if choices
        ]
    return "\n".join(
        [
            "_gscfd() {",
            '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
            "  if [ $COMP_CWORD -eq 1 ]; then",
            f'    COMPREPLY=($(compgen -W "{" ".join(options)}" -- "$word")); return',
            "  fi",
            '  case "${COMP_WORDS[1]}:$COMP_CWORD" in',
            *(f'    {command}:2) words="{" ".join(found)}" ;;' for command, found in parts.items()),
            "  esac",
            '  case "${COMP_WORDS[1]}:$before" in',
            *values,
            "  esac",
            '  if [ -z "$words" ] && [ "${word:0:1}" = "-" ]; then',
            '    case "${COMP_WORDS[1]}" in',
            *("  " + line for line in names),
            "    esac",
            "  fi",
            '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
            "}",
            "complete -o default -F _gscfd gscfd",
            "",
        ]
    )


def fish(options: dict[str, dict[str, list[str]]], parts: dict[str, list[str]]) -> str:
    """Returns the script for fish. parts: words of which one follows a command."""
    lines = [f'complete -c gscfd -n __fish_use_subcommand -f -a "{" ".join(options)}"']
    for command, known in options.items():
        begin = f'complete -c gscfd -n "__fish_seen_subcommand_from {command}"'
        if command in parts:
            lines.append(f'{begin} -f -a "{" ".join(parts[command])}"')
        for name, choices in known.items():
            lines.append(f"{begin} -l {name[2:]}" + (f' -x -a "{" ".join(choices)}"' if choices else ""))
    return "\n".join([*lines, ""])
