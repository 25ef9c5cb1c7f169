import hashlib
import json
import re

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from safetensors.numpy import load_file

from inset_jax.checkpoint import (
    arrays,
    convert,
    describe,
    load,
    names,
    place,
    provenance,
    store,
    to_orbax,
)
from inset_jax.checkpoint.errors import Unwritable
from inset_jax.checkpoint.plan import rename
from inset_jax.checkpoint.stored import Checkpoint
from tests.checkpoint.folders import (
    FOLDER,
    cast,
    change,
    contents,
    inward,
    outward,
    same,
    shard,
    side_files,
)

GATE = "language_model.model.layers.1.mlp.gate_proj.weight"


def golden_model():
    return load_file(FOLDER / "ema.safetensors")


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(arrays, "FILE_BYTES", 1 << 13)  # several files even of small parameters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_round_trip_gives_the_same_files(folder, tmp_path, small_files, dtype):
    cast(folder, np.dtype(getattr(ml_dtypes, dtype, dtype)))  # the autoencoder stays float32
    side_files(folder)
    there = inward(folder, tmp_path / "orbax", jobs=3)
    back = outward(tmp_path / "orbax", tmp_path / "back", jobs=3)
    found, expected = contents(tmp_path / "back"), contents(folder)
    assert set(found) - set(expected) == {provenance.KEPT}
    assert all(found[name] == expected[name] for name in expected)
    digest = hashlib.sha256(expected["ema.safetensors"]).hexdigest()
    assert there["sha256"][str(folder / "ema.safetensors")] == digest
    assert back["sha256"]["ema.safetensors"] == digest


def test_shards_come_back_as_the_same_shards(folder, tmp_path):
    shard(folder)
    inward(folder, tmp_path / "orbax")
    outward(tmp_path / "orbax", tmp_path / "back")
    found = contents(tmp_path / "back")
    assert found.items() >= contents(folder).items()


def test_an_index_of_shards_stays_behind_where_one_file_is_written(folder, tmp_path):
    shard(folder)
    inward(folder, tmp_path / "orbax")
    outward(tmp_path / "orbax", tmp_path / "back", dtype="bfloat16")
    back = sorted(contents(tmp_path / "back"))
    assert back == sorted([*contents(FOLDER), provenance.KEPT])
    outward(tmp_path / "orbax", tmp_path / "beside", dtype="bfloat16", side_files=str(folder))
    assert sorted(contents(tmp_path / "beside")) == back


def test_a_converted_checkpoint_is_loaded_like_the_folder(converted, tiny):
    one = load.load_any(converted)
    assert one.config == tiny[0] and one.info["meta"]["weights"] == "ema"
    assert same(names.flatten(one.params), names.flatten(tiny[1]))
    kept = load.load_any(converted / "0", dtype=convert.KEEP).params["model"]["latent_in"]["kernel"]
    assert kept.dtype == np.float32


def test_orbax_alone_restores_it(converted, tiny):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.restore(converted / "0" / "params")
    assert same(names.flatten(found), names.flatten(tiny[1]))
    with ocp.CheckpointManager(converted) as manager:
        assert manager.latest_step() == 0


def test_every_file_is_in_the_digests(converted):
    table = json.loads((converted / "0" / "digests.json").read_text())
    files = {name for item in ("params", "meta") for name in contents(converted / "0" / item)}
    assert {name.split("/", 1)[1] for name in table} == files
    victim = converted / "0" / "params" / "model.llm.head.kernel" / "c" / "0" / "0"
    content = victim.read_bytes()
    victim.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    try:
        with pytest.raises(ValueError, match=r"head.kernel/c/0/0 has other content than was"):
            load.load_any(converted)
    finally:
        victim.write_bytes(content)


def test_dtypes_are_kept_or_cast(folder, tmp_path):
    report = inward(folder, tmp_path / "half", dtype="bfloat16")
    assert report["dtypes"] == ["bfloat16", "float32"]  # the autoencoder stays as it is
    loaded = load.load_any(tmp_path / "half", dtype=convert.KEEP)
    found = names.flatten(loaded.params)
    wide = names.flatten(convert.load_bagel(folder))
    for path, leaf in found.items():
        kind = ml_dtypes.bfloat16 if path.startswith("model/") else np.float32
        assert np.asarray(leaf).tobytes() == wide[path].astype(kind).tobytes(), path


def test_the_convolution_form_of_the_patch_embedding_becomes_the_linear_one(folder, tmp_path, tiny):
    def as_convolution(found):
        linear = found[names.PATCH_WEIGHT].reshape(-1, 14, 14, 3)
        found[names.PATCH_WEIGHT] = np.ascontiguousarray(linear.transpose(0, 3, 1, 2))

    change(folder, as_convolution)
    inward(folder, tmp_path / "orbax")
    found = names.flatten(load.load_any(tmp_path / "orbax").params)
    assert same(found, names.flatten(tiny[1]))


