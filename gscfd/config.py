"""All settings of a run. The defaults here are the toybox preset; presets in `configs/` hold only the differences."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args

import tyro
import yaml

from gscfd.errors import UserError
from gscfd.prompts import as_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Dataclass = TypeVar("Dataclass", bound="DataclassInstance")
MethodName = Literal["cfd", "sds", "fsd", "cds", "ism", "sdi", "vsd", "dsd"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
StageName = Literal["coarse", "refine", "polish"]
NoiseKind = Literal["surface", "radial", "world_map", "fixed", "per_view", "iid", "none"]
NoiseBackground = Literal["screen", "fresh", "direction"]
Weight = Literal["ratio", "uniform", "variance"]

NOISE_OF: dict[MethodName, tuple[NoiseKind, ...]] = {
    "cfd": ("surface", "radial", "world_map", "fixed", "none"),
    "sds": ("iid",),
    "fsd": ("world_map", "fixed"),
    "cds": ("fixed", "per_view", "iid"),
    "ism": ("iid",),
    "sdi": ("iid",),
    "vsd": ("iid",),
    "dsd": ("fixed", "per_view"),
}
"""Kinds of noise that each method accepts; the first one is its default (docs/methods.md), but with a multi-view
teacher per_view is, where it is accepted."""
CFG_OF: dict[MethodName, tuple[float, float]] = {
    "cfd": (50.0, 75.0),  # CFD's MVDream stage; its tables with Stable Diffusion
    "sds": (50.0, 100.0),  # MVDream; DreamFusion
    "fsd": (50.0, 75.0),  # as cfd, of which it is a special case
    "cds": (51.0, 51.0),  # Consistent3D appendix B.1: eps_text + 50 (eps_text - eps_neg)
    "ism": (7.5, 7.5),  # LucidDreamer
    "sdi": (7.5, 7.5),  # SDI
    "vsd": (7.5, 7.5),  # ProlificDreamer
    "dsd": (7.5, 7.5),  # its code
}
"""Guidance scale of each method with large teachers, in the coarse stage and in the refine stage, and its source."""
RESCALING: tuple[MethodName, ...] = ("cfd", "sds", "fsd")
"""Methods whose guided prediction is rescaled unless cfg_rescale is set; the sources of the others have no rescale."""
CFG_RESCALE = 0.5
"""Their cfg_rescale (MVDream)."""


def check_finite(values: object, name: str) -> None:
    """Raises UserError that names the first float among the values, at any depth, that is not finite."""
    if isinstance(values, float):
        check(math.isfinite(values), name, "a finite number", values)
    elif dataclasses.is_dataclass(values):
        for inner in dataclasses.fields(values):
            check_finite(getattr(values, inner.name), f"{name}.{inner.name}".removeprefix("."))
    elif isinstance(values, tuple):
        for value in values:
            check_finite(value, name)


def check(condition: bool, name: str, expected: str, got: object) -> None:
    """Raises UserError if the condition is false; the message has the argument's name, `expected` and `got`."""
    if not condition:
        raise UserError(f"{name}: expected {expected}, got {got!r}")


def check_device(name: str) -> None:
    """Raises UserError unless this is the name of a device."""
    known = re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None
    check(known, "device", "auto, cpu, cuda, or cuda:N for one of several GPUs", name)


def check_curve(name: str, points: tuple[tuple[float, float], ...]) -> None:
    """Raises UserError unless the points (share, multiple) have rising shares and multiples of at least 0."""
    check(len(points) >= 1, name, "at least one (share, multiple) point", points)
    check(list(points) == sorted(points, key=lambda point: point[0]), name, "points with rising shares", points)
    check(min(value for _, value in points) >= 0, name, "multiples of at least 0", points)


@dataclass(kw_only=True)
class InitConfig:
    """The initial Gaussians: a gray ball, or an existing splat or mesh."""

    ply: Annotated[Path | None, tyro.conf.arg(name="init", prefix_name=False)] = None
    """Start from this 3DGS .ply, from gscfd or another program, or from the surface and the texture of this mesh, .glb
    or .obj, instead of the ball. What does not fill the unit ball is centered and scaled. radius and opacity are then
    ignored, and count, too, but for a mesh."""
    axes: Literal["z-up", "y-up", "y-down"] | None = None
    """Axes of that file, as `gscfd export` names them: the front is at +x with z-up, and at +z with the others. Unset:
    z-up for a .ply, y-up for a mesh."""
    count: int = 2000
    """Number of Gaussians in the ball, or on the mesh."""
    radius: float = 0.6
    """Radius of the ball; the object occupies the unit ball."""
    opacity: float = 0.3
    """Initial opacity, in (0, 1)."""
    sh_degree: int = 0
    """Degree of the spherical harmonics, 0 to 3; from 1 up, color depends on the viewing direction."""

    def __post_init__(self) -> None:
        check(self.count >= 1, "init.count", "at least 1", self.count)
        check(self.radius > 0, "init.radius", "a positive radius", self.radius)
        check(0 < self.opacity < 1, "init.opacity", "a value in (0, 1)", self.opacity)
        check(self.sh_degree in (0, 1, 2, 3), "init.sh_degree", "0, 1, 2 or 3", self.sh_degree)


