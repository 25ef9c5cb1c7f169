"""What JobSet v1alpha2, and Kubernetes in the jobs and pods of one, take of the fields we use.

Written from the fields' names, types and values in the API's reference; a field that is not listed
is refused, as a cluster would drop it. `broken_rules` has the rules between fields that a cluster,
JobSet and GKE hold these to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import jsonschema


def matching(pattern: str, most: int = 63) -> dict:
    """A text that matches as a whole."""
    return {"type": "string", "pattern": f"^({pattern})$", "maxLength": most}


def map_of(values: dict) -> dict:
    """An object with any names that labels, annotations and resources may have."""
    return {"type": "object", "propertyNames": KEY, "additionalProperties": values}


NAME = matching("[a-z0-9]([-a-z0-9]*[a-z0-9])?")
OWN_NAME = matching("[a-z]([-a-z0-9]*[a-z0-9])?")  # of which names of services are made
DOMAIN = matching(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", 253)
KEY = matching(r"([a-z0-9][-.a-z0-9]*/)?[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?", 317)
VARIABLE = matching(r"[-._A-Za-z][-._A-Za-z0-9]*", 253)
PATH = matching("/[^:]*", 4096)
IMAGE = matching(r"[a-z0-9][-._:/@A-Za-z0-9]*", 500)
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS = map_of({"type": "string"})
LABELS = map_of(matching("([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?"))
WORDS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
QUANTITY = matching(r"[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+|m|k|[MGTPE]|[KMGTPE]i)?")
AMOUNTS = map_of({"anyOf": [COUNT, QUANTITY]})


def one_of(*values: str) -> dict:
    return {"enum": list(values)}


def fields(required: str = "", **known) -> dict:
    """An object with no other fields than these."""
    return {
        "type": "object",
        "properties": known,
        "required": required.split(),
        "additionalProperties": False,
    }


def some(item: dict, most: int = 100) -> dict:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most}


METADATA = fields(name=OWN_NAME, namespace=NAME, annotations=TEXTS, labels=LABELS)
CONTAINER = fields(
    "name image",
    name=NAME,
    image=IMAGE,
    command=WORDS,
    args=WORDS,
    env=some(fields("name", name=VARIABLE, value={"type": "string"})),
    resources=fields(requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts=some(fields("name mountPath", name=NAME, mountPath=PATH)),
)
VOLUME = fields(
    "name",
    name=NAME,
    csi=fields("driver", driver=DOMAIN, readOnly={"type": "boolean"}, volumeAttributes=TEXTS),
    emptyDir=fields(medium=one_of("", "Memory"), sizeLimit=QUANTITY),
) | {"minProperties": 2, "maxProperties": 2}  # its name and one source
POD = fields(
    "containers",
    restartPolicy=one_of("Never", "OnFailure"),  # of a job
    terminationGracePeriodSeconds=COUNT,
    serviceAccountName=DOMAIN,
    hostNetwork={"type": "boolean"},
    dnsPolicy=one_of("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"),
    nodeSelector=LABELS,
    tolerations=some(
        fields(
            key=KEY,
            operator=one_of("Exists", "Equal"),
            value={"type": "string"},
            effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
        )
    ),
    containers=some(CONTAINER),
    volumes=some(VOLUME),
)
EXIT_CODES = fields(
    "operator values",
    containerName=NAME,
    operator=one_of("In", "NotIn"),
    values=some({"type": "integer"}, 255) | {"uniqueItems": True},
)
JOB = fields(
    "template",
    parallelism=COUNT,
    completions=COUNT,
    completionMode=one_of("Indexed", "NonIndexed"),
    backoffLimit=COUNT,
    podFailurePolicy=fields(
        "rules",
        rules=some(
            fields(
                "action onExitCodes",
                action=one_of("FailJob", "FailIndex", "Ignore", "Count"),
                onExitCodes=EXIT_CODES,
            ),
            20,
        ),
    ),
    template=fields("spec", metadata=METADATA, spec=POD),
)
FAILURE_RULE = fields(
    "name action",
    name=NAME,
    action=one_of("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    onJobFailureReasons=some(
        one_of(
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "FailedIndexes",
            "MaxFailedIndexesExceeded",
            "PodFailurePolicy",
        )
    ),
    targetReplicatedJobs=some(NAME),
)
JOBSET = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=METADATA,
    spec=fields(
        "replicatedJobs",
        failurePolicy=fields(maxRestarts=COUNT, rules=some(FAILURE_RULE, 20)),
        replicatedJobs=some(
            fields(
                "name template",
                name=NAME,
                replicas=COUNT,
                template=fields("spec", metadata=METADATA, spec=JOB),
            )
        ),
    ),
)


def faults(manifest) -> list[str]:
    """What is wrong with a manifest, one line a fault."""
    found = list(jsonschema.Draft202012Validator(JOBSET).iter_errors(manifest))
    if found:
        return [f"{'/'.join(map(str, one.absolute_path))}: {one.message}" for one in found]
    return list(broken_rules(manifest))


def broken_rules(manifest) -> Iterator[str]:
    """Yields what no single field shows, for a manifest that fits the schema."""
    for replicated in manifest["spec"]["replicatedJobs"]:
        job, template = replicated["template"]["spec"], replicated["template"]["spec"]["template"]
        pod = template["spec"]
        if job.get("completionMode") == "Indexed" and "completions" not in job:
            yield "completionMode Indexed needs completions"
        last = replicated.get("replicas", 1) - 1, job.get("completions", 1) - 1
        name = "-".join(map(str, (manifest["metadata"]["name"], replicated["name"], *last)))
        if len(f"{name}-abcde") > 63:
            yield f"names of pods would be longer than 63 characters: {name}-abcde"
        names = [container["name"] for container in pod["containers"]]
        for rule in job.get("podFailurePolicy", {}).get("rules", ()):
            if pod.get("restartPolicy") != "Never":
                yield "podFailurePolicy needs restartPolicy Never"
            codes = rule["onExitCodes"]
            if codes.get("containerName", names[0]) not in names:
                yield f"onExitCodes: no container {codes['containerName']}"
            if codes["operator"] == "In" and 0 in codes["values"]:
                yield "onExitCodes: 0 is no failure"
        for toleration in pod.get("tolerations", ()):
            if toleration.get("operator") == "Exists" and toleration.get("value"):
                yield f"toleration of {toleration.get('key')}: Exists takes no value"
        yield from _broken_rules_of_volumes(pod, template.get("metadata", {}))
        for container in pod["containers"]:
            yield from _broken_rules_of_resources(container)
            yield from _twice("variable", [one["name"] for one in container.get("env", ())])
        yield from _twice("container", names)


def _broken_rules_of_volumes(pod, metadata) -> Iterator[str]:
    known = [volume["name"] for volume in pod.get("volumes", ())]
    yield from _twice("volume", known)
    for container in pod["containers"]:
        mounts = container.get("volumeMounts", ())
        yield from _twice("mountPath", [mount["mountPath"] for mount in mounts])
        for mount in mounts:
            if mount["name"] not in known:
                yield f"container {container['name']}: no volume {mount['name']!r}"
    drivers = {volume.get("csi", {}).get("driver", "") for volume in pod.get("volumes", ())}
    asked = metadata.get("annotations", {}).get("gke-gcsfuse/volumes") == "true"
    if any(driver.startswith("gcsfuse.") for driver in drivers) and not asked:
        yield 'a gcsfuse volume needs the annotation gke-gcsfuse/volumes: "true"'


def _broken_rules_of_resources(container) -> Iterator[str]:
    """Devices are whole, and no more is used than asked for."""
    limits, requests = (container.get("resources", {}).get(n, {}) for n in ("limits", "requests"))
    for name in limits.keys() | requests.keys():
        values = {str(side.get(name, limits.get(name))) for side in (limits, requests)}
        if "/" in name and (len(values) > 1 or not all(map(str.isdigit, values))):
            yield f"{name}: limits and requests are one whole number, found {sorted(values)}"


def _twice(what: str, names: list[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{what} {name} is there {count} times"
