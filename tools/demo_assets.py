"""Builds assets/demo from the packages that its pictures come from (assets/demo/ATTRIBUTION.md).

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
    pip download --no-deps scikit-image==0.26.0 && unzip -q scikit_image-0.26.0-*.whl
    python -m tools.demo_assets --emoji package --photos skimage/data --out assets/demo

Writes objects.webp (an atlas of 64-pixel sprites with alpha), objects.json (name, noun, look-alike
group and split of each sprite) and grounds/*.jpg. The files in the repository were made by it; run
it again only to change what is shown.
"""

import argparse
import hashlib
import json
import pathlib
import re

import numpy as np
from PIL import Image

SIDE, COLUMNS, HELD_OUT = 64, 32, 64

SUBCATEGORIES = """plant-flower plant-other animal-mammal animal-reptile animal-marine animal-bug
animal-bird animal-amphibian food-prepared food-vegetable food-fruit food-asian food-sweet
food-marine drink dishware game event award-medal sport clothing musical-instrument tool
transport-ground transport-water transport-air household science computer hotel""".split()
# arts & crafts, light & video and sky & weather have blanks in their names
SUBCATEGORIES += ["arts & crafts", "light & video", "sky & weather"]

# thin or faint, a whole picture in a square, letters, or a matter of taste
LEFT_OUT = """gun paw_prints feather empty_nest mahjong black_joker spades clubs hearts diamonds
flower_playing_cards rice_scene sparkler fireworks flags admission_tickets ticket red_envelope
milky_way foggy fog snow_cloud rain_cloud rainbow stars new_moon new_moon_with_face dash bikini
briefs womans_clothes probing_cane chains broken_chain link film_frames mag_right camera_with_flash
tanabata_tree ocean closed_umbrella railway_track motorway busstop vertical_traffic_light elevator
window door roll_of_paper low_battery keyboard chess_pawn musical_score spider_web
second_place_medal third_place_medal reminder_ribbon wind_blowing_face
waxing_crescent_moon first_quarter_moon moon waning_gibbous_moon last_quarter_moon
waning_crescent_moon first_quarter_moon_with_face last_quarter_moon_with_face lightning
partly_sunny_rain thunder_cloud_and_rain barely_sunny mostly_sunny mag hook safety_pin
airplane_departure airplane_arriving goal_net chopsticks microbe mosquito bubbles
martial_arts_uniform closed_lock_with_key sari performing_arts frame_with_picture""".split()

# file, box (left, top, right, bottom), side to keep, tint multiplied onto grey photographs
GROUNDS = {
    "brick": ("brick.png", (0, 0, 512, 512), (214, 120, 96)),
    "grass": ("grass.png", (0, 0, 512, 512), (140, 196, 84)),
    "gravel": ("gravel.png", (0, 0, 512, 512), (226, 216, 200)),
    "stars": ("hubble_deep_field.jpg", (200, 100, 900, 800), None),
    "wood": ("coffee.png", (482, 232, 600, 350), None),
    "dusk": ("rocket.jpg", (150, 5, 268, 123), None),
}
GROUND_SIDE = 160
# nouns where the short name of the package is none; a digit or a "face" in a name is dropped
NOUNS = {
    "8ball": "billiard ball",
    "art": "palette",
    "athletic_shoe": "sneaker",
    "birthday": "birthday cake",
    "bulb": "light bulb",
    "bullettrain_front": "bullet train",
    "bullettrain_side": "bullet train",
    "clapper": "clapperboard",
    "compression": "clamp",
    "construction": "road barrier",
    "dart": "dartboard",
    "dagger_knife": "dagger",
    "dna": "helix",
    "feet": "paw print",
    "fuelpump": "fuel pump",
    "gem": "diamond",
    "golf": "golf flag",
    "hocho": "kitchen knife",
    "knife_fork_plate": "plate",
    "mans_shoe": "shoe",
    "oden": "skewer",
    "seat": "airplane seat",
    "ski": "pair of skis",
    "soccer": "soccer ball",
    "sunny": "sun",
    "tada": "party popper",
    "tennis": "tennis ball",
    "tophat": "top hat",
    "t-rex": "tyrannosaur",
    "vhs": "video tape",
    "womans_flat_shoe": "flat shoe",
    "womans_hat": "sun hat",
    "zap": "lightning bolt",
}
COMMON_WORDS = set(
    "with and the of face red white black blue green old small first two hot".split()
)


