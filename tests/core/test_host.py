import platform
import signal
import subprocess
import sys

import pytest

from inset_jax.core import host


def test_peak_memory_is_in_bytes():
    assert 2**20 < host.peak_memory() < 2**40


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_memory_stays_with_the_process():
    # in a process of its own: the settings cannot be taken back
    program = """
import resource
from inset_jax.core import host

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        b"x" * 2**26  # above every threshold that malloc would set itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before, taken = faults(), host.keep_freed_memory()
faults()
print(before, taken, faults())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    before, taken, after = done.stdout.split()
    assert taken == "True" and int(after) * 4 < int(before), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("number", "end", "status"),
    [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, host.Terminated, 143)],
)
def test_signal_waits_for_the_end_of_an_undisturbed_block(number, end, status):
    known = []
    with pytest.raises(end) as caught, host.raising_sigterm(), host.undisturbed():
        signal.raise_signal(number)
        known.append("process")
    assert known == ["process"] and host.status(caught.value) == status
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
