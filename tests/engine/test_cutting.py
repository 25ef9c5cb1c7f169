"""Objects are found where the world put them, on plain grounds and on photographs."""

import numpy as np
import pytest
from PIL import Image

from inset_jax.engine import artwork, cutting, world
from inset_jax.engine.sprites import Look
from inset_jax.engine.stage import Place
from tools import cut_object

PLACE = Place(0, 150, 110, 90)


@pytest.fixture(scope="module")
def art():
    return artwork.load("assets/demo")


def photograph(art, number: int, ground: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """An object on a ground, with some noise, and where it is."""
    thing = art.things["validation"][number]._replace(look=Look())
    with_object = ground.copy()
    world.put(with_object, thing, PLACE)
    shown = np.abs(with_object.astype(int) - ground).sum(-1) > 24
    noise = np.random.default_rng(number).normal(0, 4, ground.shape)
    return Image.fromarray(np.clip(with_object + noise, 0, 255).astype(np.uint8)), shown


def overlap(found: np.ndarray, true: np.ndarray) -> float:
    return (found & true).sum() / (found | true).sum()


def test_objects_on_a_plain_ground_are_found(art):
    ground = np.full((240, 320, 3), (60, 120, 190), np.uint8)
    shares = []
    for number in range(12):
        picture, shown = photograph(art, number, ground)
        shares.append(overlap(cutting.find(picture).mask, shown))
    assert np.median(shares) > 0.85 and min(shares) > 0.5


def test_objects_on_photographs_are_mostly_found(art):
    found = []
    for number in range(8):
        name = sorted(art.grounds)[number % len(art.grounds)]
        tile = np.tile(art.grounds[name], (2, 2, 1))[:240, :320]
        picture, shown = photograph(art, number, tile)
        try:
            found.append(overlap(cutting.find(picture).mask, shown))
        except ValueError:
            found.append(0.0)
    assert np.mean(np.array(found) > 0.4) >= 0.8


def test_the_crop_is_a_square_about_the_object(art):
    ground = np.full((240, 320, 3), 200, np.uint8)
    picture, shown = photograph(art, 3, ground)
    cut = cutting.find(picture)
    left, top, right, bottom = cut.box
    assert right - left == bottom - top
    rows, columns = np.nonzero(shown)
    assert abs((left + right) / 2 - (columns.min() + columns.max()) / 2) < 8
    assert abs((top + bottom) / 2 - (rows.min() + rows.max()) / 2) < 8
    on_red = np.asarray(cutting.crop(picture, cut, 64, "#ff0000"))
    assert on_red.shape == (64, 64, 3)
    np.testing.assert_array_equal(on_red[0, 0], (255, 0, 0))


def test_an_object_at_the_edge_is_continued_by_the_ground(art):
    ground = np.full((120, 200, 3), (10, 200, 30), np.uint8)
    ground[20:100, 0:60] = (250, 250, 250)
    picture = cutting.crop(Image.fromarray(ground), cutting.Cut((-40, 0, 80, 120), None), 120)
    assert np.abs(np.asarray(picture)[60, 5].astype(int) - (10, 200, 30)).max() < 60


def test_a_photograph_of_nothing_asks_for_a_box(tmp_path, capsys):
    flat, out = tmp_path / "flat.png", tmp_path / "out.png"
    Image.new("RGB", (50, 40), "grey").save(flat)
    assert cut_object.main([str(flat), str(out)]) == 1
    told = capsys.readouterr().err
    assert "flat.png" in told and "--box" in told and not out.exists()
    assert cut_object.main([str(flat), str(out), "--box", "5,5,25,35", "--side", "32"]) == 0
    assert Image.open(out).size == (32, 32)
    assert cut_object.main([str(flat), str(out), "--box", "5,5,25,35"]) == 0
    assert Image.open(out).size == (cutting.CROP, cutting.CROP)
    assert cut_object.main([str(flat), str(out), "--box", "50,5,70,35"]) == 1
    assert "flat.png: --box 50,5,70,35 lies outside its 50x40 pixels" in capsys.readouterr().err


def test_a_cut_that_may_be_the_ground_says_so(art, tmp_path, capsys):
    photo, out = str(tmp_path / "photo.png"), str(tmp_path / "out.png")
    photograph(art, 3, np.full((240, 320, 3), 150, np.uint8))[0].save(photo)
    assert cut_object.main([photo, out]) == 0
    told = capsys.readouterr()
    assert "the object is 6% of the photograph" in told.out and not told.err
    y, x = np.mgrid[-1:1:240j, -1:1:320j]
    darker = 150 * (1 - 0.3 * (x**2 + y**2)[..., None]) * np.ones(3)
    photograph(art, 3, darker.astype(np.uint8))[0].save(photo)
    assert cut_object.main([photo, out]) == 0
    told = capsys.readouterr().err
    assert "photo.png: that is much" in told and "--box" in told


def test_a_file_that_is_no_picture_is_named(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("hello")
    assert cut_object.main([str(tmp_path / "notes.txt"), str(tmp_path / "out.png")]) == 1
    assert "notes.txt: cannot be read as an image" in capsys.readouterr().err


def test_the_crop_goes_into_a_new_folder_and_a_strange_name_is_refused(tmp_path, capsys):
    photo, out = tmp_path / "photo.png", tmp_path / "new" / "crop.png"
    pixels = np.full((60, 80, 3), 90, np.uint8)
    pixels[20:40, 30:50] = 220
    Image.fromarray(pixels).save(photo)
    assert cut_object.main([str(photo), str(out)]) == 0 and out.exists()
    assert cut_object.main([str(photo), str(tmp_path / "crop.nothing")]) == 1
    assert "crop.nothing: cannot be written: unknown file ext" in capsys.readouterr().err


def test_photographs_of_any_kind_are_read_as_people_see_them(tmp_path):
    """Transparent ground is white, whatever colour hides in it; 16-bit grey is not clipped."""
    clear = np.zeros((60, 80, 4), np.uint8)
    clear[20:40, 30:50] = (200, 30, 30, 255)
    deep = np.full((60, 80), 20_000, np.uint16)
    deep[20:40, 30:50] = 60_000
    for name, pixels, ground in (("clear", clear, 255), ("deep", deep, 78)):
        file, out = tmp_path / f"{name}.png", tmp_path / f"{name}_cut.png"
        Image.fromarray(pixels).save(file)
        assert cut_object.main([str(file), str(out), "--side", "24"]) == 0
        corner, middle = (np.asarray(Image.open(out))[at, at].astype(int) for at in (0, 12))
        assert np.abs(corner - ground).max() < 4 and np.abs(middle - corner).max() > 100
