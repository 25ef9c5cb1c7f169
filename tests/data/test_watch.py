"""Worker processes do not outlive the process that they work for."""

import os
import signal
import subprocess
import sys
import time

import pytest

# a child that begins as a worker does, of a process that prints its number and waits
PROGRAM = """
import os, sys, time
from inset_jax.data.watch import Notes
child = os.fork()
if not child:
    Notes(sys.argv[1]).begin(0, 1)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def is_alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_worker_ends_when_its_process_is_killed(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        time.sleep(1.5)
        assert is_alive(worker)  # its process lives, and so does it
        process.send_signal(signal.SIGKILL)
        process.wait()
        ends = time.monotonic() + 20
        while is_alive(worker) and time.monotonic() < ends:
            time.sleep(0.1)
        assert not is_alive(worker)
