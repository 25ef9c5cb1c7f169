"""How commands end."""

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