def words(short_name: str) -> set[str]:
    """Returns the telling words of a short name: 'cat2' and 'black_cat' both give {'cat'}."""
    plain = re.sub(r"\d", "", short_name.lower().replace("-", "_"))
    return {word for word in plain.split("_") if len(word) > 2 and word not in COMMON_WORDS}


def look_alike_groups(names: list[str], sprites: list[Image.Image], bar: float = 40.0) -> list[int]:
    """Returns a group number an object: linked by a shared word, or by likeness of the sprites.

    Likeness is the mean absolute difference (of 255) of 12x12 thumbnails, colour times alpha and
    alpha, over the pixels that either object covers; mirrored or not.
    """
    small = [np.asarray(sprite.convert("RGBa").resize((12, 12)), np.float32) for sprite in sprites]
    thumb = np.stack(small)  # [object, 12, 12, 4], premultiplied
    group = list(range(len(names)))

    def distance(one):
        cover = np.maximum(thumb[..., 3:], one[..., 3:])
        return np.abs(thumb - one).sum((1, 2, 3)) / 4 / (cover.sum((1, 2, 3)) / 255)

    for i, name in enumerate(names):
        near = np.minimum(distance(thumb[i]), distance(thumb[i][:, ::-1]))
        for j in range(i):
            if near[j] < bar or words(name) & words(names[j]):
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    return group


def held_out_groups(group: list[int], names: list[str]) -> set[int]:
    """Returns groups, in the order of a hash of their names, until HELD_OUT are held out."""
    members = {g: sorted(n for n, m in zip(names, group, strict=True) if m == g) for g in group}
    order = sorted(members, key=lambda g: hashlib.sha256(" ".join(members[g]).encode()).digest())
    chosen, count = set(), 0
    for g in order:
        if len(members[g]) <= 6 and count + len(members[g]) <= HELD_OUT:
            chosen.add(g)
            count += len(members[g])
    return chosen


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--emoji", type=pathlib.Path, required=True)
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    rows = [
        row
        for row in json.loads((args.emoji / "emoji.json").read_text())
        if row["subcategory"] in SUBCATEGORIES
        and row["category"] not in ("People & Body", "Symbols", "Smileys & Emotion")
        and row["has_img_google"]
        and row["short_name"] not in LEFT_OUT
    ]
    rows.sort(key=lambda row: row["short_name"])
    names = [row["short_name"] for row in rows]
    sprites = []
    for row in rows:
        pixels = np.array(Image.open(args.emoji / "img/google/64" / row["image"]).convert("RGBA"))
        pixels[pixels[..., 3] == 0] = 0  # colour under full transparency is noise to a compressor
        sprites.append(Image.fromarray(pixels))
    group = look_alike_groups(names, sprites)
    held_out = held_out_groups(group, names)
    atlas = Image.new("RGBA", (COLUMNS * SIDE, -(-len(rows) // COLUMNS) * SIDE))
    objects = []
    for i, name in enumerate(names):
        atlas.paste(sprites[i], (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
        noun = NOUNS.get(name) or re.sub(r"[_-]", " ", re.sub(r"\d|_face$", "", name))
        split = "validation" if group[i] in held_out else "train"
        objects.append({"name": name, "noun": noun, "group": names[group[i]], "split": split})
    args.out.mkdir(parents=True, exist_ok=True)
    atlas.save(args.out / "objects.webp", lossless=True, method=6, quality=100)
    lines = ",\n".join(json.dumps(row) for row in objects)
    (args.out / "objects.json").write_text(f"[\n{lines}\n]\n")
    (args.out / "grounds").mkdir(exist_ok=True)
    for name, (file, box, tint) in GROUNDS.items():
        photo = Image.open(args.photos / file).convert("RGB").crop(box)
        pixels = np.asarray(photo.resize((GROUND_SIDE, GROUND_SIDE), Image.Resampling.LANCZOS))
        if tint:
            grey = pixels.astype(np.float32).mean(-1, keepdims=True)
            pixels = np.clip(grey / grey.mean() * np.float32(tint) * 0.8, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(args.out / "grounds" / f"{name}.jpg", quality=88)
    print(
        f"{len(objects)} objects, {len(set(group))} look-alike groups,"
        f" {sum(o['split'] == 'validation' for o in objects)} held out, {len(GROUNDS)} grounds"
    )


if __name__ == "__main__":
    main()
