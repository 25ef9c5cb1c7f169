"""Training an autoencoder: the step, the loop, going on after a stop, the file that comes out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from inset_jax.checkpoint import autoencoder as files
from inset_jax.checkpoint import convert, store
from inset_jax.core import overrides
from inset_jax.core.config import (
    AutoencoderConfig,
    AutoencoderRunConfig,
    CropConfig,
    ModelConfig,
    OptimizerConfig,
    VaeConfig,
    edit,
)
from inset_jax.model import vae
from inset_jax.train import metrics
from inset_jax.train.autoencoder import __main__ as command
from inset_jax.train.autoencoder import loop, measure, step

STEPS = 60


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Several runs here compile the same step; a cache on disk spares the repetition."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("cache")), 0, -1), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> AutoencoderConfig:
    """The smallest autoencoder, and pictures of two colours each."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        colours = np.random.default_rng(number).integers(0, 256, (2, 3), np.uint8)
        pixels = colours[(np.indices((10, 12)).sum(0) // 5) % 2]
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return AutoencoderConfig(
        name="smallest",
        vae=VaeConfig(channels=32, multipliers=(1,), res_blocks=1, latent_channels=4),
        data=CropConfig(train=(str(folder),), validation=(str(folder),), side=8, batch=4),
        optimizer=OptimizerConfig(peak_lr=5e-3, warmup_steps=0, eps=1e-8, ema_decay=0.5),
        run=AutoencoderRunConfig(
            steps=STEPS,
            log_every=1,
            save_every=30,
            validate_every=30,
            validation_images=5,
            measure_images=8,
        ),
    )


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """A run without a stop."""
    folder = tmp_path_factory.mktemp("straight")
    return loop.run(config, folder), folder


@pytest.fixture(scope="module")
def advance(config):
    definition, _ = vae.abstract(config.vae)
    return jax.jit(step.train_step(definition, config))


def records(folder) -> list[dict]:
    """What a run wrote down, without the times."""
    timed = ("steps_per_second", "images_per_second", "seconds_left")
    rows = metrics.read(folder)
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def test_loss_falls_and_held_out_pictures_are_measured(straight):
    rows = records(straight[1])
    losses = [row["reconstruction"] for row in rows if row["phase"] == "train"]
    assert len(losses) == STEPS
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    ratios = [row["psnr"] for row in rows if row["phase"] == "validation"]
    assert len(ratios) == 2 and np.isfinite(ratios).all()
    with Image.open(straight[1] / "previews" / f"{STEPS:08d}.png") as picture:
        assert picture.size == (5 * 8, 2 * 8)  # five pictures over their reconstructions


def test_stopped_and_started_again_it_equals_the_straight_run(config, straight, tmp_path):
    loop.run(edit(config, run__steps=30), tmp_path)
    assert len(records(tmp_path)) == 31
    loop.run(config, tmp_path)
    assert records(tmp_path) == records(straight[1])
    first, second = (load_file(folder / loop.FILE) for folder in (tmp_path, straight[1]))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_config_stays_the_one_of_the_last_start_that_took_a_step(config, straight):
    kept = (straight[1] / overrides.FILE).read_text()
    assert overrides.from_dict(json.loads(kept), AutoencoderConfig) == config
    with pytest.raises(ValueError, match="step 60"):
        loop.run(edit(config, vae__channels=64, run__steps=STEPS + 1), straight[1])
    assert (straight[1] / overrides.FILE).read_text() == kept


def test_finished_run_says_so_and_writes_its_file_again(config, straight, capsys):
    outcome, folder = straight
    before = outcome.file.read_bytes()
    outcome.file.unlink()
    assert loop.run(config, folder).step == STEPS
    assert f"nothing to do: step {STEPS} is there" in capsys.readouterr().out
    # without the figures of a validation, which this start did not make
    assert files.read_config(outcome.file) is not None
    outcome.file.write_bytes(before)


def test_finished_run_whose_file_is_of_an_earlier_step_writes_it_again(config, straight):
    """As a run leaves it that was killed between its last checkpoint and the file."""
    outcome, folder = straight
    before = outcome.file.read_bytes()
    older = before.replace(rb"\"steps\": 60", rb"\"steps\": 30")
    outcome.file.write_bytes(older)
    assert files.read_facts(outcome.file)["steps"] == 30
    loop.run(config, folder)
    assert files.read_facts(outcome.file)["steps"] == STEPS
    outcome.file.write_bytes(before)


def test_file_gives_latents_of_mean_0_and_deviation_1(config, straight):
    stored = files.read_config(straight[0].file)
    assert stored.multipliers == config.vae.multipliers
    model = edit(ModelConfig(), vae=stored)
    params = convert.load_autoencoder(straight[0].file, model)
    bound = vae.bind(vae.abstract(stored)[0], params)
    crops = loop.Crops(config.data, config.run.seed)
    pixels = np.concatenate([crops.batch(n) for n in range(2)])
    images = step.unit_range(jnp.asarray(pixels))
    moments = jax.jit(bound.encode_moments)(images)
    noise = jax.random.normal(jax.random.key(7), moments[0].shape)
    latents = bound.scale(vae.sample(*moments, noise))
    assert abs(float(jnp.mean(latents))) < 0.1
    assert abs(float(jnp.std(latents)) - 1) < 0.1
    facts = files.read_facts(straight[0].file)
    assert facts["steps"] == STEPS and facts["trained_on"] == list(config.data.train)
    assert facts["psnr"] == pytest.approx(records(straight[1])[-1]["psnr"], abs=0.01)


def test_step_that_is_not_finite_changes_nothing(config, advance):
    _, params = vae.create(config.vae, 0)
    params["decoder"]["conv_out"]["bias"] = jnp.full((3,), jnp.nan)
    state = step.initial_state(params, config)
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    after, report = advance(state, pixels)
    assert not report.finite
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_run_that_is_not_finite_stops_and_keeps_its_checkpoints(
    config, straight, tmp_path, monkeypatch
):
    """The third step reports what the step above reports of numbers that are not finite."""

    def train_step(definition, config):
        def advance(state, pixels):
            broken = jnp.where(state["step"] == 2, jnp.nan, 0.5)
            losses = step.Losses(*[broken] * 3)
            report = step.Report(losses, broken, broken, jnp.isfinite(broken))
            return state | {"step": state["step"] + 1}, report

        return advance

    monkeypatch.setattr(step, "train_step", train_step)
    with pytest.raises(ValueError, match=r"step 3: not finite.*intact: step 2 is the last one"):
        loop.run(edit(config, run__save_every=2, run__validate_every=0), tmp_path)
    assert store.steps(tmp_path / "checkpoints") == [2]


def test_psnr_of_a_known_error():
    images = jnp.zeros((2, 4, 4, 3))
    drawn = jnp.stack([jnp.full((4, 4, 3), 0.2), jnp.full((4, 4, 3), 5.0)])
    np.testing.assert_allclose(step.psnr(images, drawn), [20.0, 20 * np.log10(2)], rtol=1e-5)


def test_grid_leaves_out_a_second_row_that_is_not_full():
    pixels = np.arange(11, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    picture = measure.grid(pixels, pixels + 100)
    np.testing.assert_array_equal(picture[..., 0], [range(8), range(100, 108)])
    assert measure.grid(pixels[:3], pixels[:3]).shape == (2, 3, 3)


def test_command_refuses_on_one_line_before_it_computes(tmp_path, capsys):
    file = tmp_path / "experiment.py"
    file.write_text(
        "from inset_jax.core.config import AutoencoderConfig\n"
        "from inset_jax.core.overrides import to_config_dict\n"
        "get_config = lambda: to_config_dict(AutoencoderConfig())\n"
    )

    def error(*flags: str) -> str:
        assert command.main(["train", f"--config={file}", *flags]) == 1
        return capsys.readouterr().err

    workdir = f"--workdir={tmp_path / 'run'}"
    assert "--workdir=DIR is missing" in error()
    assert "did you mean kl_weight?" in error("--config.loss.kl_wieght=1", workdir)
    assert "data.side=100 is not a multiple of 8" in error("--config.data.side=100", workdir)
    assert "data.train is empty" in error(workdir)
    assert not (tmp_path / "run").exists()
    assert command.main(["train", "--help"]) == 0
    assert "--config.loss.kl_weight=1e-06" in capsys.readouterr().out
