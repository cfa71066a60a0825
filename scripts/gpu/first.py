"""The first contact with a GPU: does it run, is it right, and how fast is it? `first.py --out DIR`

Cheap and vital parts first, one after another; then the slow ones side by side. Everything that `prepare.py` packed is
unpacked first. Results: results.jsonl, report.md, log.txt, the splat and the picture of a whole run.
"""

from __future__ import annotations

import sys

import kit as kits


def main(arguments: list[str] | None = None) -> int:
    parser = kits.parser(__doc__, seconds=270)
    parser.add_argument("parts", nargs="*", help="only these parts (default: all)")
    options = parser.parse_args(arguments)
    kit = kits.begin(options)
    import parts

    kit.note(imports="torch, diffusers, gscfd")
    if options.parts:
        for part in kits.chosen(options.parts, parts.CHECKS):
            kits.run(kit, part)
    else:
        for part in kits.chosen(parts.ALONE, parts.CHECKS):
            kits.run(kit, part)
        kits.run(kit, *kits.chosen(parts.TOGETHER, parts.CHECKS))
    return kits.finish(kit)


if __name__ == "__main__":
    sys.exit(main())
