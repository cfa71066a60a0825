"""The papers' claims as experiments on the toybox, and verdicts on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gscfd.config import CFD_GAMMA, rescaled_gamma
from gscfd.errors import UserError
from gscfd.lab.catalogue import METRICS
from gscfd.lab.intervals import LEVEL, Estimate, benjamini_hochberg, holm, runs_needed

TEACHER = "toybox/multiview"
PAPER_STEPS = 25_000
"""Number of steps of CFD's tables, to which its share of fresh noise per step refers."""
NEGATIVE = "gray"
"""Negative prompt. The toybox has no words for bad pictures; this one stands for washed-out colors."""


TRUE = ("nearest", "speckle")
"""Judges without a network, which stand beside the figures of networks."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Amount of work of the experiments."""

    prompts: tuple[str, ...]
    """Prompts of the splats; some are pairs that the teacher never saw."""
    seeds: int
    first_seed: int = 0
    steps: int
    """Steps of the coarse stage, the only stage."""
    picture_prompts: tuple[str, ...]
    """Prompts of the pictures; they leave the color open."""
    picture_seeds: int
    picture_steps: int
    """Steps of a picture. The largest gamma needs some 400: in fewer, its steps are too coarse for the SDE."""
    samples: int
    """Samples of the teacher per prompt, for 3D-FID and the Janus score."""


SIZES = {
    "smoke": Size(
        prompts=("a yellow duck", "a purple chair"),
        seeds=2,
        steps=40,
        picture_prompts=("a mug",),
        picture_seeds=6,
        picture_steps=20,
        samples=48,
    ),
    "full": Size(
        prompts=("a yellow duck", "a blue mug", "a red car", "a cyan mushroom", "a purple chair", "a pink penguin"),
        seeds=6,
        steps=300,
        picture_prompts=("a mug", "a duck", "a house"),
        picture_seeds=16,
        picture_steps=400,
        samples=240,
    ),
}


@dataclass(frozen=True)
class Claim:
    """Claim that one variant is better than another by a metric or, with `differs`, that the two differ."""

    metric: str
    better: str
    worse: str
    paper: str
    """Statement of the paper, with its numbers if it gives any."""
    differs: bool = False


@dataclass(frozen=True)
class Experiment:
    """One table or figure of a paper."""

    title: str
    note: str
    variants: tuple[str, ...]
    metrics: tuple[str, ...]
    claims: tuple[Claim, ...]


def sqrt_points(count: int) -> list[list[float]]:
    """Returns `t_points` of this many equal shares of the steps, along which t falls with the square root of the share
    of steps done, as HiFA's do."""
    return [[i / count, (i / count) ** 0.5] for i in range(count + 1)]


def variants(steps: int) -> dict[str, dict[str, Any]]:
    """Returns the variants by name, as changes of the toybox preset."""
    gamma = {"gamma": rescaled_gamma(CFD_GAMMA, PAPER_STEPS, steps)}
    return {
        "sds, random t": {"guidance": "sds", "coarse": {"t_schedule": "uniform"}},
        "sds": {"guidance": "sds"},
        "sds, negative prompt": {"guidance": "sds", "coarse": {"negative_prompt": NEGATIVE}},
        "cfd, negative prompt": {"guidance": "cfd", "noise": gamma, "coarse": {"negative_prompt": NEGATIVE}},
        "ism": {"guidance": "ism"},
        "dsd": {"guidance": "dsd"},
        "hifa": {"guidance": "sds", "coarse": {"t_points": sqrt_points(30)}},
        "cfd, noisy variable": {"noise": {"kind": "none"}},
        "vsd": {"guidance": "vsd"},
        "cfd": {"guidance": "cfd", "noise": gamma},
        "cfd, gamma 0": {"guidance": "cfd", "noise": {"gamma": 0.0}},
        "fsd": {"guidance": "fsd"},
        "fsd, beta .5": {"guidance": "fsd", "noise": {"beta": 0.5}},
        "fsd, Theta 45": {"guidance": "fsd", "noise": {"theta": 45.0}},
        "fsd, Theta 360": {"guidance": "fsd", "noise": {"theta": 360.0}},
        "fsd, one noise": {"guidance": "fsd", "noise": {"kind": "fixed"}},
        "cds, random t": {"guidance": "cds", "coarse": {"t_schedule": "uniform"}},
        "cds, fixed gap": {"guidance": "cds", "coarse": {"cds": {"gap": [0.2, 0.2]}}},
        "cds, fresh noise": {"guidance": "cds", "noise": {"kind": "iid"}},
        "cds": {"guidance": "cds"},
    }


