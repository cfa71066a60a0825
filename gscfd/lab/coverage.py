"""Mode coverage: which of the ideal teacher's objects a seed ends at, and whether that is in their proportions.

The clean flow of data with several modes ends at each in proportion to its probability. A method whose noise is fresh
at every step follows the mean over the noise instead, and ends at the likeliest mode whatever the seed.

The objects are one mug in four tints, of equal distance from each other and from the gray ball that a splat starts as,
so that no mode is nearer to the start. They are near enough to part late, when the splat has had time to follow.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gscfd.config import Config, check, merged, plain
from gscfd.distil.schedule import time_index
from gscfd.errors import UserError
from gscfd.files import write_rows, write_text
from gscfd.gaussians import Gaussians
from gscfd.harmonics import rgb_to_sh0
from gscfd.lab.assets import as_gaussians
from gscfd.lab.claims import sqrt_points
from gscfd.lab.crowd import CrowdTeacher, groups_around, optimized
from gscfd.lab.flat import FLAT
from gscfd.lab.ideal import Cosines
from gscfd.lab.intervals import benjamini_hochberg
from gscfd.lab.options import CoverageOptions
from gscfd.lab.report import Report, Table, check_report, write_json, write_page
from gscfd.lab.trials import images_of, seen
from gscfd.teachers.schedules import Flow
from gscfd.toybox.objects import sample_object

DRAWS = 20_000
"""Simulated experiments behind a p-value."""
SHARES = {"unequal": (4.0, 2.0, 1.0, 1.0), "equal": (1.0, 1.0, 1.0, 1.0)}
"""Proportions of the four objects."""
TINT = 0.1
"""Distance of the tints from gray in each color, in [0, 1]."""
CORNERS = ((1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0))
"""Of a tetrahedron of colors."""
SIZE, GROUPS, VIEWS, STEPS, COUNT = 32, 12, 4, 30, 128
"""Pixels of the views; groups of views that a step draws from, and their size; steps; Gaussians."""
RATES = {"means": 0.012, "quats": 0.015, "scales": 0.024, "opacities": 0.12, "sh0": 0.09, "shN": 0.0045}
"""Adam's step sizes: up to three times the default's, since there are a tenth of its steps."""
SLOWER = 3.0
"""What they are divided by, for a splat that follows the flow too slowly."""
BATCH = 16
"""Seeds that run side by side."""
MODE = 0.75
"""Share of one object from which a splat is that object: nearer to it than to the middle between two."""
SCHEDULE = Flow(1000)
"""Leaves so little of the image at t = .98 (alpha = .02) that the flow can start from noise alone. Stable Diffusion's
schedule has alpha = .08 there, and its flow from noise alone prefers the modes nearest to 0."""
HIGH, LOW = 0.98, 0.25
"""Times at the start and at the end. Between them log(sigma / alpha) falls evenly, so that the tints have as many steps
to part, whatever their distance."""

# ----------------------------------------------------------------------------------------------------------- statistics


def pearson(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Returns Pearson's chi-square of counts [..., K]."""
    statistic: np.ndarray = ((counts - expected) ** 2 / expected).sum(-1)
    return statistic


