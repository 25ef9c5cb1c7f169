"""Stored latents give the batch that encoding online gives, and only those of the same encoder."""

import dataclasses
import io
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from inset_jax.checkpoint import autoencoder, bagel, convert, store
from inset_jax.core import simulated
from inset_jax.core.config import SizeLimits, edit
from inset_jax.data import record
from inset_jax.data.build import build_records
from inset_jax.data.loader import Loader
from inset_jax.data.record import Example, Segment, open_records
from inset_jax.data.rewrite import ONE_TO_ONE
from inset_jax.data.text import make_small_tokenizer
from inset_jax.model import vae
from inset_jax.train.latents import LatentWriter
from inset_jax.train.loop import _with_digest
from inset_jax.train.moments import Encoded, Encoder, load_autoencoder

ROOT = pathlib.Path(__file__).parents[2]


def example(number: int) -> Example:
    random = np.random.default_rng(number)

    def image(kind, width, height, **more):
        stream = io.BytesIO()
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        return Segment(kind, image=stream.getvalue(), width=width, height=height, **more)

    source = image("vae", 13, 9)
    segments = (
        source,
        dataclasses.replace(source, kind="vit"),
        Segment("text", "a"),
        image("target", 8 + 8 * (number % 2), 8),
    )
    return Example(f"n{number}", segments, "editing")


@pytest.fixture(scope="module")
def place(tmp_path_factory, config):
    """A folder of records with a tokenizer, the config for them, an autoencoder and its file."""
    folder = tmp_path_factory.mktemp("moments")
    examples = [example(n) for n in range(5)]
    record.write_records(folder / "plain", {"train": examples, "validation": examples[:1]})
    tokens = config.model.tokens.__class__(260, 261, 262, 263)
    make_small_tokenizer(["a"], 264, tokens).save(folder)
    config = edit(
        config,
        model__tokens=tokens,
        model__llm__vocab_size=264,
        data__tokenizer=str(folder),
        data__vit_size=SizeLimits(max_side=8, min_side=8, stride=2),
        data__vae_size=SizeLimits(max_side=8, min_side=4, stride=4),
        data__max_example_tokens=64,
        data__packs=2,
    )
    params = vae.create(config.model.vae, 0)[1]
    autoencoder.save(folder / "ae.safetensors", params, config.model.vae, {})
    return folder, config, params


@pytest.fixture(scope="module")
def encoded(place):
    folder, config, params = place
    encoder = Encoder(config.model.vae, params)
    source = Encoded.of(str(folder / "plain"), config, encoder)
    built = build_records(source, folder / "encoded", ONE_TO_ONE)
    assert built.examples == {"train": 5, "validation": 1} and not built.rejects
    return source


def batch(place, name: str, moments: str):
    """The first batch of a folder of records."""
    folder, config, _ = place
    return next(Loader(edit(config, data__train=(str(folder / name),), data__moments=moments)))


def test_a_batch_of_stored_latents_is_the_one_that_is_encoded(place, encoded):
    write = LatentWriter(*place[1:])
    found = [
        batch(place, *how)
        for how in (("plain", encoded.digest), ("encoded", "none"), ("encoded", encoded.digest))
    ]
    online, ignored, stored = (write(own.pack, own.pictures) for own in found)
    assert len(found[0].pictures) == len(found[1].pictures) > 0 and not found[2].pictures
    jax.tree.map(np.testing.assert_array_equal, online, ignored)
    # half precision: 11 bits of the mean and of the logarithm of the variance
    scale = np.abs(online.gen_latent).max()
    np.testing.assert_allclose(stored.gen_latent, online.gen_latent, atol=2e-3 * scale)
    assert np.abs(online.gen_latent).sum() > 0
    same = stored._replace(gen_latent=online.gen_latent)
    jax.tree.map(np.testing.assert_array_equal, same, online)


def test_latents_of_another_autoencoder_are_not_used(place, encoded):
    params = place[2]
    moved = {**params, "encoder": jax.tree.map(lambda x: x * 1.01, params["encoder"])}
    other = autoencoder.digest(moved)
    assert other != encoded.digest
    assert len(batch(place, "encoded", other).pictures) > 0