GAMMAS = {"gamma 0": 0.0, "gamma 1e-4": 1e-4, "gamma 1e-3": 1e-3, "gamma 1e-2": 1e-2, "gamma 1": 1.0}
"""Variants of the pictures and their gamma."""
EXPERIMENTS = (
    Experiment(
        title="CFD Tab. 2",
        note="Equal steps. ISM asks the teacher up to seven times per step, the others once; VSD also trains a LoRA.",
        variants=("sds", "ism", "vsd", "cfd"),
        metrics=("fid", "clip", "similarity", "r_precision", *TRUE, "diversity", "janus", "holes", "seconds"),
        claims=(
            Claim("fid", "cfd", "sds", "78.13 against 88.06"),
            Claim("fid", "cfd", "ism", "78.13 against 86.00"),
            Claim("fid", "cfd", "vsd", "78.13 against 83.02"),
            Claim("clip", "cfd", "sds", "35.16 against 35.07"),
            Claim("clip", "cfd", "ism", "35.16 against 34.99"),
            Claim("clip", "cfd", "vsd", "35.16 against 35.10"),
        ),
    ),
    Experiment(
        title="CFD Tab. 4",
        note="In two dimensions: pictures of the teacher by the clean flow SDE, of prompts that leave the color open. "
        f"gamma is per step of {PAPER_STEPS} steps, rescaled to give the same total noise.",
        variants=tuple(GAMMAS),
        metrics=("is", "diversity"),
        claims=(
            Claim("is", "gamma 1e-4", "gamma 0", "2.60 against 2.24"),
            Claim("is", "gamma 1e-4", "gamma 1e-3", "2.60 against 2.47"),
            Claim("is", "gamma 1e-4", "gamma 1e-2", "2.60 against 2.08"),
            Claim("is", "gamma 1e-4", "gamma 1", "2.60 against 1.77"),
            Claim("is", "gamma 0", "gamma 1", "2.24 against 1.77"),
        ),
    ),
    Experiment(
        title="CFD Tab. 8",
        note="Gradient variance of Adam's moments: as a share of the gradient's square, and in the form that the "
        "paper's values suggest, whose scale is that of the gradients, there of a hash encoding. Claims are tested on "
        "the share of the positions alone, since the paper has one figure.",
        variants=("vsd", "sds", "fsd", "cfd, gamma 0"),
        metrics=("variance_means", "variance_sh0", "variance_means_paper", "variance_sh0_paper"),
        claims=(
            Claim("variance_means", "sds", "vsd", "4.670 against 5.165"),
            Claim("variance_means", "fsd", "sds", "4.580 against 4.670"),
            Claim("variance_means", "cfd, gamma 0", "fsd", "4.521 against 4.580"),
        ),
    ),
    Experiment(
        title="CFD Fig. 15",
        note=f"The design step by step. The negative prompt is {NEGATIVE!r}, the only one in the teacher's vocabulary.",
        variants=("sds, random t", "sds", "sds, negative prompt", "cfd, negative prompt"),
        metrics=("fid", "clip", "similarity", "r_precision", *TRUE, "diversity"),
        claims=(
            Claim("fid", "sds", "sds, random t", "annealing forms finer details"),
            Claim("fid", "sds, negative prompt", "sds", "the negative prompt improves style and colors"),
            Claim("fid", "cfd, negative prompt", "sds, negative prompt", "consistent noise gives richer details"),
            Claim("diversity", "cfd, negative prompt", "sds, negative prompt", "consistent noise is more diverse"),
        ),
    ),
    Experiment(
        title="FSD: noise, beta and Theta",
        note="beta 0 is sds, Theta 180 is fsd. The paper's main text says that Theta matters, not in which direction.",
        variants=("sds", "fsd, beta .5", "fsd", "fsd, Theta 45", "fsd, Theta 360", "fsd, one noise"),
        metrics=("diversity", "holes", "r_precision", "similarity", *TRUE, "view_error"),
        claims=(
            Claim("diversity", "fsd", "sds", "FSD is the more diverse (Fig. 8, IS 1.78 and 2.13)"),
            Claim("diversity", "fsd", "fsd, beta .5", "beta 1 is fsd, beta 0 is sds (Fig. 8); no figure between"),
            Claim("holes", "fsd", "fsd, one noise", "one noise for all views makes holes (Fig. 6)"),
            Claim("holes", "fsd, Theta 45", "fsd, Theta 360", "FSD is sensitive to Theta", differs=True),
        ),
    ),
    Experiment(
        title="Consistent3D Tab. 2",
        note="Two teacher calls per step. The paper's R-precision averages similarities: claims are tested on the "
        "similarity, and R-precision is shown. The paper does not say how the predetermined schedule of its Tab. 2b "
        "was made; a fixed gap stands for it here.",
        variants=("cds, random t", "cds, fixed gap", "cds, fresh noise", "cds"),
        metrics=("similarity", "r_precision", "clip", "fid", *TRUE),
        claims=tuple(
            Claim("similarity", "cds", worse, paper)
            for worse, paper in (
                ("cds, random t", ".348 against .319"),
                ("cds, fixed gap", ".348 against .325"),
                ("cds, fresh noise", ".348 against .340"),
            )
        ),
    ),
    Experiment(
        title="Other methods and controls",
        note="No claims: rows beside those of CFD Tab. 2. hifa is sds at HiFA's times, t_max - (t_max - t_min) "
        "sqrt(done); its loss on decoded images is left out, and so is its regularizer (depth_reg). The noisy variable "
        "is CFD Fig. 5a: the teacher is asked about the render itself. dsd asks the teacher 4 to 13 times per step.",
        variants=("sds", "hifa", "cfd, noisy variable", "dsd", "cfd"),
        metrics=("fid", "similarity", "r_precision", *TRUE, "diversity", "holes", "seconds"),
        claims=(),
    ),
)


