"""Launching on pods, against stand-ins for gcloud and kubectl that answer as clouds do."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

from tests.launch.jobset import faults

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SETTINGS = {
    "PROJECT": "some-project",
    "ZONE": "some-zone",
    "IMAGE": "registry.example/inset:1",
    "BUCKET": "some-bucket",
    "CHIP": "v5p",
    "TOPOLOGY": "2x2x2",  # 8 chips, 2 hosts
    "PAUSE": "0",
    "RESUBMIT": "2",
}
ACTIVE = {"match": "describe", "out": "ACTIVE\n"}


@pytest.fixture
def stood_in(tmp_path):
    """Returns a function: (script, answers, **settings) -> arguments of subprocess.run."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("gcloud", "kubectl", "python"):
        (binaries / name).write_text(
            (ROOT / "tests" / "launch" / "stand_in.py")
            .read_text()
            .replace("#!/usr/bin/env python3", f"#!{sys.executable}")
        )
        (binaries / name).chmod(0o755)

    def arguments(script, answers, *flags, **settings):
        (tmp_path / "answers.json").write_text(json.dumps(answers))
        (tmp_path / "calls.jsonl").write_text("")
        own = {"STAND_IN": str(tmp_path), "LOGS": str(tmp_path / "logs")}
        path = {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
        return {
            "args": ["bash", str(LAUNCH / script), *flags],
            "env": os.environ | SETTINGS | own | path | settings,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }

    return arguments


@pytest.fixture
def cloud(stood_in, tmp_path):
    """Returns a function: (script, answers, **settings) -> (status, stdout, stderr, calls)."""

    def launch(script, answers, *flags, keep_preflight=False, **settings):
        calls = tmp_path / "calls.jsonl"
        done = subprocess.run(**stood_in(script, answers, *flags, **settings), timeout=60)
        told = [json.loads(line) for line in calls.read_text().splitlines()]
        if not keep_preflight:
            told = [call for call in told if "tools.preflight" not in call["words"]]
        return done.returncode, done.stdout, done.stderr, told

    return launch


def having(calls, *words):
    return [call["words"] for call in calls if all(word in call["words"] for word in words)]


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


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ("parallelism: 2", "parallelism: two", "'two' is not of type 'integer'"),
        ("nodeSelector:", "nodeSelectors:", "'nodeSelectors' was unexpected"),
        ("values: [1]", "values: [error]", "onExitCodes/values/0"),
        ("operator: In", "operand: In", "'operator' is a required property"),
        ("action: FailJobSet", "action: Fail", "'Fail' is not one of"),
        ("topology: 2x2x2", "topology: 2 2 2", "'2 2 2' does not match"),
        ("topology: 2x2x2", "topology: 222", "222 is not of type 'string'"),
        ("limits: {google.com/tpu: 4}", "limits: {google.com/tpu: four}", "resources/limits"),
        ("limits: {google.com/tpu: 4}", "limits: {google.com/tpu: 8}", "found ['4', '8']"),
        ("name: shm, mountPath", "name: shared, mountPath", "no volume 'shared'"),
        ("mountPath: /dev/shm", "mountPath: /mnt/run", "mountPath /mnt/run is there 2 times"),
        ("mountPath: /dev/shm", "mountPath: dev:shm", "'dev:shm' does not match"),
        ("emptyDir: {medium: Memory}", "hostPath: {path: /dev/shm}", "'hostPath' was unexpected"),
        ("emptyDir: {medium: Memory}", "emptyDir: {sizeLimit: 9 GB}", "'9 GB' does not match"),
        ("restartPolicy: Never", "restartPolicy: OnFailure", "needs restartPolicy Never"),
        ("containerName: train", "containerName: run", "no container run"),
        ("name: JAX_PLATFORMS", "name: PYTHONUNBUFFERED", "PYTHONUNBUFFERED is there 2 times"),
        ("name: JAX_PLATFORMS", "name: JAX PLATFORMS", "'JAX PLATFORMS' does not match"),
        ('gke-gcsfuse/volumes: "true"', "gke-gcsfuse/volumes: true", "True is not of type"),
        ('gke-gcsfuse/volumes: "true"', 'gke-gcsfuse/volumes: "yes"', "needs the annotation"),
        ("completions: 2", "parallelism: 2", "Indexed needs completions"),
        ("name: inset", f"name: {'inset' * 10}", "longer than 63 characters"),
        ("image: ", "image: docker:// ", "template/spec/containers/0/image"),
    ],
)
def test_manifest_with_a_fault_is_refused_by_the_schema(cloud, line, instead, said):
    _, out, err, _ = cloud("gke.sh", [], "--dry-run")
    text = out[out.index("apiVersion") :]
    assert line in text, err
    assert said in "; ".join(faults(yaml.safe_load(text.replace(line, instead))))