CFD_GAMMA = 1e-4
CFD_STEPS: dict[StageName, int] = {"coarse": 10_000, "refine": 20_000}
"""Share of fresh noise per step, and number of steps per stage, in CFD's public configuration."""


def rescaled_gamma(gamma: float, steps: int, fewer: int) -> float:
    """Returns the share of fresh noise per step that preserves as much of the initial noise over `fewer` steps as
    gamma, in [0, 1], does over `steps` (CFD Eq. 10)."""
    kept: float = (1 - gamma) ** (steps / fewer)
    return 1 - kept


@dataclass(kw_only=True)
class NoiseConfig:
    """The noise in the teacher's input."""

    kind: NoiseKind | None = None
    """surface: white noise that is consistent between views on the object's surface (CFD). radial: the same, with the
    paper's reference sphere. world_map: a window of a wide map, at the camera's position (FSD). fixed: one image for
    all views. per_view: one for each view of a group. iid: fresh noise every step. none: no noise, the control of CFD
    Fig. 5a. Unset: surface for cfd, world_map for fsd, fixed for cds and dsd (per_view with a multi-view teacher, whose
    views attend to each other), iid for the others."""
    gamma: float | None = None
    """Share of fresh noise per step, in [0, 1) (CFD Eq. 10); 0 is the clean flow ODE. Unset: 0, but for cfd the value
    that preserves, over any number of steps, as much of the initial noise as 1e-4 does over the 10 000 and 20 000 steps
    of the paper's two stages (.61 and .37)."""
    gamma_points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """Points (share of the stage's steps done, multiple of gamma), linear in between."""
    background: NoiseBackground | None = None
    """Noise where there is no surface. screen: one image for all views, aging with gamma. fresh: new in every view and
    step. direction: fixed to the direction of the ray. Unset: screen; fresh for cfd with a multi-view teacher, whose
    views attend to each other (CFD's public code)."""
    beta: float = 1.0
    """Share of consistent noise in the mix with fresh noise, in [0, 1] (FSD)."""
    theta: float = 180.0
    """Degrees of azimuth over which the world map moves by one image, in (0, 360] (FSD)."""
    device: Literal["render", "cpu"] = "render"
    """render: draw the noise on the device that renders the views. cpu: draw it on the CPU and copy it, for a GPU
    without gscfd's CUDA library."""

    def __post_init__(self) -> None:
        check(self.gamma is None or 0 <= self.gamma < 1, "noise.gamma", "a value in [0, 1)", self.gamma)
        check_curve("noise.gamma_points", self.gamma_points)
        most = max(value for _, value in self.gamma_points) * (CFD_GAMMA if self.gamma is None else self.gamma)
        check(most < 1, "noise.gamma_points", "multiples that keep gamma below 1", self.gamma_points)
        check(0 <= self.beta <= 1, "noise.beta", "a value in [0, 1]", self.beta)
        check(0 < self.theta <= 360, "noise.theta", "degrees in (0, 360]", self.theta)


@dataclass(kw_only=True)
class LearningRates:
    """Adam's step sizes at the start of a stage; all decay exponentially."""

    means: float = 8e-3
    """Step size of the positions, in world units."""
    quats: float = 5e-3
    """Step size of the rotations, which are quaternions of roughly unit length."""
    scales: float = 1.6e-2
    """Step size of the log standard deviations."""
    opacities: float = 0.12
    """Step size of the opacity logits. With a small one, Gaussians in a gap take the background's mean color before
    they vanish."""
    sh0: float = 3e-2
    """Step size of the constant colors, as spherical harmonics coefficients."""
    shN: float = 1.5e-3
    """Step size of the view-dependent coefficients."""
    end: float = 0.2
    """Every step size at the end of the stage, as a fraction of its initial value."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            check(value > 0, f"lr.{name}", "a positive value", value)


@dataclass(kw_only=True)
class DensifyConfig:
    """When Gaussians are split, cloned, moved and removed."""

    strategy: Literal["default", "mcmc"] = "default"
    """default: gsplat's DefaultStrategy, which splits and clones by gradient and removes faint Gaussians. mcmc: its
    MCMCStrategy, which moves faint Gaussians, adds 5 % per round and perturbs the positions; CUDA only."""
    start: float = 0.2
    """Share of the stage's steps after which densification starts."""
    stop: float = 0.8
    """Share of the stage's steps after which densification stops."""
    every: int = 50
    """Steps between two rounds."""
    grad_threshold: float = 0.5
    """Mean screen-space gradient above which a Gaussian is split or cloned (default)."""
    prune_opacity: float = 0.05
    """Opacity below which Gaussians are removed (default) or moved (mcmc)."""
    max_count: int = 8000
    """Number of Gaussians that no round exceeds."""
    noise_lr: float = 5e5
    """Noise on the positions, in multiples of their step size and covariance (mcmc)."""

    def __post_init__(self) -> None:
        check(
            0 <= self.start <= self.stop <= 1, "densify.start, stop", "0 <= start <= stop <= 1", (self.start, self.stop)
        )
        check(self.every >= 1, "densify.every", "at least 1 step", self.every)
        check(0 <= self.prune_opacity < 1, "densify.prune_opacity", "a value in [0, 1)", self.prune_opacity)
        check(self.noise_lr >= 0, "densify.noise_lr", "at least 0", self.noise_lr)


