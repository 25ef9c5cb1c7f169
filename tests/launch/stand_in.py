#!/usr/bin/env python3
"""Stands in for gcloud, kubectl and python: notes each call and answers as a test has said.

STAND_IN names a folder. answers.json is a list of {match, status, out, err, times}: the first that
matches the call's words and is not used up answers; without one, the answer is silence and 0.
"""

import fcntl
import json
import os
import pathlib
import sys

folder = pathlib.Path(os.environ["STAND_IN"])
words = " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
given = "" if sys.stdin.isatty() or "apply" not in sys.argv else sys.stdin.read()
with open(folder / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(folder / "calls.jsonl", "a") as calls:
        calls.write(json.dumps({"words": words, "given": given}) + "\n")
    answers = json.loads((folder / "answers.json").read_text())
    answer = next((a for a in answers if a["match"] in words and a.get("times", 1) > 0), {})
    if "times" in answer:
        answer["times"] -= 1
    (folder / "answers.json").write_text(json.dumps(answers))
sys.stdout.write(answer.get("out", ""))
sys.stderr.write(answer.get("err", ""))
sys.exit(answer.get("status", 0))
