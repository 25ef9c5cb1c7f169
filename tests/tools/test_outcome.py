"""How commands end."""

import os
import signal

import pytest

from tools import outcome


def fails(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "options", "status", "words"),
    [
        (lambda: None, {}, 0, ""),
        (lambda: 1, {}, 1, ""),
        (fails(ValueError("no such split")), {}, 2, "error: no such split\n"),
        (fails(OSError("disk full")), {"failure": 1}, 1, "error: disk full\n"),
        (fails(KeyboardInterrupt()), {}, 130, "interrupted\n"),
        (
            fails(KeyboardInterrupt()),
            {"resumes": True},
            130,
            "interrupted; the same command goes on from here\n",
        ),
    ],
)
def test_an_end_is_a_status_and_a_sentence(work, options, status, words, capsys):
    assert outcome.status(work, **options) == status
    assert capsys.readouterr().err == words


def test_a_bug_is_not_hidden():
    with pytest.raises(TypeError):
        outcome.status(fails(TypeError("ours")))


def test_sigterm_lets_a_command_end_what_it_has_started(capsys):
    ended = []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # an impatient second one
            ended.append("child")

    before = signal.getsignal(signal.SIGTERM)
    assert outcome.status(work) == 143
    assert ended == ["child"]
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before