CDS_LAST = 0.98
"""Largest t1 of Consistent3D's public code."""


@dataclass(kw_only=True)
class CdsConfig:
    """Times, weight, guidance scale and clip of --guidance cds (Consistent3D Eq. 12 and appendix B.1, and its public
    code); times are fractions of T. They replace t_min, t_points, weight and cfg_points. With t_schedule uniform, t2 is
    drawn from [t_min, t_max] every step (Tab. 2a)."""

    t_max: float
    """Target time t2 at the start of the stage."""
    t_min: float
    """Target time t2 at the end of the stage; in between, t2 falls with the square root of the share of steps done."""
    gap: tuple[float, float]
    """Range of t1 - t2, drawn uniformly every step; t1 is at most 0.98."""
    weight: Weight
    """Weight of the difference of the two predicted noises, as the stage's weight."""
    clip: tuple[float, float] = (2.0, 8.0)
    """Largest absolute value of the gradient's entries, at the start and at the end of the stage; it moves linearly."""
    cfg_end: float = 0.412
    """Guidance scale at the end of the stage, as a fraction of cfg; it falls linearly (Consistent3D: from 50 to 20, in
    gscfd's scale from 51 to 21)."""

    def __post_init__(self) -> None:
        valid = 0 <= self.t_min <= self.t_max < CDS_LAST
        check(valid, "cds.t_min, t_max", f"0 <= t_min <= t_max < {CDS_LAST}", (self.t_min, self.t_max))
        check(0 < self.gap[0] <= self.gap[1], "cds.gap", "(low, high) with 0 < low <= high", self.gap)
        check(min(self.clip) > 0, "cds.clip", "positive limits", self.clip)
        check(0 < self.cfg_end <= 1, "cds.cfg_end", "a value in (0, 1]", self.cfg_end)


@dataclass(kw_only=True)
class InversionConfig:
    """The DDIM inversion of --guidance ism and sdi, with LucidDreamer's names and values; times are fractions of T."""

    delta_t: float = 0.05
    """Interval t - s between the time of the step and the time s at which the inversion ends."""
    delta_t_points: tuple[tuple[float, float], ...] = ((0.0, 2.0), (0.3, 1.0))
    """Points (share of the steps done, multiple of delta_t), linear in between."""
    xs_delta_t: float = 0.2
    """Longest step of the inversion from the image to x_s."""
    xs_inv_steps: int = 5
    """Maximum number of inversion steps. If they cannot span 0 to s, the inversion starts later, from the noised
    image."""

    def __post_init__(self) -> None:
        check(0 < self.delta_t < 1, "inversion.delta_t", "a value in (0, 1)", self.delta_t)
        check_curve("inversion.delta_t_points", self.delta_t_points)
        check(0 < self.xs_delta_t <= 1, "inversion.xs_delta_t", "a value in (0, 1]", self.xs_delta_t)
        check(self.xs_inv_steps >= 1, "inversion.xs_inv_steps", "at least 1 step", self.xs_inv_steps)


@dataclass(kw_only=True)
class VsdConfig:
    """The LoRA of --guidance vsd, with ProlificDreamer's values: a low-rank adaptation of the teacher's network that is
    trained on the renders."""

    rank: int = 4
    """Rank of the update of each attention projection."""
    lr: float = 1e-4
    """AdamW's step size for the LoRA and the camera embedding."""

    def __post_init__(self) -> None:
        check(self.rank >= 1, "vsd.rank", "at least 1", self.rank)
        check(self.lr > 0, "vsd.lr", "a positive value", self.lr)


