"""Every fault is found on the record that has it; good neighbours stay."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from inset_jax.core.config import edit
from inset_jax.data import report, text
from inset_jax.data.build import build_records
from inset_jax.data.fingerprint import alike, fingerprint, near_pairs
from inset_jax.data.index import build_index
from inset_jax.data.record import Example, Segment, open_records, write_records
from inset_jax.data.rewrite import ONE_TO_ONE, WithoutRejects
from inset_jax.data.validate import _compared, validate
from tools.validate_records import main


def drawing(seed: int, size=(48, 32)) -> Image.Image:
    """A few soft blobs: pictures that look different for every seed."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def segment(kind: str, picture: Image.Image, form: str = "PNG", **more) -> Segment:
    stream = io.BytesIO()
    picture.save(stream, form, **more)
    return Segment(kind, image=stream.getvalue(), width=picture.width, height=picture.height)


def example(name: str, text: str, *segments: Segment, kind="t2i") -> Example:
    return Example(name, (Segment("text", text=text), *segments), kind, "drawn", "CC0")


def target(seed: int, **more) -> Segment:
    return segment("target", drawing(seed, **more))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records with one of every fault, and good ones between them."""
    broken = dataclasses.replace(target(1), image=b"no picture")
    larger = dataclasses.replace(target(2), width=49)
    recompressed = segment("target", drawing(0, (96, 64)), "JPEG", quality=80)
    train = [
        example("good", "a caption", target(0)),
        example("broken", "x", broken),
        example("larger", "x", larger),
        example("place", "a <image> here", target(3)),
        example("twice", "A  caption", recompressed),
        example("other-words", "another caption of it", target(0)),
        example("blank", " \n", target(4)),
        example("leak", "held out elsewhere", target(5)),
        example("long", "word " * 200, target(6)),
        Example("answer", (Segment("text", text="two?"), Segment("text", text="2", loss=True))),
        Example("again", (Segment("text", text="two?"), Segment("text", text="2", loss=True))),
        Example("idle", (Segment("text", text="nothing to learn"),)),
    ]
    validation = [
        example("held-out", "its own words", target(5)),
        example("more", "more of it", target(7)),
        example("fine", "fine", segment("vit", drawing(8)), target(9), kind="image-interleaved"),
    ]
    folder = tmp_path_factory.mktemp("faults") / "set"
    write_records(folder, {"train": train, "validation": validation})
    return folder


@pytest.fixture(scope="module")
def found(folder, config):
    return validate(str(folder), folder.parent, config)


REASONS = {
    "train[1] broken": "image of segment 1: cannot be read as an image",
    "train[2] larger": "image of segment 1 is 48x32, the record says 49x32",
    "train[3] place": "'<image>' in the text, a picture is missing there",
    "train[4] twice": "the same as train[0] (good)",
    "train[6] blank": "segment 0: an empty text",
    "train[7] leak": "leak between splits: its target is that of validation[0] (held-out)",
    "train[8] long": "tokens, data.max_example_tokens is 128",
    "train[10] again": "the same as train[9] (answer)",
    "train[11] idle": "nothing to learn",
}


def test_every_fault_is_found_and_nothing_else(found):
    rejects = {f"{r.split}[{r.record}] {r.id}": r.reason for r in found.rejects}
    assert set(rejects) == set(REASONS)
    for which, words in REASONS.items():
        assert words in rejects[which], which


def test_of_two_records_with_one_id_the_first_stays(found, folder):
    good = next(own for own in found.findings if own.id == "fine")
    other = good._replace(number=9, lesson="x", pictures=())
    reasons = [own.reasons for own in _compared(str(folder), [good, other])]
    assert reasons == [(), ("its id is taken by validation[2]",)]


def test_the_good_ones_are_kept(folder, found, tmp_path):
    file = tmp_path / "rejects.jsonl"
    file.write_text("".join(json.dumps(r._asdict()) + "\n" for r in found.rejects))
    build_records(WithoutRejects(str(folder), str(file)), tmp_path / "clean", ONE_TO_ONE)
    names = [[e.id for e in open_records(tmp_path / "clean", s)] for s in ("train", "validation")]
    assert names == [["good", "other-words", "answer"], ["held-out", "more", "fine"]]
    again = validate(str(tmp_path / "clean"), tmp_path)
    assert not again.rejects and len(again.findings) == 6


def test_the_report_shows_what_there_is(found, folder, tmp_path):
    made = report.make(found, str(folder))
    assert made.lead == "15 records read, 6 good, 9 rejects"
    counts = {row[0]: row[1:3] for row in made.tables["Records"]}
    assert counts["kind"] == ["train", "validation"] and counts["t2i"] == ["2", "2"]
    assert len(made.tables["Rejects"]) == 1 + len(REASONS) - 1  # "the same as" twice is one reason
    assert {"Longest side, target (drawn), px", "gen tokens of a record"} <= {
        chart.title for chart in made.charts
    }
    assert all(sum(count for _, count in chart.bins) <= 6 for chart in made.charts)
    paths = report.write(made, tmp_path / "out")
    page = paths[0].read_text()
    assert not re.search('(src|href)=(?!"data:)', page) and "<script" not in page
    assert "another caption of it" in page and page.count("<article>") == 6
    with Image.open(paths[1]) as picture:
        assert picture.width == report.WIDTH + 72 and picture.height > 900


def test_characters_that_a_sentence_means_are_a_warning(tmp_path, capsys):
    from inset_jax.data.sources.jsonl import Jsonl

    row = {"text": r"Type \[img:cat.png] here", "answer": "I did"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    build_records(Jsonl(str(tmp_path / "d.jsonl")), tmp_path / "set")
    clean = tmp_path / "clean"
    assert main([str(tmp_path / "set"), "--workers", "0", "--clean", str(clean)]) == 0
    words = "warning: train[0] d-1: segment 0: '[img:cat.png]' in the text"
    assert words in capsys.readouterr().err
    assert "is a picture meant?" in (tmp_path / "set.report" / "report.html").read_text()
    assert open_records(clean)[0].segments[0].text == "Type [img:cat.png] here"


def test_a_target_that_stands_twice_with_latents_is_shown_once(tmp_path):
    moments = np.zeros((2, 2, 3, 4), np.float16)
    latents = dict(moments=moments, moments_vae="0" * 16)
    twice = [dataclasses.replace(target(n), **latents) for n in (0, 0, 1)]
    write_records(tmp_path / "set", {"train": [example("a", "drawn twice, then once", *twice)]})
    made = report.make(validate(str(tmp_path / "set"), tmp_path), str(tmp_path / "set"))
    page = report.to_html(made)
    assert page.count("×2") == 1 and page.count("shown target") == 2


def test_a_truncated_shard_is_named_and_its_neighbours_are_read(tmp_path):
    rows = [{"text": f"q{n}", "answer": f"a{n}"} for n in range(40)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    from inset_jax.data.sources.jsonl import Jsonl

    build_records(Jsonl(str(tmp_path / "d.jsonl")), tmp_path / "set", 10)
    shards = sorted((tmp_path / "set").glob("records-*"))
    shards[1].write_bytes(shards[1].read_bytes()[:300])
    shards[2].unlink()
    found = validate(str(tmp_path / "set"), tmp_path, workers=2)
    assert [own.id for own in found.findings] == [f"d-{n}" for n in (*range(1, 11), *range(31, 41))]
    assert [own.shard.path for own in found.lost] == shards[1:3]
    assert "truncated or damaged" in found.lost[0].reason
    assert "10 records are lost" in found.lost[0].reason
    assert found.rejects[0].record is None


def test_a_damaged_record_costs_itself_alone(tmp_path):
    random = np.random.default_rng(0)
    noise = lambda: Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    examples = [example(f"n{n}", f"text {n}", segment("target", noise())) for n in range(40)]
    write_records(tmp_path / "set", {"train": examples})
    shard = next((tmp_path / "set").glob("*train*"))
    data = bytearray(shard.read_bytes())
    data[100_000:100_020] = bytes(20)
    shard.write_bytes(data)
    found = validate(str(tmp_path / "set"), tmp_path)
    (reject,) = found.rejects
    assert "cannot be read" in reject.reason and reject.record is not None
    file = tmp_path / "rejects.jsonl"
    file.write_text(json.dumps(reject._asdict()) + "\n")
    built = build_records(WithoutRejects(str(tmp_path / "set"), str(file)), tmp_path / "clean", 1)
    assert built.examples == {"train": 39} and not built.rejects
    names = {e.id for e in open_records(tmp_path / "clean")}
    assert names == {f"n{n}" for n in range(40) if n != reject.record}


def test_exit_status_of_the_command(folder, tmp_path, capsys):
    run = lambda *more: main([*more, "--workers", "0"])
    assert run(str(tmp_path / "nowhere")) == 2
    assert "nowhere: no records there" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    clean, place = str(tmp_path / "clean"), str(tmp_path / "report")
    assert run(str(folder), "--report", place, "--clean", clean) == 1
    seen = capsys.readouterr()
    assert "train[1] broken: image of segment 1" in seen.err
    assert "7 good records, 8 rejects" in seen.out  # without a config nothing is too long
    lines = (tmp_path / "report" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["id"] == "broken"
    assert run(clean, "--report", place) == 0
    assert not (tmp_path / "report" / "rejects.jsonl").exists()
    with pytest.raises(SystemExit):
        run(clean, "--reprot=x")


def test_the_report_lies_beside_a_folder_that_is_named_with_a_slash(tmp_path):
    write_records(tmp_path / "set", {"train": [example("a", "a caption", target(0))]})
    assert main([f"{tmp_path / 'set'}/", "--workers", "0"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.report"]
    assert not (tmp_path / "set" / ".report").exists()


def test_fingerprints_survive_what_leaves_a_picture_the_same():
    one = drawing(0, (200, 160))
    stream = io.BytesIO()
    one.save(stream, "JPEG", quality=60)
    pictures = [one, one.resize((100, 80)), Image.open(stream).convert("RGB")]
    pictures += [drawing(n, (200, 160)) for n in range(1, 30)]
    pictures += [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue", "red")]
    prints = [fingerprint(picture) for picture in pictures]
    pairs = {pair for pair in near_pairs(prints) if alike(*(pictures[n] for n in pair))}
    assert pairs == {(0, 1), (0, 2), (1, 2), (32, 34)}
    assert list(near_pairs([])) == [] and list(near_pairs(prints[:1])) == []


def test_near_pairs_are_those_of_comparing_all():
    random = np.random.default_rng(0)
    base = [fingerprint(drawing(n)) for n in range(40)]
    prints = []
    for own in base:
        prints.append(own)
        flipped = own.bits
        for bit in random.choice(64, int(random.integers(1, 6)), replace=False):
            flipped ^= 1 << int(bit)
        prints.append(own._replace(bits=flipped))
    close = lambda a, b: all(abs(x - y) <= 12 for x, y in zip(a.colour, b.colour, strict=True))
    bits = lambda a, b: (a.bits ^ b.bits).bit_count() if close(a, b) else 64
    count = range(len(prints))
    apart = {(i, j): bits(prints[i], prints[j]) for i in count for j in count if i < j}
    found = set(near_pairs(prints))
    assert found <= {pair for pair, own in apart.items() if own <= 5}
    assert found >= {pair for pair, own in apart.items() if own <= 3} and len(found) > 30


def test_references_are_scaled_down_as_far_as_a_plan_does(config, tmp_path):
    side = config.data.vit_size.max_side  # 4 patches; 62% would be 2 of them, 65% are 3
    seen = segment("vit", drawing(0, (side, side)))
    examples = [example("one", "x", seen, target(1)), example("two", "y", seen, seen, target(2))]
    write_records(tmp_path / "set", {"train": examples})
    tight = edit(config, data__smallest_reference=0.62, data__capacity__vit=9)
    index = build_index(open_records(tmp_path / "set"), text.load(config.data.tokenizer), tight)
    (reject,) = validate(str(tmp_path / "set"), tmp_path, tight).rejects
    assert list(index.skipped.values()) == [["two"]] and list(index.ids) == ["one"]
    assert (reject.id, reject.reason) == ("two", "18 vit tokens, data.capacity.vit is 9")


def test_measuring_needs_the_configs_tokenizer(folder, config, tmp_path):
    with pytest.raises(ValueError, match="no tokenizer there"):
        validate(str(folder), tmp_path, edit(config, data__tokenizer=str(tmp_path)))