def test_the_digest_is_the_encoders_own(place):
    folder, config, params = place
    read = load_autoencoder(str(folder / "ae.safetensors"), config.model)
    assert autoencoder.digest(read) == autoencoder.digest(params)
    moved = {**params, "decoder": jax.tree.map(lambda x: x + 1, params["decoder"])}
    assert autoencoder.digest(moved) == autoencoder.digest(params)


def test_an_autoencoder_is_found_wherever_a_run_would_find_it(tmp_path):
    bagel_folder = ROOT / "tests" / "golden" / "tiny_a" / "ckpt"
    model = bagel.config_from_bagel(bagel_folder)
    params = convert.load_bagel(bagel_folder, model)
    meta = {"config": {"model": dataclasses.asdict(model)}}
    with store.Store(tmp_path / "checkpoints") as writer:
        writer.save(1, {"params": params}, meta)
    wanted = autoencoder.digest(params["vae"])
    for source in (bagel_folder, bagel_folder / "ae.safetensors", tmp_path):
        assert autoencoder.digest(load_autoencoder(str(source), model)) == wanted
    other = edit(model, llm__layers=5)
    with pytest.raises(ValueError, match=r"is another model"):
        load_autoencoder(str(tmp_path), other)


def test_a_run_uses_the_latents_of_its_own_autoencoder(place, encoded):
    _, config, params = place
    assert _with_digest(config, params).data.moments == encoded.digest
    for chosen in ("none", "0123456789abcdef"):
        assert _with_digest(edit(config, data__moments=chosen), params).data.moments == chosen


def test_what_is_encoded_stays_and_what_is_damaged_is_named(place, encoded, tmp_path):
    folder, _, _ = place
    again = build_records(encoded, folder / "encoded", ONE_TO_ONE)
    assert (again.made, again.kept) == (0, 2)
    broken = dataclasses.replace(example(7), id="broken")
    target = dataclasses.replace(broken.segments[3], image=b"no picture")
    broken = dataclasses.replace(broken, segments=(*broken.segments[:3], target))
    first = open_records(folder / "encoded")[0]
    record.write_records(tmp_path / "mixed", {"train": [first, broken, example(8)]})
    source = dataclasses.replace(encoded, folder=str(tmp_path / "mixed"))
    built = build_records(source, tmp_path / "done", ONE_TO_ONE)
    assert "record 1: broken: image of segment 3" in str(built.rejects[0])
    kept, new = list(open_records(tmp_path / "done"))
    np.testing.assert_array_equal(kept.segments[3].moments, first.segments[3].moments)
    assert new.segments[0].moments_vae == new.segments[3].moments_vae == encoded.digest
    assert new.segments[1].moments is None


def test_the_command_on_four_devices_gives_the_same(place, encoded, tmp_path):
    folder, config, _ = place
    import json

    from inset_jax.core import overrides

    values = json.dumps(overrides.to_dict(config))
    (tmp_path / "experiment.py").write_text(
        "import json\n"
        "from inset_jax.core.overrides import from_dict, to_config_dict\n"
        f"def get_config():\n    return to_config_dict(from_dict(json.loads({values!r})))\n"
    )
    command = [sys.executable, "-m", "tools.encode_latents", str(folder / "plain")]
    command += [str(tmp_path / "done"), f"--config={tmp_path / 'experiment.py'}"]
    run = lambda *more: subprocess.run(
        [*command, *more],
        cwd=ROOT,
        env=os.environ | simulated.several(4),
        capture_output=True,
        text=True,
    )
    assert "expected --autoencoder=..., run.init_from or run.autoencoder" in run().stderr
    flag = f"--config.run.autoencoder={folder / 'ae.safetensors'}"
    done = run(flag)
    assert done.returncode == 0, done.stderr
    assert f"autoencoder {encoded.digest}" in done.stdout
    for one, other in zip(
        open_records(folder / "encoded"), open_records(tmp_path / "done"), strict=True
    ):
        for ours, theirs in zip(one.segments, other.segments, strict=True):
            assert (ours.moments is None) == (theirs.moments is None)
            if ours.moments is not None:
                np.testing.assert_allclose(ours.moments, theirs.moments, rtol=2e-3, atol=2e-3)