@dataclass(kw_only=True)
class TeacherStage:
    """Settings that every stage has: its teacher, prompt, views and step sizes."""

    teacher: str
    """Diffusers folder, MVDream's single file, OWNER/REPO on the Hugging Face Hub, toybox/multiview or
    toybox/singleview."""
    steps: int
    """Number of optimization steps; 0 skips the stage."""
    views: int
    """Views per step; for a multi-view teacher, the size of its group."""
    cfg: float | None = None
    """Classifier-free guidance scale: eps_neg + cfg (eps_text - eps_neg). Unset, as in most presets for large teachers:
    that of the method's source (docs/methods.md)."""
    cfg_rescale: float | None = None
    """Share of the guided prediction that is rescaled to the unguided standard deviation, in [0, 1]. Unset: 0.5 for
    cfd, sds and fsd, and in the polish; 0 for the others, whose sources have no rescale."""
    negative_prompt: str | None = None
    """Text of the unconditional branch; {prompt} in it stands for the prompt, for a text that describes the splat as it
    is (SDS-Bridge). Unset: the text that the teacher's authors use; empty for the toybox."""
    perp_neg: bool = False
    """Push each view away from the words of the other views (Perp-Neg) to prevent objects with two faces. Only for
    teachers that receive the view in words."""
    t_max: float = 0.98
    """Largest diffusion time, as a fraction of T in [t_min, 1)."""
    t_min: float = 0.02
    """Smallest diffusion time, as a fraction of T."""
    elevation: tuple[float, float] = (0.0, 30.0)
    """Range of the camera's elevation in degrees, in [-90, 90], drawn uniformly."""
    fov: tuple[float, float] = (30.0, 45.0)
    """Range of the vertical field of view in degrees, drawn uniformly."""
    radius: tuple[float, float] = (1.0, 1.1)
    """Range of r in the camera distance r / tan(fov / 2), drawn uniformly; a larger r makes the object smaller in the
    image."""
    lr: LearningRates = field(default_factory=LearningRates)
    """Adam's step sizes."""

    def __post_init__(self) -> None:
        if self.negative_prompt is not None:
            self.negative_prompt = as_text(self.negative_prompt)
        check(self.steps >= 0, "steps", "at least 0", self.steps)
        check(self.views >= 1, "views", "at least 1", self.views)
        share = self.cfg_rescale
        check(share is None or 0 <= share <= 1, "cfg_rescale", "a value in [0, 1]", share)
        check(0 <= self.t_min <= self.t_max < 1, "t_min, t_max", "0 <= t_min <= t_max < 1", (self.t_min, self.t_max))
        for name in ("elevation", "fov", "radius"):
            low, high = getattr(self, name)
            check(low <= high, name, "(low, high) with low <= high", (low, high))
        upright = -90 <= self.elevation[0] and self.elevation[1] <= 90
        check(upright, "elevation", "degrees in [-90, 90]", self.elevation)
        check(0 < self.fov[0] and self.fov[1] < 180, "fov", "degrees in (0, 180)", self.fov)
        check(self.radius[0] > 0, "radius", "a positive range", self.radius)

    @property
    def scale(self) -> float:
        """The guidance scale; of a stage from `Config.stage`, which sets what is unset."""
        if self.cfg is None:
            raise ValueError("cfg: expected a stage from Config.stage, got one whose guidance scale is unset")
        return self.cfg

    @property
    def max_count(self) -> int:
        """Gaussians at which the stage stops to add more; 0: it adds none."""
        return 0


