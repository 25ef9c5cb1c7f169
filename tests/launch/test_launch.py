"""Launching on Cloud TPU VMs and here, against stand-ins that answer as clouds do."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from tests.launch.calls import having

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
ACTIVE = {"match": "describe", "out": "ACTIVE\n"}


def test_queued_run_asks_for_machines_starts_every_host_and_gives_them_back(cloud):
    status, _, err, calls = cloud("queued.sh", [ACTIVE], FLAGS="--config.run.steps=7")
    assert status == 0, err
    (create,) = having(calls, "queued-resources create inset")
    for word in ("--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5", "--spot"):
        assert word in create
    for host in (0, 1):
        (command,) = having(calls, "ssh inset", f"--worker={host}")
        assert "python -m inset_jax.train --config=configs/inset_7b.py" in command
        assert "--config.run.steps=7 --coordinator=auto" in command
        assert "LIBTPU_INIT_ARGS=" in command
        # SIGTERM ends it at any time, and it has time to save
        assert "docker run --rm --init --stop-timeout=600" in command
        assert "JAX_COMPILATION_CACHE_DIR=/mnt/run/inset/compiled" in command
    assert having(calls, "queued-resources delete inset")
    assert calls[-1]["words"].startswith("gcloud compute tpus queued-resources delete")


def test_several_slices_are_one_request_and_one_mesh_axis(cloud):
    status, _, err, calls = cloud("queued.sh", [ACTIVE], SLICES="2")
    assert status == 0, err
    assert "--node-count=2 --node-prefix=inset" in having(calls, "create")[0]
    assert {c.split(" ssh ")[1].split()[0] for c in having(calls, "ssh")} == {"inset-0", "inset-1"}
    assert len(having(calls, "ssh", "--config.mesh.dcn=2")) == 4


def test_dry_run_prints_every_command_and_calls_nothing(cloud):
    status, out, err, calls = cloud("queued.sh", [], "--dry-run", SLICES="2")
    assert status == 0, err
    assert not calls
    lines = [line for line in out.splitlines() if "preflight" not in line]
    assert all(line.startswith("+ gcloud compute tpus ") for line in lines)
    assert len(lines) == 1 + 1 + 4 + 1  # create, describe, ssh, delete


@pytest.mark.parametrize("script", ["queued.sh", "gke.sh"])
def test_a_step_that_does_not_fit_asks_for_no_machines(cloud, script):
    too_large = {"match": "tools.preflight", "status": 1, "err": "does not fit\n"}
    flags = "--config.run.steps=7 --lost_after=9"
    status, _, err, calls = cloud(
        script, [too_large], keep_preflight=True, SLICES="2", FLAGS=flags, PACKS="16"
    )
    assert status == 1
    assert "does not fit" in err and "--no-preflight" in err
    (call,) = calls
    for word in (
        "--slice=2x v5p:2x2x2 --exact",
        "--config=configs/inset_7b.py",
        "--config.mesh.dcn=2",
        "--config.data.packs=16",
        "--config.run.steps=7",
    ):
        assert word in call["words"]
    assert "workdir" not in call["words"] and "lost_after" not in call["words"]


def test_preflight_can_be_left_out(cloud):
    status, _, err, calls = cloud("queued.sh", [ACTIVE], "--no-preflight", keep_preflight=True)
    assert status == 0, err
    assert not having(calls, "tools.preflight")


def test_full_zone_is_asked_again(cloud):
    full = {
        "match": "create",
        "status": 1,
        "err": "ERROR: (gcloud) RESOURCE_EXHAUSTED: there is no more capacity in the zone\n",
        "times": 2,
    }
    status, _, err, calls = cloud("queued.sh", [full, ACTIVE])
    assert status == 0, err
    assert len(having(calls, "create")) == 3
    assert "no capacity for v5p-16 in some-zone" in err


def test_request_that_fails_in_the_queue_is_made_anew(cloud):
    failed = {"match": "describe", "out": "FAILED\n", "times": 2}
    waiting = {"match": "describe", "out": "WAITING_FOR_RESOURCES\n", "times": 1}
    status, _, err, calls = cloud("queued.sh", [waiting, failed, ACTIVE])
    assert status == 0, err
    assert len(having(calls, "create")) == 2
    assert "asking anew" in err


def test_missing_quota_is_an_error_at_once(cloud):
    quota = {"match": "create", "status": 1, "err": "ERROR: Quota limit 'TPUV5P' exceeded\n"}
    status, _, err, calls = cloud("queued.sh", [quota])
    assert status == 1
    assert "Quota limit" in err
    assert len(calls) == 1


def test_preempted_run_goes_on_on_new_machines(cloud):
    answers = [
        {"match": "describe", "out": "ACTIVE\n", "times": 1},
        {"match": "--worker=0", "status": 75, "times": 1},
        {"match": "--worker=1", "status": 255, "times": 1},
        {"match": "describe", "out": "SUSPENDED\n", "times": 3},
        ACTIVE,
    ]
    status, _, err, calls = cloud("queued.sh", answers)
    assert status == 0, err
    assert "taken away (SUSPENDED); the run goes on" in err
    kinds = [w for c in calls for w in ("create", "delete") if f"resources {w}" in c["words"]]
    assert kinds == ["create", "delete", "create", "delete"]


def test_host_that_refuses_ssh_is_tried_again_alone(cloud):
    refused = {"match": "--worker=1", "status": 255, "err": "port 22: refused\n", "times": 2}
    status, _, err, calls = cloud("queued.sh", [refused, ACTIVE])
    assert status == 0, err
    assert len(having(calls, "ssh", "--worker=1")) == 3
    assert len(having(calls, "ssh", "--worker=0")) == 1
    assert "inset, host 1: ssh refused (attempt 2 of 5)" in err


def test_host_that_never_answers_is_named_and_the_others_are_stopped(cloud):
    refused = {"match": "--worker=1", "status": 255, "times": 1000}
    settings = {"RESUBMIT": "1", "SSH_ATTEMPTS": "2"}
    status, _, err, calls = cloud("queued.sh", [refused, ACTIVE], **settings)
    assert status == 75
    assert "inset, host 1: ssh refused; the other hosts are stopped" in err
    assert len(having(calls, "--worker=0", "--command=sudo docker stop")) == 2  # one an attempt
    assert "not done after 2 attempts" in err
    assert having(calls[-1:], "delete")


def test_hosts_that_all_lose_their_connection_are_told_once_to_save(cloud):
    # a second SIGTERM would end a process that saves
    broken = {"match": "--coordinator=auto", "status": 255, "times": 2}
    status, _, err, calls = cloud("queued.sh", [broken, ACTIVE], SSH_ATTEMPTS="1")
    assert status == 0, err
    assert len(having(calls, "--command=sudo docker stop")) == 1
    # what still runs on a host when the next attempt begins has time to save, too
    again = having(calls, "--coordinator=auto")[-1]
    assert again.index("docker stop -t 600 inset") < again.index("docker rm -f inset")


@pytest.mark.parametrize("docker", [125, 126, 127])
def test_image_that_cannot_be_started_is_an_error(cloud, docker):
    no_image = {"match": "--worker=1", "status": docker, "times": 1000}
    status, _, err, calls = cloud("queued.sh", [no_image, ACTIVE], SSH_ATTEMPTS="2")
    assert status == 1
    assert len(having(calls, "create")) == 1
    assert f"inset, host 1: status {docker}" in err and "registry.example/inset:1" in err
    assert len(having(calls, "--worker=1", "docker run")) == (2 if docker == 125 else 1)
    assert having(
        calls, "--worker=0", "--command=sudo docker stop"
    )  # it would wait for the other one


def test_a_zone_that_does_not_answer_takes_no_machines_away(cloud):
    deaf = {"match": "describe", "status": 1, "err": "ERROR: 503 backend error\n", "times": 3}
    status, _, err, calls = cloud("queued.sh", [deaf, ACTIVE])
    assert status == 0, err
    kinds = [w for c in calls for w in ("create", "delete") if f"resources {w}" in c["words"]]
    assert kinds == ["create", "delete"]
    assert "inset: UNKNOWN" in err and "503 backend error" in err


def test_request_that_is_gone_is_made_anew(cloud):
    gone = {"match": "describe", "status": 1, "err": "ERROR: NOT_FOUND: no such\n", "times": 2}
    status, _, err, calls = cloud("queued.sh", [gone, ACTIVE])
    assert status == 0, err
    assert len(having(calls, "create")) == 2


def test_who_stops_waiting_is_told_what_goes_on(stood_in):
    waiting = {"match": "describe", "out": "WAITING_FOR_RESOURCES\n"}
    with subprocess.Popen(**stood_in("queued.sh", [waiting])) as process:
        while (line := process.stderr.readline()) and "WAITING" not in line:
            pass
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "gcloud compute tpus queued-resources delete inset" in said


def test_spot_runs_save_by_the_clock_and_flags_may_have_lines(cloud):
    settings = {"FLAGS": "--config.run.steps=7\n--config.run.seed=3"}
    for spot, expected in (("1", True), ("0", False)):
        status, out, err, _ = cloud("queued.sh", [], "--dry-run", SPOT=spot, **settings)
        assert status == 0, err
        (command,) = [line for line in out.splitlines() if "--worker=0" in line]
        assert ("--config.run.save_minutes=20" in command) == expected
        assert "config.run.steps=7" in command and "config.run.seed=3" in command


def test_error_of_the_run_is_not_tried_again(cloud):
    broken = {"match": "--worker=0", "status": 1, "err": "error: data.train is empty\n"}
    status, _, err, calls = cloud("queued.sh", [broken, ACTIVE])
    assert status == 1
    assert len(having(calls, "create")) == 1
    assert "data.train is empty" in err
    assert "inset, host 0: status 1" in err


def test_missing_setting_is_named(cloud):
    status, _, err, calls = cloud("queued.sh", [], BUCKET="")
    assert (status, calls) == (1, [])
    assert "BUCKET is empty" in err


def test_local_processes_get_their_numbers_and_the_first_bad_status_counts(cloud):
    lost = [{"match": "--process=1", "status": 75}, {"match": "--process=2", "status": 1}]
    status, _, err, calls = cloud("local.sh", lost, PROCESSES="3", DEVICES="2")
    assert status == 75
    assert "process 1 of 3: status 75" in err
    assert len(having(calls, "--coordinator=127.0.0.1:29400", "--processes=3")) == 3


SHELLCHECK = shutil.which(
    "shellcheck", path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    scripts = [str(path) for path in sorted(LAUNCH.glob("*.sh"))]
    done = subprocess.run([SHELLCHECK, "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