@pytest.mark.parametrize(
    ("chip", "topology", "slices", "node", "hosts", "chips"),
    [
        ("v6e", "16x16", 1, "tpu-v6e-slice", 64, 4),
        ("v6e", "2x4", 1, "tpu-v6e-slice", 1, 8),
        ("v5p", "4x4x4", 2, "tpu-v5p-slice", 16, 4),
        ("tpu7x", "4x4x4", 1, "tpu7x", 16, 4),
        ("v5e", "4x4", 1, "tpu-v5-lite-podslice", 4, 4),
    ],
)
def test_manifest_has_a_job_a_slice_and_a_pod_a_host(
    cloud, chip, topology, slices, node, hosts, chips
):
    status, out, err, calls = cloud(
        "gke.sh", [], "--dry-run", CHIP=chip, TOPOLOGY=topology, SLICES=str(slices)
    )
    assert (status, calls) == (0, []), err
    manifest = yaml.safe_load(out[out.index("apiVersion") :])
    assert faults(manifest) == []
    (jobs,) = manifest["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    assert (jobs["replicas"], job["parallelism"], job["completions"]) == (slices, hosts, hosts)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": node,
        "cloud.google.com/gke-tpu-topology": topology,
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert container["command"][:3] == ["python", "-m", "inset_jax.train"]
    assert ("--config.mesh.dcn=2" in container["command"]) == (slices == 2)
    names = {entry["name"] for entry in container["env"]}
    assert ("LIBTPU_INIT_ARGS" in names) == (chip in ("v5p", "v6e", "tpu7x"))
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1]


def test_gke_run_is_watched_to_its_end(cloud):
    answers = [
        {"match": "get jobset", "out": "NotFound", "times": 1},
        {"match": "get jobset", "out": " restarts=0", "times": 1},
        {"match": "get jobset", "out": " restarts=1", "times": 1},
        {"match": "get jobset", "out": "Completed restarts=1"},
    ]
    status, _, err, calls = cloud("gke.sh", answers)
    assert status == 0, err
    (apply,) = [call for call in calls if " apply " in call["words"]]
    assert yaml.safe_load(apply["given"])["kind"] == "JobSet"
    assert "restarts=1" in err
    assert having(calls[-1:], "delete jobset/inset")


def test_gke_begins_again_after_a_start_that_has_ended(cloud):
    answers = [
        {"match": "get jobset", "out": "Failed restarts=0", "times": 1},
        {"match": "get jobset", "out": "Completed restarts=0"},
    ]
    status, _, err, calls = cloud("gke.sh", answers)
    assert status == 0, err
    kinds = [w for c in calls for w in (" delete ", " apply ") if w in c["words"]]
    assert kinds == [" delete ", " apply ", " delete "]
    assert "an earlier start has ended" in err


def test_gke_says_what_pods_wait_for(cloud):
    answers = [
        {"match": "get jobset", "out": " restarts=0 ready=0", "times": 2},
        {"match": "get jobset", "out": "Completed restarts=0"},
        {"match": "get pods", "out": "ImagePullBackOff ContainerCreating ImagePullBackOff"},
    ]
    status, _, err, _ = cloud("gke.sh", answers)
    assert status == 0, err
    assert "ready=0 waiting: ContainerCreating ImagePullBackOff\n" in err


def test_gke_waits_for_machines_and_not_for_the_end_of_training(cloud):
    patience = {"WAIT": "2", "PAUSE": "1"}
    answers = [
        {"match": "get jobset", "out": " restarts=0 ready=0", "times": 1},
        {"match": "get jobset", "out": " restarts=0 ready=1", "times": 4},
        {"match": "get jobset", "out": "Completed restarts=0 ready=0"},
    ]
    status, _, err, _ = cloud("gke.sh", answers, **patience)
    assert status == 0, err
    status, _, err, calls = cloud("gke.sh", [answers[0] | {"times": 99}], **patience)
    assert status == 1 and "inset: no machines for 2 s; it stays" in err
    assert not having(calls, "delete")


def test_failed_gke_run_shows_its_last_lines(cloud):
    answers = [
        {"match": "get jobset", "out": "NotFound", "times": 1},
        {"match": "get jobset", "out": "Failed restarts=0"},
        {"match": "logs", "out": "error: process 3: not finite\n"},
    ]
    status, out, err, calls = cloud("gke.sh", answers)
    assert status == 1
    assert "not finite" in out
    assert "inset failed" in err
    assert not having(calls, "delete")


def test_cluster_without_jobset_is_told_so(cloud):
    missing = {"match": "apply", "status": 1, "err": 'no matches for kind "JobSet"\n'}
    status, _, err, _ = cloud("gke.sh", [missing])
    assert status == 1
    assert "the cluster has no JobSet: install it" in err


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