@dataclass(kw_only=True)
class StageConfig(TeacherStage):
    """One distillation of one teacher."""

    t_schedule: Literal["annealed", "uniform"] = "annealed"
    """annealed: t falls along t_points. uniform: t is drawn from [t_min, t_max] every step (plain SDS)."""
    t_points: tuple[tuple[float, float], ...]
    """Points (share of the steps done, p) of the schedule t = t_min + (t_max - t_min)(1 - p), linear in between."""
    weight: Weight = "ratio"
    """Weight of the difference of two predicted noises. ratio: sigma / alpha, with which the gradient leads to the
    denoised image. uniform: 1. variance: sigma^2. --guidance cds has its own weight."""
    cfg_points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """Points (share of the steps done, multiple of cfg), linear in between. Strong guidance at large t binds the words
    to the object; at small t it only saturates colors. --guidance cds has its own curve."""
    cds: CdsConfig
    """Times and guidance scale of --guidance cds."""
    inversion: InversionConfig = field(default_factory=InversionConfig)
    """The DDIM inversion of --guidance ism and sdi."""
    vsd: VsdConfig = field(default_factory=VsdConfig)
    """The LoRA of --guidance vsd."""
    render_sizes: tuple[tuple[float, int], ...] = ()
    """Points (share of the steps done, pixels): the render size from that share on, coarse to fine. Renders are resized
    for the teacher. Unset: the teacher's own size throughout."""
    normal_prob: float = 0.0
    """Probability that a step shows the teacher surface normals instead of colors (CFD appendix A)."""
    densify: DensifyConfig = field(default_factory=DensifyConfig)
    """When Gaussians are split, cloned, moved and removed."""
    opacity_reg: float = 0.0
    """Weight of the mean of o (1 - o) over the pixels, which drives opacity to 0 or 1 and removes floaters. All these
    weights are relative to the distillation loss: a regularizer's share of the loss stays the same as it falls."""
    sparsity_reg: float = 0.0
    """Weight of the mean of sqrt(o^2 + 0.01) over the pixels, which reduces coverage and haze (threestudio)."""
    scale_reg: float = 0.0
    """Weight of the mean, over the Gaussians, of the largest standard deviation, which prevents oversized Gaussians."""
    normal_reg: float = 0.0
    """Weight of the mean squared difference of the normals of neighboring pixels on the surface, which smooths it
    (CFD's code)."""
    depth_reg: float = 0.0
    """Weight of the variance of the depths that a pixel shows, mean over the surface, which makes one layer of several
    (HiFA's z-variance; CFD's code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.t_points) >= 1, "t_points", "at least one (share, p) point", self.t_points)
        check(list(self.t_points) == sorted(self.t_points), "t_points", "points with rising shares", self.t_points)
        check_curve("cfg_points", self.cfg_points)
        shares, sizes = [share for share, _ in self.render_sizes], [size for _, size in self.render_sizes]
        rising = not shares or (shares[0] == 0 and shares == sorted(shares))
        check(rising, "render_sizes", "(share, pixels) with rising shares from 0", self.render_sizes)
        check(all(size >= 1 for size in sizes), "render_sizes", "at least 1 pixel", self.render_sizes)
        check(0 <= self.normal_prob <= 1, "normal_prob", "a value in [0, 1]", self.normal_prob)
        for name in ("opacity_reg", "sparsity_reg", "scale_reg", "normal_reg", "depth_reg"):
            check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))

    @property
    def max_count(self) -> int:
        return self.densify.max_count


@dataclass(kw_only=True)
class PolishConfig(TeacherStage):
    """The last stage: in every step the teacher paints over one group of views, and the splat is fitted to its latest
    pictures (docs/methods.md). The time, to which the views are noised, falls linearly from t_max to t_min."""

    asks: int = 3
    """How often the teacher is asked for each group: steps of DDIM from t to the picture."""
    album: int = 16
    """Groups of pictures that the splat is fitted to: the latest ones."""
    fits: int = 10
    """Steps of Adam after each new group, each on one group of the album."""
    ssim: float = 0.2
    """Share of 1 - SSIM in the loss, in [0, 1]; the rest is the mean absolute difference (3DGS)."""
    opacity_reg: float = 0.3
    """Weight of the mean of o (1 - o) over the pixels: pictures are softer at the outline than the object."""
    smooth: float = 0.5
    """Weight of the difference at twice the pictures' resolution, inside the object: no speckle that is too fine for
    the pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("asks", "album", "fits"):
            check(getattr(self, name) >= 1, f"polish.{name}", "at least 1", getattr(self, name))
        check(self.cfg is not None, "polish.cfg", "a guidance scale", self.cfg)
        check(self.t_min > 0, "polish.t_min", "a value above 0: a view without noise stays as it is", self.t_min)
        check(0 <= self.ssim <= 1, "polish.ssim", "a value in [0, 1]", self.ssim)
        for name in ("opacity_reg", "smooth"):
            check(getattr(self, name) >= 0, f"polish.{name}", "at least 0", getattr(self, name))


@dataclass(kw_only=True)
class CheckpointConfig:
    """Saved states of the run: on disk for --resume, in memory for the watchdog."""

    every: int = 50
    """Steps of a stage between two good states. The watchdog returns to the most recent one."""
    seconds: float = 10.0
    """Minimum time between two checkpoints on disk, in seconds."""
    keep: int = 2
    """Number of checkpoints kept on disk; older ones are removed."""

    def __post_init__(self) -> None:
        check(self.every >= 1, "checkpoint.every", "at least 1 step", self.every)
        check(self.seconds >= 0, "checkpoint.seconds", "at least 0 seconds", self.seconds)
        check(self.keep >= 1, "checkpoint.keep", "at least 1", self.keep)


@dataclass(kw_only=True)
class ServerConfig:
    """Address and bandwidth of a page served to the browser."""

    prefix: ClassVar[str] = ""
    """Prefix of the option names, for error messages."""
    host: str = "127.0.0.1"
    """Address to listen on. Unless it is a loopback address, anyone who can reach it can use every control of the
    page."""
    port: int = 8080
    """Port to listen on; if it is busy, the next free one is used."""
    bandwidth: float = 8.0
    """Maximum megabytes per second sent to each browser; large splats are updated less often. 1 suits a slow
    network."""

    def __post_init__(self) -> None:
        check(0 < self.port < 2**16, f"{self.prefix}port", "a port in [1, 65535]", self.port)
        check(self.bandwidth > 0, f"{self.prefix}bandwidth", "megabytes per second above 0", self.bandwidth)