def test_a_missing_tensor_may_be_allowed_and_is_remembered(folder, tmp_path, tiny):
    copied = "language_model.model.layers.0.mlp_moe_gen.up_proj.weight"
    gone = [copied, "latent_pos_embed.pos_embed", "vae2llm.bias", "llm2vae.weight"]
    change(folder, lambda found: [found.pop(name) for name in gone])
    patterns = ("*moe_gen*", "*pos_embed", "vae2llm.*", "llm2vae.*")
    with pytest.raises(ValueError, match=f"missing: {re.escape(gone[3])}"):
        inward(folder, tmp_path / "orbax", allow_missing=patterns[:3])
    inward(folder, tmp_path / "orbax", allow_missing=patterns)
    params = load.load_any(tmp_path / "orbax").params["model"]
    layers = params["llm"]["layers"]
    copy, origin = (layers[e]["mlp"]["up"]["kernel"][0] for e in ("gen", "und"))
    np.testing.assert_array_equal(copy, origin)
    expected = names.flatten(tiny[1])
    table = params["latent_position"]["table"]
    np.testing.assert_allclose(table, expected["model/latent_position/table"], atol=1e-6)
    assert not np.any(params["latent_out"]["kernel"]) and np.any(params["latent_in"]["bias"])
    (entry,) = provenance.ancestry(tmp_path / "orbax")[:-1]
    assert entry["allowed_missing"] == {
        "patterns": list(patterns),
        "filled": {
            copied: f"copied from {copied.replace('_moe_gen', '')}",
            "latent_pos_embed.pos_embed": "computed (frozen sin-cos table)",
            "vae2llm.bias": "random, seed 0",
            "llm2vae.weight": "zero",
        },
    }


def test_tensors_may_be_renamed_and_it_is_remembered(folder, tmp_path, tiny):
    def wrap(found):
        for name in [name for name in found if name.startswith("language_model.")]:
            found["base." + name] = found.pop(name)
        found["gate"] = found.pop("base." + GATE)

    change(folder, wrap)
    rules = (f"gate={GATE}", "base.*=*")
    inward(folder, tmp_path / "orbax", renames=rules)
    assert same(names.flatten(load.load_any(tmp_path / "orbax").params), names.flatten(tiny[1]))
    (entry,) = provenance.ancestry(tmp_path / "orbax")[:-1]
    count = sum(name.startswith("language_model.") for name in golden_model())
    assert entry["renamed"] == {"rules": list(rules), "tensors": count}
    outward(tmp_path / "orbax", tmp_path / "back")  # under BAGEL's own names
    assert same(load_file(tmp_path / "back" / "ema.safetensors"), golden_model())


@pytest.mark.parametrize(
    "rule, message",
    [
        ("a", "expected OLD=NEW"),
        ("a*b*=c", "at most one"),
        ("a=c*", "at most one"),
        ("typo.*=*", "no tensor is called typo"),
        ("x.*=y.1", "both become y.1"),
    ],
)
def test_a_rename_that_cannot_be_meant_is_refused(rule, message):
    assert rename(["x.1", "x.2", "y"], ["x.*=z.*"]) == {"z.1": "x.1", "z.2": "x.2", "y": "y"}
    with pytest.raises(ValueError, match=message):
        rename(["x.1", "x.2"], [rule])


def test_a_dry_run_checks_and_writes_nothing(folder, tmp_path):
    report = inward(folder, tmp_path / "orbax", dry_run=True)
    assert report["tensors"] == 287 and report["parameters"] == 1383763
    assert not (tmp_path / "orbax").exists()
    (folder / "ae.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected ae\.safetensors"):
        inward(folder, tmp_path / "orbax", dry_run=True)


