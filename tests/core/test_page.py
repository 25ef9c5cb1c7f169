import re

from PIL import Image

from inset_jax.core import page


def test_page_is_self_contained_and_escapes_what_people_wrote():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    row = page.Row(["A ", red, " <b>left</b> of a ", blue, "."], {"drawing": red, "target": blue})
    text = page.render(
        "A & B",
        "lead",
        [
            page.Section("Facts", facts={"parameters": "1 < 2"}, table=[["a", "b"], ["1", "2"]]),
            page.Section("Drawings", rows=[row]),
        ],
    )
    assert not re.search('(src|href)=(?!"data:)', text) and "<script" not in text
    assert text.count("data:image/png;base64,") == 4
    assert "&lt;b&gt;left&lt;/b&gt;" in text and "A &amp; B" in text and "1 &lt; 2" in text
    sentence = re.search(r"<p class=sentence>(.*?)</p>", text).group(1)
    assert [bool(part) for part in re.split(r"<img[^>]*>", sentence)] == [True, True, True]
    for tag in ("section", "table", "tr", "figure", "article", "main"):
        assert text.count(f"<{tag}") == text.count(f"</{tag}>")
