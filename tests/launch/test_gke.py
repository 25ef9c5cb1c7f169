"""Launching on GKE, against a stand-in for kubectl, and what is asked of it against a schema."""

import pytest
import yaml

from tests.launch.calls import having
from tests.launch.jobset import faults


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