def chi_square(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Returns Pearson's chi-square of the counts [K] against the shares [K], which are positive, up to a factor."""
    seen, wanted = np.array(counts, float), np.array(shares, float)
    return float(pearson(seen, seen.sum() * wanted / wanted.sum()))


def coverage_p(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Returns the probability that draws in proportion to the shares give a chi-square at least that of the counts.

    It is simulated, because the chi-square distribution is wrong for modes with few expected draws; it is at least
    1 / (DRAWS + 1). counts, shares: as for `chi_square`.
    """
    seen, wanted = np.array(counts), np.array(shares, float)
    expected = seen.sum() * wanted / wanted.sum()
    drawn = np.random.default_rng(0).multinomial(seen.sum(), wanted / wanted.sum(), DRAWS)
    as_far = (pearson(drawn, expected) >= pearson(seen, expected) - 1e-9).sum()
    return float((1 + as_far) / (1 + DRAWS))


def blend_of(views: Tensor, known: Tensor) -> Tensor:
    """Returns the shares [K] of the known images, which sum to 1, in their least-squares blend that is nearest to the
    views; shares may be negative.

    views: [V, 3, H, W]. known: [K, V, 3, H, W], no three of them in a line.
    """
    rows, last = known.flatten(1).double(), known[-1].flatten().double()
    apart, wanted = (rows[:-1] - last).T, (views.flatten().double() - last)[:, None]
    shares = torch.linalg.lstsq(apart, wanted).solution[:, 0]
    return torch.cat([shares, 1 - shares.sum(0, keepdim=True)])


# ----------------------------------------------------------------------------------------------------------------- runs


def even_points(steps: int) -> list[list[float]]:
    """Returns `t_points` of the coarse stage along which log(sigma / alpha) falls evenly from HIGH to LOW."""
    return [point_of(i / steps, t) for i, t in enumerate(even_times(steps))]


def even_times(steps: int) -> list[float]:
    """Returns the times, fractions of T, of the steps and the end."""
    levels = np.geomspace(HIGH / (1 - HIGH), LOW / (1 - LOW), steps + 1)
    return [float(level / (1 + level)) for level in levels]


def hifa_points(steps: int) -> list[list[float]]:
    """Returns `t_points` along which t falls from HIGH to LOW as HiFA's times do."""
    return [point_of(share, HIGH - (HIGH - LOW) * fallen) for share, fallen in sqrt_points(steps)]


def point_of(share: float, t: float) -> list[float]:
    stage = Config().coarse
    return [share, 1 - (t - stage.t_min) / (stage.t_max - stage.t_min)]


METHODS: dict[str, dict[str, Any]] = {
    "cfd": {},
    "cfd, half of the noise fresh": {"noise": {"gamma": None, "beta": 0.5}},
    "sds": {"guidance": "sds"},
    "fsd": {"guidance": "fsd"},
    "cds": {"guidance": "cds"},
    "ism": {"guidance": "ism"},
    "dsd": {"guidance": "dsd"},
    "the noisy variable": {"noise": {"kind": "none"}},
    "hifa": {"guidance": "sds", "coarse": {"t_points": hifa_points(STEPS)}},
    "cfd, a third of the step sizes": {"coarse": {"lr": {name: rate / SLOWER for name, rate in RATES.items()}}},
}
"""Methods of splats, as changes of `coverage_config`. HiFA is sds at times that fall with the square root of the share
of steps done. vsd is not here, since its LoRA needs a network: with an ideal LoRA and one splat, it is sds. The last
one is an experiment: a splat that follows the flow too slowly."""


def coverage_config(method: str, seed: int) -> Config:
    """Returns the small setting in which modes are counted: the coarse stage alone."""
    off = {"polish": {"steps": 0}, "refine": {"steps": 0}}
    coarse = {"steps": STEPS, "views": VIEWS, "t_points": even_points(STEPS), "opacity_reg": 0.0, "lr": RATES}
    base = merged(Config(prompt="a mug", seed=seed), {"init": {"count": COUNT}, "coarse": coarse, **off})
    return merged(base, METHODS[method])


@cache
def tinted() -> list[Gaussians]:
    """Returns the four objects."""
    mug = as_gaussians(sample_object(0, kind="mug", color="gray", spacing=0.1)).tensors()
    colors = [(0.5 + TINT * torch.tensor(corner)).expand_as(mug["sh0"]) for corner in CORNERS]
    return [Gaussians(**{**mug, "sh0": rgb_to_sh0(color)}) for color in colors]


def coverage_space() -> Cosines:
    """Returns the linear space in which modes are counted: 3 x 16 x 16."""
    return Cosines(SIZE, patch=2, channels=3)


@cache
def teacher_of(proportions: str) -> CrowdTeacher:
    groups = groups_around(GROUPS, VIEWS, size=SIZE)
    return CrowdTeacher(tinted(), groups, space=coverage_space(), schedule=SCHEDULE, shares=SHARES[proportions])


def blends_of_splats(method: str, proportions: str, seeds: Sequence[int]) -> list[list[float]]:
    """Returns the blend of the four objects that each seed's splat is."""
    configs = [coverage_config(method, seed) for seed in seeds]
    splats = optimized(configs, teacher_of(proportions), groups_around(GROUPS, VIEWS, size=SIZE))
    known = torch.stack([images_of(seen(one, size=SIZE)) for one in tinted()])
    blends: list[list[float]] = [blend_of(images_of(seen(one, size=SIZE)), known).tolist() for one in splats]
    return blends


def blends_of_flat(method: str, proportions: str, seeds: Sequence[int]) -> list[list[float]]:
    """The same for four views that a method of `gscfd.lab.flat` makes, without a splat and noise between the views."""
    teacher = teacher_of(proportions)
    teacher.look([0] * len(seeds), torch.full((len(seeds), 3), 0.5))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> Tensor:
        return torch.cat([torch.randn(VIEWS, *teacher.space.latent_shape, generator=one) for one in generators])

    times = [time_index(t, teacher.timesteps) for t in even_times(STEPS)]
    z = FLAT[method](teacher, draw(), lambda step: draw(), times, groups_around(GROUPS, VIEWS, size=SIZE)[0])
    ends = z.unflatten(0, (-1, VIEWS))
    blends: list[list[float]] = [blend_of(end, teacher.known[:, i]).tolist() for i, end in enumerate(ends)]
    return blends


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Modes that the seeds of one method picked."""

    method: str
    proportions: str
    blends: list[list[float]]
    """Shares of the four objects in what each seed ended at."""

    @property
    def counts(self) -> list[int]:
        """Seeds at each object, without those at none."""
        ended = [int(np.argmax(blend)) for blend in self.blends if max(blend) >= MODE]
        counts: list[int] = np.bincount(np.array(ended, int), minlength=len(CORNERS)).tolist()
        return counts

    @property
    def unsettled(self) -> float:
        """Share of the seeds that ended at a blend of objects."""
        return 1 - sum(self.counts) / len(self.blends)

    @property
    def p(self) -> float:
        """See `coverage_p`; of the seeds that ended at an object. NaN if none did."""
        return coverage_p(self.counts, SHARES[self.proportions]) if sum(self.counts) else float("nan")


def digest_of(method: str) -> str:
    """Returns a name of all that a run depends on but its seed and the objects."""
    config = None if method in FLAT else plain(coverage_config(method, 0))
    constants = [TINT, SHARES, SIZE, GROUPS, VIEWS, STEPS, HIGH, LOW]
    return hashlib.sha256(json.dumps([config, constants]).encode()).hexdigest()[:8]


Key = tuple[str, str]
"""Method and proportions."""


class Runs:
    """The runs that a file of rows holds, one per seed; those of other settings are left out."""

    def __init__(self, path: Path):
        """Raises UserError for a file of something else, which the first new run would replace."""
        self.path, self.rows = path, dict[tuple[Key, int], dict[str, Any]]()
        self.digests = {method: digest_of(method) for method in (*FLAT, *METHODS)}
        self.read()

    def read(self) -> None:
        """Takes over the rows of the file. Raises UserError as above."""
        if not self.path.is_file():
            return
        with open(self.path, newline="") as file:
            rows = csv.DictReader(file)
            if not {"method", "proportions", "seed", "settings"} <= set(rows.fieldnames or ()):
                raise UserError(
                    f"out: expected runs of this bench in {self.path}, got another table; choose another --out"
                )
            for row in rows:
                if row["settings"] == self.digests.get(row["method"]):
                    self.rows[(row["method"], row["proportions"]), int(row["seed"])] = dict(row)

    def add(self, key: Key, seeds: Sequence[int], blends: Sequence[Sequence[float]]) -> None:
        """Adds runs and writes the file, with what another process has added since, such as one of other methods."""
        self.read()
        for seed, blend in zip(seeds, blends, strict=True):
            shares = {f"share {k + 1}": f"{share:.4f}" for k, share in enumerate(blend)}
            told = {"method": key[0], "proportions": key[1], "seed": seed, **shares, "settings": self.digests[key[0]]}
            self.rows[key, seed] = told
        write_rows(list(self.rows.values()), self.path)

    def of(self, key: Key, seeds: Sequence[int]) -> list[list[float]]:
        """Returns the blends of these seeds, as far as they are there."""
        rows = [self.rows[key, seed] for seed in seeds if (key, seed) in self.rows]
        return [[float(row[f"share {k + 1}"]) for k in range(len(CORNERS))] for row in rows]


def keys_of(options: CoverageOptions) -> Iterator[Key]:
    """Yields what is counted: all methods in each of the proportions."""
    chosen = [method for method in (*FLAT, *METHODS) if method in (options.methods or (*FLAT, *METHODS))]
    yield from ((method, proportions) for proportions in SHARES for method in chosen)


def coverage_table(found: Sequence[Coverage]) -> Table:
    counted = [one.p for one in found if not math.isnan(one.p)]
    adjusted = dict(zip(counted, benjamini_hochberg(counted), strict=True)) if counted else {}
    rows = [
        [
            one.method,
            " : ".join(f"{share:g}" for share in SHARES[one.proportions]),
            " : ".join(map(str, one.counts)),
            f"{sum(count > 0 for count in one.counts)} of {len(one.counts)}",
            f"{one.unsettled:.0%}",
            f"{chi_square(one.counts, SHARES[one.proportions]):.1f}" if sum(one.counts) else "n/a",
            f"{one.p:.2g}",
            verdict(one, adjusted.get(one.p, math.nan)),
        ]
        for one in found
    ]
    columns = ["method", "proportions", "seeds", "modes", "at none", "chi-square", "p", "verdict"]
    return Table(title="Mode coverage", note=" ".join(NOTES), columns=columns, rows=rows)


def verdict(one: Coverage, p: float) -> str:
    """Returns what the counts say. p: adjusted for the number of rows."""
    if one.unsettled > 0.5:
        return "no mode"
    return "not proportional" if p < 0.05 else "proportional, as far as these seeds tell"


NOTES = [
    f"The ideal teacher knows one mug in four tints, {TINT} from gray in each color. A splat "
    f"has {COUNT} Gaussians and {STEPS} steps of the coarse stage, with up to three times the default's "
    "step sizes, without densification, regularizers and polish; "
    f"views of {SIZE} pixels from {GROUPS} groups of {VIEWS}; a linear space of 3 x 16 x 16; the schedule of a "
    f"rectified flow, from t = {HIGH} to {LOW} with equal steps of log(sigma / alpha), but for hifa and cds, which "
    "have their own times.",
    f"at none: share of the seeds at a blend, less than {MODE:.0%} of any object. p: probability of at least this "
    "chi-square if the seeds at an object picked in proportion, by simulation. Verdicts: at .05 after Benjamini and "
    "Hochberg's correction for the number of rows.",
    "in 2D: four views without a splat; the flow there is the control that must be proportional.",
]


def coverage(options: CoverageOptions) -> Report:
    """Makes the missing runs, counts their modes and writes runs.csv, report.html, report.md and report.json. Raises
    UserError."""
    for name in options.methods:
        check(name in (*FLAT, *METHODS), "methods", f"some of {', '.join(map(repr, (*FLAT, *METHODS)))}", name)
    check_report(options.out, "out")
    options.out.mkdir(parents=True, exist_ok=True)
    runs, found = Runs(options.out / "runs.csv"), list[Coverage]()
    for key in keys_of(options):
        make: Callable[..., list[list[float]]] = blends_of_flat if key[0] in FLAT else blends_of_splats
        missing = [seed for seed in range(options.seeds) if (key, seed) not in runs.rows]
        for i in range(0, len(missing), BATCH):
            batch = missing[i : i + BATCH]
            runs.add(key, batch, make(*key, batch))
        method, proportions = key
        blends = runs.of(key, range(options.seeds))
        found.append(Coverage(method=method, proportions=proportions, blends=blends))
        print(f"{method}, {proportions}: {found[-1].counts}, p = {found[-1].p:.2g}", flush=True)
    table = coverage_table(found)
    report = Report(title="Mode coverage", notes=NOTES, warnings=[], tables=[table], plots=[], sheets=[])
    write_page(report, options.out / "report.html")
    write_json(report, options.out / "report.json")
    write_text(f"{' '.join(NOTES)}\n\n{table.markdown()}", options.out / "report.md")
    return report