@dataclass(kw_only=True)
class ViewerConfig(ServerConfig):
    """The page for watching and steering a run (docs/viewer.md)."""

    prefix: ClassVar[str] = "viewer."
    on: Annotated[bool, tyro.conf.arg(name="")] = False
    """Serve the page. By default, and with a preset, if the output is a terminal."""


@dataclass(kw_only=True)
class Edit:
    """A change made in the viewer, in effect from one step on. Fields that are None are unchanged."""

    stage: StageName = "coarse"
    rollbacks: int = 0
    """Number of rollbacks in the stage before the edit."""
    step: int = 0
    """First step of the stage that uses the edit, from 0."""
    prompt: str | None = None
    """New prompt for this stage and the next."""
    cfg: float | None = None
    """New guidance scale for this stage."""
    t_range: tuple[float, float] | None = None
    """New (t_min, t_max) for this stage; with --guidance cds, those of cds."""

    def __post_init__(self) -> None:
        check(
            self.step >= 0 and self.rollbacks >= 0, "edits", "steps and rollbacks from 0", (self.step, self.rollbacks)
        )
        valid = self.cfg is None or (math.isfinite(self.cfg) and self.cfg >= 0)
        check(valid, "cfg", "a number of at least 0", self.cfg)


@dataclass(kw_only=True)
class WatchdogConfig:
    """Limits beyond which the watchdog rolls a stage back to its last good state and halves the step size. Values that
    are not finite also trigger a rollback."""

    rollbacks: int = 3
    """Maximum number of rollbacks per stage; one more stops the run."""
    max_growth: float = 1.5
    """Maximum number of Gaussians, as a multiple of densify.max_count or, if larger, of the last good state's count."""
    max_scale: float = 1.0
    """Maximum mean, over the Gaussians, of the largest standard deviation, in world units."""
    min_foreground: float = 1e-3
    """Minimum mean opacity of a step's fullest view; below it the object has vanished."""
    max_filled: float = 0.995
    """Maximum mean opacity of any view; above it the object has become fog."""

    def __post_init__(self) -> None:
        check(self.rollbacks >= 0, "watchdog.rollbacks", "at least 0", self.rollbacks)
        check(self.max_growth >= 1, "watchdog.max_growth", "at least 1", self.max_growth)
        check(self.max_scale > 0, "watchdog.max_scale", "a positive size", self.max_scale)
        check(0 <= self.min_foreground < 1, "watchdog.min_foreground", "a value in [0, 1)", self.min_foreground)
        check(0 < self.max_filled <= 1, "watchdog.max_filled", "a value in (0, 1]", self.max_filled)


def clean_flow_noise() -> NoiseConfig:
    return NoiseConfig(gamma=0.0)


def coarse_stage() -> StageConfig:
    return StageConfig(
        teacher="toybox/multiview",
        steps=300,
        views=4,
        cfg=6.0,
        cfg_points=((0.0, 1.0), (0.35, 1.0), (0.37, 0.625), (0.62, 0.625), (0.64, 0.375)),
        t_points=((0.0, 0.0), (0.5, 0.4), (1.0, 0.75)),
        cds=CdsConfig(t_max=0.7, t_min=0.1, gap=(0.1, 0.3), weight="uniform"),
    )


def refine_stage() -> StageConfig:
    return StageConfig(
        teacher="toybox/singleview",
        steps=0,
        views=2,
        cfg=2.0,
        t_points=((0.0, 0.75), (1.0, 0.95)),
        cds=CdsConfig(t_max=0.5, t_min=0.02, gap=(0.1, 0.2), weight="variance"),
        opacity_reg=3.0,
        lr=LearningRates(means=1e-3, quats=3e-3, scales=4e-3, opacities=2e-2, sh0=1.5e-2),
    )


def polish_stage() -> PolishConfig:
    return PolishConfig(
        teacher="toybox/singleview",
        steps=32,
        views=2,
        cfg=1.0,
        t_max=0.15,
        t_min=0.05,
        elevation=(-10.0, 45.0),
        asks=2,
        album=32,
        fits=6,
        lr=LearningRates(means=2e-3, quats=4e-3, scales=1e-2, opacities=4e-2, sh0=3e-3, end=0.1),
    )


