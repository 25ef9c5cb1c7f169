"""The released model's sizes, with no memory or disk of that size: its files are holes."""

import json

from inset_jax.checkpoint import bagel, measure
from inset_jax.core.config import ModelConfig
from tests.checkpoint.folders import GOLDEN, inward


def hollow(path, manifest):
    """Writes the header of a safetensors file and gives the file its length."""
    header, at = {}, 0
    for name, entry in manifest.items():
        size = {"BF16": 2, "bfloat16": 2, "F32": 4, "float32": 4}[entry["dtype"]]
        for length in entry["shape"]:
            size *= length
        kind = {"bfloat16": "BF16", "float32": "F32"}.get(entry["dtype"], entry["dtype"])
        header[name] = {"dtype": kind, "shape": entry["shape"], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def test_the_released_files_are_planned_to_the_last_tensor(tmp_path):
    released = tmp_path / "released"
    released.mkdir()
    for name, values in bagel.to_files(ModelConfig()).items():
        (released / name).write_text(json.dumps(values))
    for file, manifest in (("ema", "manifest_7b"), ("ae", "manifest_ae")):
        values = json.loads((GOLDEN / f"{manifest}.json").read_text())
        hollow(released / f"{file}.safetensors", values.get("tensors", values))
    report = inward(released, tmp_path / "orbax", dry_run=True)
    assert report["tensors"] == 1223 + 244
    assert report["parameters"] == 14_607_260_128 + 83_819_683
    assert report["bytes"] == 2 * 14_607_260_128 + 4 * 83_819_683
    assert report["dtypes"] == ["bfloat16", "float32"]


def test_the_benchmark_converts_there_and_back_and_watches_memory(tmp_path):
    found = measure.both_ways(tmp_path, 1, jobs=2, is_small=True)
    assert found["same_bytes"] and 5e6 < found["bytes"] < 5e7
    assert not list(tmp_path.iterdir())
    for way in measure.WAYS:
        assert 50e6 < found[way]["peak_memory"] < 1e9 and len(found[way]["curve"]) > 5
        assert found[way]["plain_seconds"] > 0 and f"ratio {found[way]['rate_over_plain']}" in (
            measure.line(found, way)
        )
    (first, *_), _ = (measure.series([found], way, lambda *curve: curve) for way in measure.WAYS)
    assert first[0] == "0.0 GB" and first[1] == found["to-orbax"]["curve"]


def test_missed_bars_are_named():
    way = {"peak_memory": 1 << 30, "rate_over_plain": 0.6, "curve": []}
    good = {"bytes": 4e9, "same_bytes": True, "to-orbax": way, "to-bagel": way}
    assert measure.failures([good, good]) == []
    bad = {**good, "bytes": 8e9, "same_bytes": False}
    bad["to-orbax"] = {**way, "peak_memory": 4 << 30}
    bad["to-bagel"] = {**way, "rate_over_plain": 0.4}
    assert measure.failures([good, bad]) == [
        "8.0 GB: other bytes came back",
        "8.0 GB, to-orbax: 4.29 GB of memory",
        "8.0 GB, to-bagel: 0.4 of a plain copy",
        "to-orbax: memory grows from 1.07 to 4.29 GB",
    ]
