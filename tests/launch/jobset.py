"""What JobSet v1alpha2, and Kubernetes in the jobs and pods of one, take of the fields we use.

Written from the fields' names, types and values in the API's reference; a field that is not listed
is refused, as a cluster would drop it. The rules between fields are the cluster's alone.
"""

from __future__ import annotations

import jsonschema

NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
WORDS = {"type": "array", "items": {"type": "string"}}
AMOUNTS = {"type": "object", "additionalProperties": {"type": ["integer", "string"]}}


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


METADATA = fields(name=NAME, namespace=NAME, annotations=TEXTS, labels=TEXTS)
CONTAINER = fields(
    "name image",
    name=NAME,
    image=TEXT,
    command=WORDS,
    args=WORDS,
    env=some(fields("name", name=TEXT, value={"type": "string"})),
    resources=fields(requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts=some(fields("name mountPath", name=NAME, mountPath=TEXT)),
)
VOLUME = fields(
    "name",
    name=NAME,
    csi=fields("driver", driver=TEXT, readOnly={"type": "boolean"}, volumeAttributes=TEXTS),
    emptyDir=fields(medium=one_of("", "Memory"), sizeLimit=TEXT),
)
POD = fields(
    "containers",
    restartPolicy=one_of("Never", "OnFailure"),  # of a job
    terminationGracePeriodSeconds=COUNT,
    serviceAccountName=NAME,
    hostNetwork={"type": "boolean"},
    dnsPolicy=one_of("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"),
    nodeSelector=TEXTS,
    tolerations=some(
        fields(
            key=TEXT,
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
    values=some({"type": "integer"}, 255),
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
                "action",
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
    found = jsonschema.Draft202012Validator(JOBSET).iter_errors(manifest)
    return [f"{'/'.join(map(str, one.absolute_path))}: {one.message}" for one in found]
