import numpy as np
import pytest
from PIL import Image

from inset_jax.checkpoint import autoencoder, convert
from inset_jax.core.config import ModelConfig, VaeConfig
from inset_jax.model import vae
from inset_jax.train.autoencoder import principal
from tools import fit_principal


def config(latents: int) -> VaeConfig:
    """Squares of 4 x 4 pixels."""
    return VaeConfig(
        kind="linear", multipliers=(1, 1, 1), latent_channels=latents, scale=1.0, shift=0.0
    )


@pytest.fixture(scope="module")
def pictures():
    """Smooth pictures, uint8 [12, 16, 24, 3]."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (12, 3, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(own).resize((24, 16))) for own in small])


def through(pictures, found, own: VaeConfig) -> tuple[np.ndarray, np.ndarray]:
    """Latents and reconstructions of pictures."""
    model = vae.bind(vae.abstract(own)[0], found.params)
    images = pictures.astype(np.float32) / 127.5 - 1
    latents = model.encode(images, None)
    return np.asarray(latents), np.asarray(model.decode(latents)) - images


def test_more_latents_keep_more_and_all_keep_everything(pictures):
    errors = {}
    for latents in (2, 8, 48):
        own = config(latents)
        found = principal.fit(pictures, own)
        values, error = through(pictures, found, own)
        assert values.shape == (12, 4, 6, latents)
        assert np.mean(values**2) == pytest.approx(1, rel=1e-3)
        errors[latents] = float(np.mean(error**2))
        lost = 1 - found.kept
        total = np.mean((pictures / 127.5 - 1 - (pictures / 127.5 - 1).mean((0, 1, 2))) ** 2)
        assert errors[latents] <= 1.2 * lost * total + 1e-9
    assert errors[2] > 2 * errors[8] > 0 and errors[48] < 1e-9


def test_latents_are_uncorrelated_and_half_whitened(pictures):
    own = config(8)
    values, _ = through(pictures, principal.fit(pictures, own), own)
    covariance = np.cov(values.reshape(-1, 8), rowvar=False)
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs(covariance / deviation / deviation[:, None] - np.eye(8)).max() < 1e-3
    assert (np.diff(deviation) < 0).all()
    # a deviation s is divided by its root: the kernel's columns have the inverse of what is left
    kernel = principal.fit(pictures, own).params["encoder"]["conv_in"]["kernel"].reshape(48, 8)
    product = np.linalg.norm(kernel, axis=0) * deviation
    assert np.allclose(product, product[0], rtol=1e-3)


def test_too_many_latents_are_refused(pictures):
    with pytest.raises(ValueError, match=r"latent_channels=49.*at most 48 components"):
        principal.fit(pictures, config(49))


def test_pictures_that_vary_too_little_are_refused():
    flat = np.repeat(np.arange(0, 240, 20, dtype=np.uint8), 16 * 24 * 3).reshape(12, 16, 24, 3)
    with pytest.raises(ValueError, match="vary in 1 components only"):
        principal.fit(flat, config(2))


def test_the_command_writes_a_file_that_loads(pictures, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for number, own in enumerate(pictures):
        Image.fromarray(own).save(tmp_path / "pictures" / f"{number}.png")
    folder, file = f"('{tmp_path / 'pictures'}',)", tmp_path / "ae.safetensors"
    flags = ["multipliers=(1,1,1)", "latent_channels=8"]
    arguments = [f"--config.vae.{flag}" for flag in flags] + [
        f"--config.data.{name}={folder}" for name in ("train", "validation")
    ]
    arguments += ["--config.data.side=16", "--config.data.batch=4", "--config.run.measure_images=8"]
    command = ["fit", "--config=configs/demo_linear_vae.py", f"--out={file}", *arguments]
    assert fit_principal.main(command) == 0
    assert "8 numbers for 4^2 pixels keep" in capsys.readouterr().out
    params = convert.load_autoencoder(file, ModelConfig(vae=config(8)))
    assert params["encoder"]["conv_in"]["kernel"].shape == (4, 4, 3, 8)
    assert autoencoder.read_config(file) == config(8)
    assert autoencoder.read_facts(file)["cuts"] == 8
    flux = [*command, "--config.vae.kind=flux"]
    assert fit_principal.main(flux) == 1 and "only a linear" in capsys.readouterr().err
