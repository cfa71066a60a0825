"""Draws objects of the toybox world: `python scripts/toybox_sheet.py OUT.png [--kinds mug duck] [--seed 0]`.

Each object gets a strip of views, counterclockwise from the front. Draws every kind once unless kinds are given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from gscfd.cameras import turntable
from gscfd.toybox.data import render_object
from gscfd.toybox.objects import KINDS, sample_object


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help="default: every kind")
    parser.add_argument("--free", type=int, default=0, help="draw this many unconstrained objects instead")
    parser.add_argument("--color", help="main color of all objects; default: drawn from the seed")
    parser.add_argument("--each", type=int, default=1, help="objects per kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=96, help="width and height of a view in pixels")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--columns", type=int, default=4, help="objects per row")
    args = parser.parse_args()

    seeds = range(args.seed, args.seed + (args.free or args.each * len(args.kinds)))
    kinds = [None] * args.free or [kind for kind in args.kinds for _ in range(args.each)]
    cameras = turntable(args.views, size=args.size)
    background = torch.tensor([0.86, 0.86, 0.85])
    strips = []
    for seed, kind in zip(seeds, kinds, strict=True):
        thing = sample_object(seed, kind=kind, color=args.color, spacing=1.7 / args.size)
        strips.append(torch.cat(list(render_object(thing, cameras, background)), -1))
    blank = background[:, None, None].expand_as(strips[0])
    strips += [blank] * (-len(strips) % args.columns)
    rows = [torch.cat(strips[i : i + args.columns], -1) for i in range(0, len(strips), args.columns)]
    sheet = (torch.cat(rows, -2).permute(1, 2, 0) * 255).round().byte()
    Image.fromarray(sheet.numpy()).save(args.out, optimize=True)
    print(f"{args.out}: {len(kinds)} objects, {args.views} views each")


if __name__ == "__main__":
    main()