@dataclass(kw_only=True)
class Config:
    """A run: prompt in, splat out. Every field is a command-line option and a preset key. Values out of range raise
    UserError."""

    prompt: str = ""
    """Description of the object, in the teacher's vocabulary."""
    preset: str = "toybox"
    """Name or .yaml path of the preset that supplies the defaults. Unset, on the command line: mvdream-sd21 if there is
    a CUDA device and both its teachers are on this machine, otherwise toybox."""
    seed: int = 0
    """Seed of all random draws, in [0, 2^63): the same seed on the same device gives the same splat."""
    out: Path | None = None
    """Run folder. Unset: outputs/<prompt>-<seed>."""
    overwrite: bool = False
    """Replace an earlier run in the folder."""
    resume: Path | None = None
    """Continue the run in this folder, with its own settings, as if it had never stopped."""
    device: str = "auto"
    """Device of the run: auto, cpu, cuda, or cuda:1 for the second of several GPUs. auto: CUDA if torch finds a CUDA
    device."""
    dtype: Dtype = "auto"
    """Precision of the teachers. auto: bfloat16 on CUDA and on CPUs with bfloat16 instructions, otherwise float32."""
    compile: bool = False
    """Compile the teachers' networks with torch.compile: each stage starts minutes later and then steps faster. CUDA
    only."""
    vae_checkpointing: bool = False
    """Encode views one at a time and recompute activations in the backward pass: memory for one view, 50 % more
    operations."""
    dry_run: bool = False
    """Print the plan and exit: teachers found or missing, memory and time estimates, files to be written."""
    list_words: bool = False
    """Print the words that the toybox teachers know and exit."""
    guidance: MethodName = "cfd"
    """cfd: Consistent Flow Distillation. sds: Score Distillation Sampling, with fresh noise. fsd: Flow Score
    Distillation. cds: Consistent3D. ism: Interval Score Matching. sdi: the same, with the text in the inversion. vsd:
    Variational Score Distillation, with a LoRA. dsd: Diverse Score Distillation."""
    noise: NoiseConfig = field(default_factory=clean_flow_noise)
    """The noise in the teacher's input."""
    init: InitConfig = field(default_factory=InitConfig)
    """The initial Gaussians."""
    coarse: StageConfig = field(default_factory=coarse_stage)
    """Coarse stage: shapes the object with the multi-view teacher."""
    refine: StageConfig = field(default_factory=refine_stage)
    """Sharpens it with the single-view teacher."""
    polish: PolishConfig = field(default_factory=polish_stage)
    """Fits it to the teacher's own pictures of it."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saved states of the run: on disk for --resume, in memory for the watchdog."""
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    """Limits beyond which the watchdog rolls a stage back."""
    viewer: ViewerConfig = field(default_factory=ViewerConfig)
    """The page for watching and steering the run."""
    edits: Annotated[tuple[Edit, ...], tyro.conf.Suppress] = ()
    """Changes made in the viewer; a run that starts or resumes with them repeats them at the same steps."""

    def __post_init__(self) -> None:
        check_finite(self, "")
        self.prompt = as_text(self.prompt)
        check(0 <= self.seed < 2**63, "seed", "a value in [0, 2^63)", self.seed)
        check_device(self.device)
        kinds = (None, *NOISE_OF[self.guidance])
        expected = f"{' or '.join(str(k) for k in kinds)} with --guidance {self.guidance}"
        check(self.noise.kind in kinds, "noise.kind", expected, self.noise.kind)

    @property
    def noise_kind(self) -> NoiseKind:
        """Kind of noise, but for cds and dsd with a multi-view teacher."""
        return self.noise_kind_for(multiview=False)

    def noise_kind_for(self, multiview: bool) -> NoiseKind:
        """Kind of noise of a stage. multiview: whether its teacher is."""
        kinds = NOISE_OF[self.guidance]
        return self.noise.kind or ("per_view" if multiview and "per_view" in kinds else kinds[0])

    def stage(self, name: StageName) -> StageConfig | PolishConfig:
        """Returns the settings of one stage, those that are unset as the method has them."""
        if name == "polish":
            return replace(self.polish, cfg_rescale=first(self.polish.cfg_rescale, CFG_RESCALE))
        stage = self.coarse if name == "coarse" else self.refine
        cfg = CFG_OF[self.guidance][0 if name == "coarse" else 1]
        share = CFG_RESCALE if self.guidance in RESCALING else 0.0
        return replace(stage, cfg=first(stage.cfg, cfg), cfg_rescale=first(stage.cfg_rescale, share))

    def stages(self) -> dict[StageName, StageConfig | PolishConfig]:
        """Returns the stages that have steps, in their order."""
        names: tuple[StageName, ...] = get_args(StageName)
        return {name: self.stage(name) for name in names if self.stage(name).steps}

    def distillations(self) -> dict[StageName, StageConfig]:
        """Returns the stages that have steps and distil, in their order."""
        return {name: stage for name, stage in self.stages().items() if isinstance(stage, StageConfig)}

    def noise_background(self, multiview: bool) -> NoiseBackground:
        """What is behind the object in the noise. multiview: whether the teacher is."""
        return self.noise.background or ("fresh" if self.guidance == "cfd" and multiview else "screen")

    def noise_gamma(self, stage: StageName, multiple: float = 1.0) -> float:
        """Returns the share of fresh noise per step of a stage with at least one step. multiple: of gamma, from
        noise.gamma_points."""
        if self.noise.gamma is not None:
            return multiple * self.noise.gamma
        if self.guidance != "cfd" or stage not in CFD_STEPS:
            return 0.0
        return rescaled_gamma(multiple * CFD_GAMMA, CFD_STEPS[stage], self.stage(stage).steps)


