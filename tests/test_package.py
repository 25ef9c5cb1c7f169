"""setup.py asks for what was tested: its lower bounds are the versions of the constraints."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
BOUND = re.compile(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)')
UNPINNED = {"torch"}  # of an extra that nothing here installs


def spelled(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_lower_bounds_are_the_tested_versions():
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    pins = [line.partition(";")[0].split("==") for line in lines if "==" in line.partition(";")[0]]
    tested = {spelled(name): version.strip() for name, version in pins}
    asked = BOUND.findall((ROOT / "setup.py").read_text())
    assert len(asked) > 20
    for name, lowest in asked:
        if name not in UNPINNED:
            version = tested[spelled(name)]
            assert f"{version}.".startswith(f"{lowest}."), f"{name}>={lowest}, tested: {version}"
