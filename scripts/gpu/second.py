"""The second contact with a GPU: `second.py --out DIR [PART ...] [-- OPTIONS OF THE TRAINING]`

First the parts that are named, which failed in `first.py`; then times that nothing else disturbs; then a toybox teacher
is trained with what is left of the time. Its data are rendered on the CPU from the beginning on. The teacher comes back
in pieces: `cat weights-* | tar -x`.
"""

from __future__ import annotations

import sys

import kit as kits


def main(arguments: list[str] | None = None) -> int:
    parser = kits.parser(__doc__, seconds=420)
    parser.add_argument("parts", nargs="*", help="parts to repeat before the others")
    parser.add_argument("--kind", choices=("multiview", "singleview"), default="multiview", help="teacher to train")
    parser.add_argument("--no-training", dest="training", action="store_false", help="train no teacher")
    arguments = sys.argv[1:] if arguments is None else arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    kit = kits.begin(options)
    import parts
    import training

    names = dict.fromkeys([*options.parts, "environment", "noise times", "full size", "compiled"])  # each of them once
    chosen = kits.chosen(list(names), parts.CHECKS)
    renderer = training.Renderer(kit, options.kind) if options.training else None
    try:
        for part in chosen:
            kits.run(kit, part)
        if renderer is not None:
            rest = tuple(arguments[end + 1 :])
            kits.run(kit, training.part(renderer, options.kind, rest))
    finally:
        if renderer is not None:
            renderer.close()
    return kits.finish(kit)


if __name__ == "__main__":
    sys.exit(main())
