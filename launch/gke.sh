#!/usr/bin/env bash
# Trains on GKE: one JobSet, a replicated job a slice, a pod a host. The cluster begins it again when
# spot nodes are taken away.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
launch/gke.sh [--dry-run] [--no-preflight]
    settings: launch/settings.sh (NAME, NAMESPACE, CHIP, TOPOLOGY, IMAGE, ...)

kubectl must point at a cluster with TPU node pools of this chip and topology and with JobSet.
Exit status: 0 trained; 1 an error.
TEXT
}

quoted() { # as a YAML string
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

manifest() {
    local line word spot=""
    if ((SPOT)); then
        spot='
                cloud.google.com/gke-spot: "true"'
    fi
    cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  namespace: $NAMESPACE
  annotations:
    # every slice's pods on one node pool, and alone there
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $RESUBMIT
    rules:
      # an error of the run would come again; lost machines (75, 143, evictions) restart all pods
      - name: errors
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [1]
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
            spec:
              restartPolicy: Never
              # SIGTERM saves: time for one checkpoint
              terminationGracePeriodSeconds: $GRACE
              serviceAccountName: $SERVICE_ACCOUNT
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $NODE
                cloud.google.com/gke-tpu-topology: $TOPOLOGY$spot
              tolerations:
                - {key: google.com/tpu, operator: Exists, effect: NoSchedule}
                - {key: cloud.google.com/gke-spot, operator: Exists, effect: NoSchedule}
              containers:
                - name: train
                  image: $(quoted "$IMAGE")
                  command:
YAML
    for word in "${COMMAND[@]}" --coordinator=auto; do
        printf '                    - %s\n' "$(quoted "$word")"
    done
    printf '                  env:\n'
    while IFS= read -r line; do
        printf '                    - name: %s\n                      value: %s\n' \
            "${line%%=*}" "$(quoted "${line#*=}")"
    done < <(chip_environment)
    cat <<YAML
                  resources:
                    requests: {google.com/tpu: $CHIPS_PER_HOST}
                    limits: {google.com/tpu: $CHIPS_PER_HOST}
                  volumeMounts:
                    - {name: run, mountPath: /mnt/run}
                    - {name: shm, mountPath: /dev/shm}
              volumes:
                - name: run
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: $(quoted "$BUCKET")
                      mountOptions: implicit-dirs
                      # on the host's network the driver is the service account only if told so
                      hostNetworkPodKSA: "true"
                # the loader's worker processes share memory
                - name: shm
                  emptyDir: {medium: Memory}
YAML
}

LOOK='{.status.terminalState} restarts={.status.restarts}'
LOOK+=' ready={.status.replicatedJobsStatus[*].ready}'
look() { "${KUBECTL[@]}" get "jobset/$NAME" "-o=jsonpath=$LOOK" 2>&1 || true; }

# Prints what pods wait for that no node will give them, such as ImagePullBackOff.
reasons() {
    local found
    found=$("${KUBECTL[@]}" get pods "--selector=jobset.sigs.k8s.io/jobset-name=$NAME" \
        '-o=jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}' 2>/dev/null) || true
    [[ -z "$found" ]] || printf ' waiting: %s' "$(tr ' ' '\n' <<<"$found" | sort -u | paste -sd ' ' -)"
}

begin "$@"
need IMAGE BUCKET
train_command
KUBECTL=(kubectl "--namespace=$NAMESPACE")
preflight
if ((DRY_RUN)); then
    run "${KUBECTL[@]}" apply -f -
    manifest
    exit 0
fi
case "$(look)" in
    Completed* | Failed*)
        say "$NAME: an earlier start has ended; its JobSet cannot begin again and is removed"
        "${KUBECTL[@]}" delete "jobset/$NAME"
        ;;
esac
if ! told=$(manifest | "${KUBECTL[@]}" apply -f - 2>&1); then
    [[ "$told" != *"no matches for kind"* ]] || fail "the cluster has no JobSet: install it. $told"
    fail "$told"
fi
say "$told"
before=""
seen=$SECONDS # when all of a slice's pods were last ready
while true; do
    now=$(look)
    if [[ "$now" == *ready=* && "$now" != *ready=*[1-9]* && "$now" != [CF]* ]]; then
        now+=$(reasons)
    fi
    [[ "$now" == "$before" ]] || say "$NAME: $now"
    before=$now
    case "$now" in
        Completed*)
            ((KEEP)) || "${KUBECTL[@]}" delete "jobset/$NAME"
            exit 0
            ;;
        Failed*)
            "${KUBECTL[@]}" logs "--selector=jobset.sigs.k8s.io/jobset-name=$NAME" \
                --container=train --tail=20 --prefix || true
            fail "$NAME failed; its pods are kept: kubectl describe jobset/$NAME"
            ;;
        *NotFound*) fail "$NAME was removed by somebody" ;;
    esac
    [[ "$now" != *ready=*[1-9]* ]] || seen=$SECONDS # at work
    ((WAIT == 0 || SECONDS - seen < WAIT)) || fail "$NAME: no machines for $WAIT s; it stays"
    sleep "$PAUSE"
done
