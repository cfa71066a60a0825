from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from gscfd.config import Config, StageConfig, load_preset, merged, presets, to_yaml
from gscfd.distil.schedule import anneal
from gscfd.errors import UserError
from gscfd.teachers.find import halves, is_repo


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_and_round_trips(name: str) -> None:
    config = load_preset(name)
    assert merged(Config(), yaml.safe_load(to_yaml(config))) == config


def test_a_preset_starts_from_its_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: paper\ncoarse:\n  steps: 7\n")
    mine, paper = load_preset(str(path)), load_preset("paper")
    assert mine.coarse.steps == 7 and mine.refine == paper.refine != Config().refine
    assert (mine.preset, paper.preset) == (str(path), "paper")
    path.write_text("base: papr\n")
    with pytest.raises(UserError, match="base: expected .*paper.*got 'papr'"):
        load_preset(str(path))


def test_the_paper_preset_has_the_official_schedule() -> None:
    """The times t/T of CFD's public configuration, at its steps."""
    paper, scratch = load_preset("paper"), load_preset("sd21").refine
    assert (paper.coarse.steps, paper.refine.steps) == (10_000, 20_000)

    def times(stage: StageConfig, shares: Sequence[float]) -> list[float]:
        return [round(anneal(share, stage.t_points, stage.t_min, stage.t_max), 3) for share in shares]

    assert times(paper.coarse, (0, 0.5, 1)) == [0.98, 0.596, 0.308]
    assert times(paper.refine, (0, 1)) == [0.404, 0.212]
    assert times(scratch, (0, 2500 / 25000, 0.5, 1)) == [0.98, 0.692, 0.404, 0.212]
    assert times(Config().refine, (0, 1)) != [0.404, 0.212], "the control"


def test_the_paper_preset_has_the_official_sizes_and_normal_maps() -> None:
    """CFD's code: 64 pixels for MVDream until half of the steps, 128 for Stable Diffusion alone until a fifth."""
    paper, scratch = load_preset("paper"), load_preset("sd21").refine
    assert paper.coarse.render_sizes == ((0.0, 64), (0.5, 256)) and paper.refine.render_sizes == ()
    assert scratch.render_sizes == ((0.0, 128), (0.2, 512))
    assert (paper.coarse.normal_prob, paper.refine.normal_prob) == (0.0, 0.2)
    assert Config().refine.normal_prob == 0 and Config().coarse.render_sizes == (), "the toybox has neither"


def test_presets_for_large_teachers_ask_for_no_others() -> None:
    """Every stage with steps has a teacher on the hub, never the toybox's."""
    for name in set(presets()) - {"toybox", "refine-splat-toybox"}:
        config = load_preset(name)
        stages = [stage for stage in (config.coarse, config.refine) if stage.steps]
        assert stages and all(is_repo(halves(stage.teacher)[0]) for stage in stages), name
    assert not is_repo("/somewhere/else") and not is_repo("one-word") and not is_repo("../up")


def test_changed_settings_round_trip() -> None:
    config = merged(Config(), {"prompt": "ein Bär", "coarse": {"steps": 7, "t_points": [[0, 0], [1, 0.5]]}, "out": "x"})
    assert config.coarse.steps == 7 and config.coarse.t_points == ((0.0, 0.0), (1.0, 0.5))
    assert merged(Config(), yaml.safe_load(to_yaml(config))) == config


def test_an_unknown_key_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'coarse.step'.*did you mean 'steps'"):
        merged(Config(), {"coarse": {"step": 3}})


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"seed": "many"}, "seed"),
        ({"seed": True}, "seed"),
        ({"guidance": "dds"}, "guidance"),
        ({"noise": {"gamma": 1.5}}, "noise.gamma"),
        ({"noise": {"kind": "white"}}, "noise.kind"),
        ({"guidance": "sds", "noise": {"kind": "surface"}}, "noise.kind"),
        ({"noise": {"kind": "iid"}}, "noise.kind"),
        ({"guidance": "sds", "noise": {"kind": "world_map"}}, "noise.kind"),
        ({"noise": {"theta": 0}}, "noise.theta"),
        ({"init": {"opacity": 1.0}}, "init.opacity"),
        ({"coarse": {"elevation": [10]}}, "coarse.elevation"),
        ({"coarse": {"elevation": [30, 10]}}, "elevation"),
        ({"coarse": {"elevation": [0, 91]}}, "elevation: expected degrees in"),
        ({"coarse": {"t_max": 1.0}}, "t_max"),
        ({"coarse": {"render_sizes": [[0.5, 64]]}}, "render_sizes"),
        ({"coarse": {"render_sizes": [[0, 64], [0.7, 128], [0.5, 256]]}}, "render_sizes"),
        ({"coarse": {"render_sizes": [[0, 0]]}}, "render_sizes"),
        ({"coarse": {"render_sizes": [[0, 64.5]]}}, "render_sizes"),
        ({"refine": {"normal_prob": 1.1}}, "normal_prob"),
        ({"refine": {"sparsity_reg": -1}}, "sparsity_reg"),
        ({"coarse": 3}, "coarse"),
        ({"refine": {"lr": {"means": 0}}}, "lr.means"),
        ({"checkpoint": {"every": 0}}, "checkpoint.every"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep"),
        ({"watchdog": {"rollbacks": -1}}, "watchdog.rollbacks"),
        ({"watchdog": {"max_filled": 0}}, "watchdog.max_filled"),
    ],
)
def test_bad_values_are_named(changes: dict[str, object], name: str) -> None:
    with pytest.raises(UserError, match=name):
        merged(Config(), changes)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"coarse": {"cfg": float("nan")}}, "coarse.cfg"),
        ({"init": {"radius": float("inf")}}, "init.radius"),
        ({"polish": {"smooth": float("inf")}}, "polish.smooth"),
        ({"coarse": {"cfg_points": [[0.0, float("inf")]]}}, "coarse.cfg_points"),
    ],
)
def test_a_setting_that_is_not_finite_is_named(changes: dict[str, object], name: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: expected a finite number, got (nan|inf)"):
        merged(Config(), changes)


def test_good_values_pass() -> None:
    assert merged(Config(), {"guidance": "sds", "noise": {"kind": "iid", "gamma": 0}}).noise.kind == "iid"


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="toybox"):
        load_preset("toybx")


def test_a_preset_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("coarse:\n  steps: 11\n")
    assert load_preset(str(path)).coarse.steps == 11


def test_the_config_of_a_run_is_a_preset_without_its_place(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(Config(prompt="a mug", seed=4, out=tmp_path, overwrite=True)))
    config = load_preset(str(path))
    assert (config.prompt, config.seed, config.out, config.overwrite) == ("a mug", 4, None, False)


def test_a_preset_that_is_no_mapping_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- steps")
    with pytest.raises(UserError, match="mapping"):
        load_preset(str(path))


def test_a_broken_preset_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("coarse: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_preset(str(path))


def test_noise_follows_the_guidance_unless_it_is_set() -> None:
    assert Config().noise_kind == "surface"
    assert Config(guidance="sds").noise_kind == "iid"
    for kind in ("fixed", "world_map", "radial"):
        assert merged(Config(), {"noise": {"kind": kind}}).noise_kind == kind


def test_stages_are_two_values_of_one_type() -> None:
    assert type(Config().coarse) is type(Config().refine) is StageConfig