def variants_of(experiments: Sequence[Experiment]) -> list[str]:
    """Returns the names of the experiments' variants, each once."""
    return list(dict.fromkeys(name for experiment in experiments for name in experiment.variants))


def chosen_experiments(experiments: Sequence[Experiment], names: Sequence[str]) -> list[Experiment]:
    """Returns the experiments with these variants alone, and the claims among them; all experiments for no names.

    Raises UserError for an unknown variant, and if no claim is left.
    """
    if not names:
        return list(experiments)
    known = variants_of(experiments)
    for name in names:
        if name not in known:
            raise UserError(f"variants: expected some of {known}, got {name!r}; choose from this list")
    left = [
        replace(
            experiment,
            variants=tuple(name for name in experiment.variants if name in names),
            claims=tuple(claim for claim in experiment.claims if {claim.better, claim.worse} <= set(names)),
        )
        for experiment in experiments
    ]
    if not any(experiment.claims for experiment in left):
        raise UserError(f"variants: expected two that a claim compares, got {list(names)}; see the table of orderings")
    return [experiment for experiment in left if experiment.claims]


@dataclass(frozen=True)
class Finding:
    """Measured difference behind a claim: better minus worse."""

    claim: Claim
    difference: Estimate | None
    """None if there are no pairs of runs."""
    p: float
    """Two-sided p-value of the difference, NaN if there are too few runs."""

    @property
    def agrees(self) -> bool:
        """Whether the difference has the sign that the paper states."""
        if self.claim.differs or self.difference is None:
            return True
        return (self.difference.value > 0) == (METRICS[self.claim.metric].better == "higher")


@dataclass(frozen=True)
class Verdict:
    """Verdicts on a claim after both corrections: "reproduced", "contradicted", or "undecided" and why."""

    holm: str
    benjamini_hochberg: str


def verdicts(findings: Sequence[Finding]) -> list[Verdict]:
    """Returns the verdicts on all claims of a family. A claim without a p-value counts as p = 1."""
    p_values = [1.0 if math.isnan(finding.p) else finding.p for finding in findings]
    return [
        Verdict(verdict(finding, strict, len(findings)), verdict(finding, mild, len(findings)))
        for finding, strict, mild in zip(findings, holm(p_values), benjamini_hochberg(p_values), strict=True)
    ]


def verdict(finding: Finding, p: float, tests: int) -> str:
    """Returns the verdict by an adjusted p-value. tests: size of the family, for the number of runs that an undecided
    claim needs."""
    if p <= 1 - LEVEL:
        return "reproduced" if finding.agrees else "contradicted"
    found = finding.difference
    if found is None or math.isnan(finding.p):
        return "undecided (too few runs)"
    needed = runs_needed(finding.p, found.count, tests)
    if needed is None:
        return "undecided (no difference)"
    return f"undecided (needs about {two_digits(max(1, needed - found.count))} more runs of each)"


def two_digits(count: int) -> str:
    """Rounds a count to two significant digits."""
    return f"{int(float(f'{count:.1e}')):,}".replace(",", " ")
