import json

import pytest
from PIL import Image

from inset_jax.data.build import build_records
from inset_jax.data.record import open_records
from inset_jax.data.sources.base import Options
from inset_jax.data.sources.jsonl import Jsonl, parse_row, to_example
from tools.build_records import main


@pytest.fixture
def folder(tmp_path):
    for name, size in dict(cat=(30, 20), bench=(16, 16), out=(64, 48)).items():
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "out.png").read_bytes()[:100])
    return tmp_path


def write(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "d.jsonl").write_text("\n".join(lines))
    return folder / "d.jsonl"


def segments(folder, **row):
    example = to_example({"id": "a"} | row, folder)
    return example.kind, [(s.kind, s.role, s.text, (s.width, s.height)) for s in example.segments]


def test_a_sentence_with_pictures(folder):
    kind, found = segments(
        folder, text="A [img:cat.png] on [img:B]", images={"B": "bench.png"}, target="out.png"
    )
    assert kind == "image-interleaved"
    assert found == [
        ("text", "prompt", "A ", (0, 0)),
        ("vit", "reference", "", (30, 20)),
        ("text", "prompt", " on ", (0, 0)),
        ("vit", "reference", "", (16, 16)),
        ("target", "target", "", (64, 48)),
    ]


def test_an_edit_keeps_its_source_as_latents_and_patches(folder):
    kind, found = segments(folder, text="red", edit="cat.png", target="out.png")
    assert kind == "editing"
    assert [row[:2] for row in found] == [
        ("vae", "source"),
        ("vit", "source"),
        ("text", "prompt"),
        ("target", "target"),
    ]


def test_an_answer_is_learned_and_may_lead_to_a_drawing(folder):
    kind, _ = segments(folder, text="what? [img:cat.png]", answer="a cat")
    assert kind == "understanding"
    example = to_example(dict(id="a", text="x", answer="so", target="out.png"), folder)
    answer = example.segments[1]
    assert answer.loss and answer.draws and example.segments[2].kind == "target"
    assert not to_example(dict(id="a", text="x", answer="so"), folder).segments[1].draws


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{bad", "not JSON: Expecting property name"),
        ("[1]", "expected an object"),
        ('{"text": 3}', "field 'text': expected text, found 3"),
        ('{"tagret": "x"}', "unknown field 'tagret'; did you mean 'target'"),
        ('{"zzz": "x"}', "there are text, target"),
        ('{"images": ["a"]}', "expected {name: path}"),
        ('{"split": "a b"}', "expected a name such as train"),
    ],
)
def test_a_broken_line_says_why(line, words):
    with pytest.raises(ValueError, match=words):
        parse_row(line)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (dict(target="out.png"), "neither text nor pictures"),
        (dict(text="x"), "needs 'target' or 'answer'"),
        (dict(text="[img:dog.png]", target="out.png"), r"dog\.png cannot be read: No such file"),
        (dict(text="x", target="half.png"), r"half\.png: damaged image"),
        (dict(text="[img:cat.png", target="out.png"), "no closing ]"),
        (dict(text="x", images={"B": "cat.png"}, target="out.png"), "B not in the sentence"),
    ],
)
def test_an_unusable_line_says_why(folder, row, words):
    with pytest.raises(ValueError, match=words):
        to_example({"id": "a"} | row, folder)


GOOD = dict(id="a", text="A [img:cat.png]", target="out.png", licence="CC0", source="me")
BAD = dict(id="b", text="x", target="gone.png")


def build(source, folder, **more):
    return build_records(Jsonl(str(source), Options(licence="unknown")), folder, **more)


def test_good_lines_are_kept_and_bad_ones_reported(folder):
    source = write(folder, GOOD, BAD, "", GOOD, "{", dict(text="é", answer="y", split="validation"))
    built = build(source, folder / "records")
    assert built.examples == {"train": 1, "validation": 1}
    assert [reject.where for reject in built.rejects] == [f"{source}:{n}" for n in (2, 4, 5)]
    assert str(built.rejects[1]) == f"{source}:4: id 'a' is taken by {source}:1"
    lines = [json.loads(line) for line in built.rejects_file.read_text().splitlines()]
    assert lines[0]["where"] == f"{source}:2" and "gone.png" in lines[0]["reason"]
    assert json.loads(lines[0]["text"]) == BAD
    first = open_records(folder / "records")[0]
    assert (first.id, first.licence, first.source) == ("a", "CC0", "me")
    last = open_records(folder / "records", "validation")[0]
    assert (last.id, last.licence) == ("d-6", "unknown")


def test_a_line_that_is_not_utf8_costs_itself_alone(folder):
    source = write(folder, GOOD)
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes() + b"\n\xff\xfe\n")
    built = build(source, folder / "records")
    assert built.examples == {"train": 1}
    assert "not UTF-8" in built.rejects[0].reason


def test_a_split_of_bad_lines_does_not_cost_the_others(folder):
    source = write(folder, BAD | {"split": "validation"}, GOOD)
    built = build(source, folder / "records")
    assert built.examples == {"train": 1} and len(built.rejects) == 1


def test_a_clean_build_removes_old_rejects(folder):
    assert build(write(folder, GOOD, BAD), folder / "one").rejects_file.exists()
    stale = folder / "two.rejects.jsonl"
    stale.write_text("old")
    build(write(folder, GOOD), folder / "two")
    assert not stale.exists()


def test_exit_status_of_the_command(folder, capsys):
    def run(name, *more):
        return main([str(folder / "d.jsonl"), str(folder / name), "--workers", "0", *more])

    source = write(folder, GOOD, BAD)
    assert run("one") == 1
    seen = capsys.readouterr()
    assert f"{source}:2: picture" in seen.err and "1 examples in split 'train'" in seen.out
    assert run("one") == 1  # the same again
    assert "1 of 1 shards were there and are kept" in capsys.readouterr().out
    assert run("one", "--per-shard", "1") == 2  # another build of that name
    assert "one: exists; remove it or name another folder" in capsys.readouterr().err
    assert run("two", "--allow-rejects") == 0
    write(folder, GOOD)
    assert run("three") == 0
    write(folder, BAD)
    assert run("four") == 2 and not (folder / "four").exists()
    assert main([str(folder / "none.jsonl"), str(folder / "five")]) == 2
    assert "cannot be read" in capsys.readouterr().err