def first(value: float | None, other: float) -> float:
    """The value, or the other if it is None."""
    return other if value is None else value


def plain(value: Any) -> Any:
    """Returns a config as plain YAML types."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=120)


def cast(value: Any, kind: Any, name: str) -> Any:
    """Returns `value`, as read from YAML, as the type `kind`. Raises UserError, naming the key, if it does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return cast(value, next(a for a in arguments if a is not type(None)), name)
    if origin is Literal:
        check(value in arguments, name, " or ".join(map(str, arguments)), value)
        return value
    if origin is tuple:
        check(isinstance(value, list), name, "a list", value)
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        check(len(value) == len(kinds), name, f"{len(kinds)} values", value)
        return tuple(cast(v, k, name) for v, k in zip(value, kinds, strict=True))
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise UserError(f"{name}: expected a number, got {str(value)[:40]!r}") from None
    if kind is Path:
        check(isinstance(value, str), name, "a path", value)
        return Path(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return merged(kind(), value, f"{name}.")
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    check(fits, name, f"a value of type {kind.__name__}", value)
    return value


def merged(base: Dataclass, changes: Any, where: str = "") -> Dataclass:
    """Returns a copy of the dataclass `base` with the values in `changes`, by field name; nested dataclasses take
    mappings.

    Raises UserError for a value that does not fit and for an unknown key, naming the nearest known one.
    """
    check(isinstance(changes, dict), where.rstrip(".") or "config", "a mapping of settings", changes)
    names = [f.name for f in dataclasses.fields(base)]
    hints = typing.get_type_hints(type(base))
    values = {}
    for key, value in changes.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"
            raise UserError(f"config: unknown key {where + str(key)!r}{hint}")
        current = getattr(base, key)
        if dataclasses.is_dataclass(current) and not isinstance(current, type):
            values[key] = merged(current, value, f"{where}{key}.")
        else:
            values[key] = cast(value, hints[key], where + key)
    return replace(base, **values)


def presets_folder() -> Path:
    """Returns the folder of the presets: `configs/` of the checkout, or `gscfd/configs` of an installed wheel."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def presets() -> list[str]:
    """Returns the names of the presets that come with gscfd, sorted."""
    return sorted(path.stem for path in presets_folder().glob("*.yaml"))


def load_run(folder: Path) -> Config:
    """Returns the settings of the run in `folder`. Raises UserError if it holds no run."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"resume: expected the folder of a run, got {folder}, which holds no config.yaml; check the path"
        )
    try:
        return load_preset(str(path))
    except UserError as error:
        raise UserError(
            f"{error} ({path} is damaged, or another version of gscfd wrote it: use that version)"
        ) from None


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings as {"coarse.lr.means": 0.004, ...}."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def load_preset(name: str) -> Config:
    """Returns the settings of a preset: the defaults, or those of the preset that it names as `base`, with its changes.

    name: one of `presets()`, or the path of a .yaml file. Raises UserError if it is neither, or not a valid preset.
    """
    if name in presets():
        text = (presets_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    elif name.endswith(".yaml") and Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8", errors="replace")
    else:
        raise UserError(f"preset: expected {', '.join(presets())} or the path of a .yaml file, got {name!r}")
    try:
        changes = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise UserError(f"preset: {name} is not valid YAML: {' '.join(str(error).split())[:400]}") from None
    check(isinstance(changes, dict), "preset", "a mapping of settings", changes)
    base = changes.pop("base", None)
    check(base is None or base in presets(), "base", " or ".join(presets()), base)
    # A run's config.yaml is also a preset, except for the settings that concern only that run.
    settings = {
        key: value
        for key, value in changes.items()
        if key not in ("out", "overwrite", "resume", "dry_run", "list_words")
    }
    return merged(load_preset(base) if base else Config(), {"preset": name, **settings})


@dataclass(kw_only=True)
class Drawing:
    """How to generate an image from a teacher."""

    method: Literal["cfd", "fsd", "sds", "vsd", "ddim", "edm"] = "cfd"
    """Descent along the clean flow: cfd with a little fresh noise, fsd with none, sds with only fresh noise, vsd like
    sds but against a LoRA that learns the image. Samplers: ddim, and edm with Heun steps and --churn for fresh
    noise."""
    steps: int = 50
    """Number of steps. Each evaluates the teacher once, with edm twice."""
    gamma: float | None = None
    """Share of fresh noise per step of cfd, in [0, 1) (CFD Eq. 10). Unset: 1e-4."""
    churn: float | None = None
    """EDM's S_churn, at least 0. Unset: 0, no fresh noise."""
    vsd: VsdConfig = field(default_factory=VsdConfig)
    """The LoRA of --method vsd."""
    seed: int = 0
    """Seed of all random draws, in [0, 2^63)."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N. auto: CUDA if torch finds a CUDA device."""
