"""The command, on a tiny BAGEL-format folder of random weights."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from inset_jax import generate
from inset_jax.core import simulated
from inset_jax.core.config import TokenConfig
from inset_jax.data.text import make_small_tokenizer

CHECKPOINT = str(pathlib.Path(__file__).parent / "golden" / "tiny_a" / "ckpt")
SENTENCE = "A [img:cat.png] sits on a [img:bench.png]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    draws = np.random.default_rng(0)
    for name, size in (("cat", (60, 40)), ("bench", (30, 90))):
        pixels = draws.integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    words = make_small_tokenizer(["a cat sits"] * 3, 512, TokenConfig(500, 501, 502, 503))
    words.save(folder / "tokenizer.json")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def command(folder, monkeypatch, capsys):
    """Runs the command in the folder; returns its status, stdout and stderr."""
    monkeypatch.chdir(folder)

    def run(*flags, steps="3"):
        shared = ["--checkpoint", CHECKPOINT, "--tokenizer", "tokenizer.json"]
        status = generate.main([*shared, "--num_timesteps", steps, *flags])
        return status, *capsys.readouterr()

    return run


def test_help_is_fast_and_states_the_evaluations():
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "inset_jax.generate", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "N - 1 evaluations" in result.stdout
    assert time.perf_counter() - start < 2


def test_a_sentence_with_pictures_becomes_a_png_that_says_how(command, folder):
    status, _, err = command(
        *("--prompt", SENTENCE, "--seed", "7", "--out", "new/a.png", "--guidance", "inset"),
        *("--height", "48", "--width", "64"),
    )
    assert status == 0, err
    picture = Image.open(folder / "new" / "a.png")
    assert picture.size == (64, 48)
    assert (picture.text["prompt"], picture.text["seed"]) == (SENTENCE, "7")
    assert picture.text["evaluations"] == "2" and picture.text["checkpoint"] == CHECKPOINT
    settings = json.loads(picture.text["settings"])
    assert (settings["guidance"], settings["alpha"], settings["beta"]) == ("inset", 4.0, 1.5)
    assert os.listdir(folder / "new") == ["a.png"]


def test_a_file_of_prompts_runs_in_batches_with_paths_relative_to_it(
    command, folder, tmp_path, monkeypatch
):
    lines = [
        {"prompt": SENTENCE, "height": 48, "width": 64},
        {"prompt": "no\u2028pictures", "seed": 3, "height": 32, "width": 32, "out": "b.png"},
    ]
    written = [json.dumps(line, ensure_ascii=False) for line in lines]
    (folder / "prompts.jsonl").write_text("\n\n".join(written), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    tokenizer = str(folder / "tokenizer.json")
    status, _, err = command(
        *("--prompts", str(folder / "prompts.jsonl"), "--out", "pages", "--pictures", "2"),
        *("--tokenizer", tokenizer, "--alpha", "2.5"),
    )
    assert status == 0, err
    names = ["0000-0.png", "0000-1.png", "b-0.png", "b-1.png"]
    assert sorted(os.listdir(tmp_path / "pages")) == names
    text = Image.open(tmp_path / "pages" / "b-1.png").text
    assert text["seed"] == "4" and json.loads(text["settings"])["alpha"] == 2.5


def test_an_edit_follows_its_source(command, folder):
    flags = ("--task", "edit", "--source", "bench.png", "--out", "edit.png", "--height", "64")
    status, _, err = command("--prompt", "put [img:cat.png] on it", "--width", "32", *flags)
    assert status == 0, err
    settings = json.loads(Image.open(folder / "edit.png").text["settings"])
    assert settings["source"] == "bench.png" and settings["renorm"] == "text_channel"


def test_a_source_among_the_flags_is_relative_to_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "sub").mkdir()
    Image.new("RGB", (16, 16)).save(folder / "sub" / "own.png")
    (folder / "sub" / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "source": "own.png"}')
    flags = ("--task", "edit", "--source", "cat.png", "--prompts", "sub/p.jsonl")
    args = generate.parser().parse_args(["--checkpoint", CHECKPOINT, *flags])
    sources = [generate.to_prompt(job).source for job in generate.read_jobs(args)]
    assert [source.size for source in sources] == [(60, 40), (16, 16)]


def test_an_answer_is_printed_or_written(command, folder):
    question = ("--task", "text", "--prompt", "what is [img:cat.png]?", "--max_tokens", "3")
    status, out, _ = command(*question)
    assert status == 0 and out.strip("\n")
    command(*question, "--out", "answer.txt")
    assert (folder / "answer.txt").read_text(encoding="utf-8") == out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompt", "a [img:dog.png]"), "--prompt: dog.png: no such image file"),
        (("--prompt", "a [img:broken.png]"), "broken.png: cannot be read as an image"),
        (("--prompt", "a [img:cat.png"), "has no closing ]"),
        (("--prompt", "[img:cat.png]"), "no text"),
        (("--prompt", "a", "--height", "50"), "height 50 px.*nearest: 48 and 64"),
        (("--prompt", "a", "--pictures", "0"), "--pictures 0"),
        (("--prompt", "a", "--shift", "-1"), "shift -1.0"),
        (("--prompt", "a", "--mesh", "pods=2"), "--mesh pods=2: expected AXIS=N,... with AXIS of"),
        (("--prompt", "a", "--mesh", "fsdp=3"), "needs 3 devices, there are 1"),
        (("--prompt", "a", "--source", "cat.png"), "--task image takes no source"),
        (("--prompt", "a", "--task", "edit"), "--task edit needs a source"),
        (("--prompt", "a", "--out", "a.jpg"), "a.jpg: pictures are written as PNG"),
        (("--prompt", "a", "--out", "cat.png/a.png"), "cat.png/a.png: its folder cannot be made"),
        (("--prompt", "a", "--checkpoint", "."), "neither a complete checkpoint nor a BAGEL model"),
        (("--prompt", "a", "--tokenizer", ""), "no tokenizer.json beside this model"),
        (("--prompts", "none.jsonl"), "none.jsonl: cannot be read"),
    ],
)
def test_bad_input_is_refused_by_name(command, flags, message):
    import re

    status, out, err = command(*flags)
    assert status == 1 and not out
    assert err.startswith("error: ") and re.search(message, err), err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('["a"]', 'line 2: expected an object with a text "prompt"'),
        ('{"prompt": "a", "hight": 32}', "line 2: unknown hight"),
        ('{"prompt": "a", "height": "32"}', "line 2: height is '32', expected int"),
        ('{"prompt": "a", "out": 5}', "line 2: out is 5, expected str"),
        ('{"prompt": "a", "out": "0000.png"}', "line 2: its result would replace .*line 1's"),
        ('{"prompt": "a [img:dog.png]"}', "line 2: .*dog.png: no such image file"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(command, folder, line, message):
    import re

    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n' + line)
    status, _, err = command("--prompts", "bad.jsonl")
    assert status == 1 and re.search(message, err), err


RED, GREEN = (200, 40, 40), (40, 160, 60)


def awkward(name: str) -> Image.Image:
    """A picture of 40 x 20 pixels, red on the left and green on the right, as people have them."""
    plain = Image.new("RGB", (40, 20), RED)
    plain.paste(GREEN, (20, 0, 40, 20))
    if name == "transparent.png":
        clear = plain.convert("RGBA")
        clear.paste((0, 0, 0, 0), (20, 0, 40, 20))
        return clear
    modes = {"grey.png": "L", "cmyk.jpg": "CMYK", "palette.png": "P"}
    return plain.convert(modes.get(name, "RGB"))


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("transparent.png", (255, 255, 255)),
        ("palette.png", GREEN),
        ("cmyk.jpg", GREEN),
        ("grey.png", (113, 113, 113)),
        ("turned.jpg", GREEN),
        ("moving.gif", GREEN),
        ("huge.png", GREEN),
    ],
)
def test_peoples_own_pictures_are_read_as_they_see_them(tmp_path, name, right):
    picture, options = awkward(name), {}
    if name == "turned.jpg":  # the camera was held upright: the file lies on its side
        picture, exif = picture.transpose(Image.Transpose.ROTATE_90), Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif}
    elif name == "moving.gif":
        options = {"save_all": True, "append_images": [Image.new("RGB", (40, 20), "blue")]}
    elif name == "huge.png":
        picture = picture.resize((6000, 3000), Image.Resampling.NEAREST)
    picture.save(tmp_path / name, **options)
    job = generate.Job("--prompt", f"a [img:{name}]", str(tmp_path), None, None, None, 0, None)
    _, read = generate.to_prompt(job).pieces
    width, height = picture.size if name == "huge.png" else (40, 20)
    assert (read.mode, read.size) == ("RGB", (width, height))
    found = np.array(read.getpixel((width * 3 // 4, height // 2)), int)
    assert np.abs(found - right).max() <= 12


def test_a_single_pixel_is_a_picture_and_half_a_file_is_named(tmp_path):
    Image.new("RGB", (1, 1), RED).save(tmp_path / "dot.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    job = generate.Job("--prompt", "a [img:dot.png]", str(tmp_path), None, None, None, 0, None)
    assert generate.to_prompt(job).pieces[1].size == (1, 1)
    with pytest.raises(ValueError, match=r"--prompt: .*half\.jpg: damaged image"):
        generate.to_prompt(job._replace(prompt="a [img:half.jpg]"))
    with pytest.raises(ValueError, match=r"--prompt: .*a folder: cannot be read as an image"):
        (tmp_path / "a folder").mkdir()
        generate.to_prompt(job._replace(prompt="a [img:a folder]"))


@pytest.mark.slow
def test_two_processes_draw_together_what_one_draws(command, folder):
    """Weights over both, a sentence on each pair of devices; the first one writes."""
    flags = ("--prompts", "pair.jsonl", "--height", "32", "--width", "48", "--guidance", "inset")
    (folder / "pair.jsonl").write_text(
        "\n".join(json.dumps({"prompt": words}) for words in (SENTENCE, "no pictures"))
    )
    assert command(*flags, "--out", "one")[0] == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = ("--checkpoint", CHECKPOINT, "--tokenizer", "tokenizer.json", "--num_timesteps", "3")
    spread = ("--mesh", "fsdp=2,tensor=2", "--coordinator", address, "--processes", "2")
    own = {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])} | simulated.several(2)
    module = (sys.executable, "-m", "inset_jax.generate")
    mine = lambda number: ("--process", str(number), "--out", f"two-{number}")
    processes = [
        subprocess.Popen(
            [*module, *shared, *flags, *spread, *mine(number)],
            env=os.environ | own,
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert not (folder / "two-1").exists()
    for name in ("0000.png", "0001.png"):
        one, two = (np.asarray(Image.open(folder / out / name), int) for out in ("one", "two-0"))
        assert np.abs(one - two).max() <= 1  # grey levels are cut off, not rounded


def test_ctrl_c_stops_cleanly_and_leaves_no_file(folder, command, monkeypatch):
    from inset_jax.sample import sampler

    class Interrupting(sampler.Moment):
        def __new__(cls, index, *rest):
            if index == 1:
                os.kill(os.getpid(), signal.SIGINT)  # what the terminal sends
                time.sleep(1)
            return super().__new__(cls, index, *rest)

    monkeypatch.setattr(sampler, "Moment", Interrupting)
    # a shell starts its background jobs with the signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, _, err = command("--prompt", "a", "--out", "never.png", steps="9")
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130 and "interrupted" in err
    assert not [name for name in os.listdir(folder) if "never" in name]


def test_a_full_disk_is_an_error_and_leaves_no_part(tmp_path):
    def write(partial):
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"a\.png: cannot be written: No space left"):
        generate._whole(tmp_path / "a.png", write)
    assert not os.listdir(tmp_path)