def test_the_weights_that_are_asked_for_are_taken(folder, tmp_path):
    (folder / "model.safetensors").write_bytes((folder / "ema.safetensors").read_bytes())
    change(folder, lambda found: found["vae2llm.bias"].__setitem__(0, 7), "model.safetensors")
    one = inward(folder, tmp_path / "ema")
    assert one["not_converted"] == [str(folder / "model.safetensors")]
    inward(folder, tmp_path / "model", weights="model")
    bias = [load.load_any(tmp_path / n).params["model"]["latent_in"]["bias"][0] for n in one_two()]
    assert bias[1] == 7 and bias[0] != 7
    outward(tmp_path / "model", tmp_path / "back", weights="model")
    back = contents(tmp_path / "back")
    assert back["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert "ema.safetensors" not in back
    with pytest.raises(ValueError, match="was converted from model weights"):
        outward(tmp_path / "model", tmp_path / "no", weights="ema")


def test_shards_of_the_average_are_an_average(folder, tmp_path):
    shard(folder, stem="ema")
    inward(folder, tmp_path / "orbax")
    assert load.load_any(tmp_path / "orbax").info["meta"]["weights"] == "ema"
    outward(tmp_path / "orbax", tmp_path / "back", weights="ema")
    assert contents(tmp_path / "back").items() >= contents(folder).items()


def test_an_index_of_the_averaged_weights_makes_no_second_model(folder, tmp_path):
    """BAGEL's release has model.safetensors.index.json beside ema.safetensors, which it names."""
    index = {"metadata": {}, "weight_map": dict.fromkeys(golden_model(), "ema.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert describe.describe(folder)["weights"] == ["ema"]
    inward(folder, tmp_path / "orbax")
    outward(tmp_path / "orbax", tmp_path / "back")
    assert contents(tmp_path / "back").items() >= contents(folder).items()
    with pytest.raises(ValueError, match=r"expected model.safetensors or model.safetensors.index"):
        inward(folder, tmp_path / "no", weights="model")


def one_two():
    return ("ema", "model")


def test_provenance_survives_training(folder, converted, tmp_path, tiny):
    chain = provenance.ancestry(converted)
    assert [entry["kind"] for entry in chain] == ["bagel", "checkpoint"]
    sizes = {file["name"]: file["bytes"] for file in chain[0]["files"]}
    assert sizes["ema.safetensors"] == (FOLDER / "ema.safetensors").stat().st_size
    assert chain[0]["tools"]["names"] == names.VERSION and chain[0]["time"]
    config, params = tiny
    with store.Store(tmp_path / "run") as writer:  # as a run that began with it saves
        meta = {"config": {"model": to_dict(config)}, "provenance": chain}
        writer.save(10, {"params": params, "ema": {"model": params["model"]}}, meta)
    report = outward(tmp_path / "run", tmp_path / "back", side_files=str(FOLDER))
    assert report["step"] == 10
    kinds = [entry["kind"] for entry in provenance.ancestry(tmp_path / "back")]
    assert kinds == ["bagel", "checkpoint", "checkpoint", "bagel"]
    assert same(load_file(tmp_path / "back" / "ema.safetensors"), golden_model())
    outward(tmp_path / "run", tmp_path / "alone")  # configs of its own
    assert same(names.flatten(convert.load_bagel(tmp_path / "alone")), names.flatten(params))


def to_dict(config):
    import dataclasses

    return dataclasses.asdict(config)


def test_a_url_takes_the_same_path(folder, tmp_path):
    target = f"memory://{tmp_path.name}/checkpoints"
    inward(folder, target)
    with pytest.raises(Unwritable, match="is not empty"):
        inward(folder, target)
    outward(target, tmp_path / "back")
    assert contents(tmp_path / "back").items() >= contents(folder).items()
    with pytest.raises(Unwritable, match="object store"):
        outward(target, "memory://elsewhere")
    with pytest.raises(ValueError, match="no complete checkpoint there"):
        outward("memory://nowhere", tmp_path / "no")
    with pytest.raises(ValueError, match="nosuch"):
        inward(folder, "nosuch://x")


def test_a_run_in_a_bucket_is_found_by_its_folder_its_checkpoints_and_a_step(folder, tmp_path):
    bucket = place.Place(f"memory://{tmp_path.name}")
    checkpoints = f"{bucket.name}/run/checkpoints"
    inward(folder, checkpoints)
    for key in bucket.keys("run/checkpoints/0/"):
        bucket.write(key.replace("/0/", "/12/", 1), bucket.read(key))
    # of the newest step no more than an item has been copied
    bucket.write("run/checkpoints/5000/meta/commit_success.txt", b"")
    found = lambda path: (lambda one: (one.folder.name, one.step))(Checkpoint(path))
    for path in (f"{bucket.name}/run", f"{bucket.name}/run/", checkpoints, f"{checkpoints}/12"):
        assert found(path) == (checkpoints, 12)
    assert found(f"{checkpoints}/0/") == (checkpoints, 0)
    for path in (f"{checkpoints}/5000", f"{checkpoints}/13", bucket.name):
        with pytest.raises(ValueError, match=f"{path}: no complete checkpoint there"):
            Checkpoint(path)


def test_reading_costs_each_byte_once(converted):
    """TensorStore's own count, for all parameters onto one device."""
    count = lambda: sum(
        metric["values"][0]["value"]
        for metric in ts.experimental_collect_matching_metrics(
            "/tensorstore/kvstore/file/bytes_read"
        )
    )
    config = load.read_config(converted)
    shapes = convert.shapes(config)
    before = count()
    wanted = {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in shapes.items()}
    store.restore(converted, {"params": names.unflatten(wanted)})
    numbers = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    described = len(arrays.orbax_metadata(list(shapes))) + 3000 * len(shapes)
    assert numbers <= count() - before < numbers * 1.02 + described + index_bytes(converted)


def index_bytes(converted):
    item = place.Place(converted / "0" / "params")
    cuts = [arrays.read_cut(item, path) for path in convert.shapes(load.read_config(converted))]
    pieces = lambda cut: int(np.prod(cut.files)) * int(np.prod(cut.pieces))
    return sum(arrays.INDEX_BYTES * pieces(cut) for cut in cuts)


def test_what_lies_beside_the_tensors_is_known(tmp_path, folder):
    side_files(folder)
    (folder / ".git").mkdir()
    (folder / ".git" / "x").touch()
    names_ = [path.name for path in to_orbax.beside(folder)]
    assert "teaser.bin.md" in names_ and "merges.txt" in names_ and "x" not in names_
