#!/usr/bin/env bash
# Trains on Cloud TPU VMs: asks for machines (queued resources), starts every host over ssh, waits,
# and begins again when spot machines are taken away.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
launch/queued.sh [--dry-run] [--no-preflight]
    settings: launch/settings.sh (NAME, PROJECT, ZONE, CHIP, IMAGE, ...)

Exit status: 0 trained; 1 an error that another attempt would meet too; 75 the attempts are used up.
TEXT
}

LOST=75
begin "$@"
need PROJECT ZONE IMAGE BUCKET RUNTIME
train_command
LOGS="${LOGS:-launch-logs/$NAME}"
QUEUE=(gcloud compute tpus queued-resources)
WHERE=("--project=$PROJECT" "--zone=$ZONE")
NODES=("$NAME")
if ((SLICES > 1)); then
    NODES=()
    for ((slice = 0; slice < SLICES; slice++)); do NODES+=("$NAME-$slice"); done
fi

# Prints what has become of the request: GONE where there is none, UNKNOWN where nobody could say.
state() {
    local told errors
    errors=$(mktemp)
    if told=$("${QUEUE[@]}" describe "$NAME" "${WHERE[@]}" '--format=value(state.state)' 2>"$errors"); then
        echo "$told"
    elif grep -qiE 'NOT_FOUND|not found' "$errors"; then
        echo GONE
    else
        head -n 1 "$errors" >&2
        echo UNKNOWN
    fi
    rm -f "$errors"
}

# The same, asked until somebody can say: what follows removes machines, or asks for others.
known_state() {
    local now began=$SECONDS
    while now=$(state) && [[ "$now" == UNKNOWN ]] && ((SECONDS - began < WAIT)); do sleep "$PAUSE"; done
    echo "$now"
}

# Asks for machines until the request is taken. Full zones are asked again; other refusals end.
create() {
    local spec=("$NAME" "${WHERE[@]}" "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME")
    local told began=$SECONDS
    if ((SLICES > 1)); then
        spec+=("--node-count=$SLICES" "--node-prefix=$NAME")
    else
        spec+=("--node-id=$NAME")
    fi
    if ((SPOT)); then
        spec+=(--spot)
    fi
    if ((DRY_RUN)); then
        run "${QUEUE[@]}" create "${spec[@]}"
        return
    fi
    while true; do
        if told=$("${QUEUE[@]}" create "${spec[@]}" 2>&1); then
            return
        fi
        case "$told" in
            *ALREADY_EXISTS* | *"already exists"*) return ;;
            *uota*) fail "$told" ;; # quotas do not pass by waiting
            *RESOURCE_EXHAUSTED* | *"no more capacity"* | *stockout* | *UNAVAILABLE*)
                ((SECONDS - began < WAIT)) || fail "no machines within $WAIT s: $told"
                say "no capacity for $ACCELERATOR in $ZONE; asking again in $PAUSE s"
                sleep "$PAUSE"
                ;;
            *) fail "$told" ;;
        esac
    done
}

remove() {
    if ((!DRY_RUN)) && [[ "$(known_state)" == GONE ]]; then
        return
    fi
    run "${QUEUE[@]}" delete "$NAME" "${WHERE[@]}" --force --quiet || say "$NAME could not be removed"
}

# Waits until the machines are there; returns 1 when they will not come by this request.
wait_active() {
    local now before="" began=$SECONDS
    if ((DRY_RUN)); then
        run "${QUEUE[@]}" describe "$NAME" "${WHERE[@]}" '--format=value(state.state)'
        return
    fi
    while true; do
        now=$(state)
        [[ "$now" == "$before" ]] || say "$NAME: $now"
        before=$now
        case "$now" in
            ACTIVE) return 0 ;;
            FAILED | SUSPENDING | SUSPENDED | DELETING | GONE) return 1 ;;
        esac
        ((SECONDS - began < WAIT)) || fail "$NAME: $now for $WAIT s; it stays in the queue"
        sleep "$PAUSE"
    done
}

# Prints the command line of one host, quoted for its shell.
remote() {
    # --init: a process that is number 1 itself ignores SIGTERM until it has a handler of its own, and
    # one that waits for the other hosts has none yet
    local line words=(sudo docker run --rm --init "--stop-timeout=$GRACE" --privileged --net=host
        "--name=$NAME" -v /mnt/run:/mnt/run)
    while IFS= read -r line; do words+=(-e "$line"); done < <(chip_environment)
    words+=("$IMAGE" "${COMMAND[@]}" --coordinator=auto)
    # a container of an attempt whose connection broke may be there still: it saves, then makes room
    printf '{ %s; } || exit 1; ' "$SETUP"
    printf '{ sudo docker stop -t %q %q; sudo docker rm -f %q; } >/dev/null 2>&1; exec' \
        "$GRACE" "$NAME" "$NAME"
    printf ' %q' "${words[@]}"
}

# on NODE WORKER COMMAND: over ssh; a host that refuses (255), or whose docker cannot start the image
# (125), is tried again. Not so one whose connection broke later: by then the others miss it, and all
# have to begin again.
on() {
    local status attempt began
    for ((attempt = 1; ; attempt++)); do
        status=0 began=$SECONDS
        run gcloud compute tpus tpu-vm ssh "$1" "${WHERE[@]}" "--worker=$2" "--command=$3" || status=$?
        if ((status == 125 && SECONDS - began > 120)); then
            return "$LOST" # it ran: docker itself has ended since, as on a machine that goes
        fi
        if ((status != 255 && status != 125 || attempt >= SSH_ATTEMPTS || SECONDS - began > 120)); then
            return "$status"
        fi
        # an ended machine refuses as well: then there is nothing to wait for
        case "$(state)" in ACTIVE | UNKNOWN) ;; *) return "$status" ;; esac
        say "$1, host $2: $(refusal "$status") (attempt $attempt of $SSH_ATTEMPTS)"
        sleep "$PAUSE"
    done
}

# Says what a status of ssh or docker, which is none of the run, means.
refusal() {
    case "$1" in
        255) echo "ssh refused" ;;
        125) echo "docker could not start $IMAGE" ;;
        *) echo "$IMAGE has no command to run" ;; # 126, 127
    esac
}

# Starts all hosts, each with a log of its own, and waits for them. Prints one line a host that did
# not end well; sets WORST: 0, 1 (an error of the run) or 75 (machines were lost).
fan_out() {
    local node host status line pids=() names=() command
    command=$(remote)
    if ((!DRY_RUN)); then
        mkdir -p "$LOGS"
        rm -rf "$LOGS/stopping"
    fi
    for node in "${NODES[@]}"; do
        for ((host = 0; host < HOSTS; host++)); do
            names+=("$node, host $host")
            if ((DRY_RUN)); then
                on "$node" "$host" "$command"
                continue
            fi
            # shellcheck disable=SC2094 # both append
            { on "$node" "$host" "$command" || leave "$?" "$node" "$host"; } \
                >>"$LOGS/$node-$host.log" 2> >(tee -a "$LOGS/$node-$host.log" >&2) &
            pids+=($!)
        done
    done
    WORST=0
    for line in "${!pids[@]}"; do
        status=0
        wait "${pids[$line]}" || status=$?
        if ((status)); then
            say "${names[$line]}: status $status; its log: $LOGS/"
            case "$status" in
                1 | 125 | 126 | 127) WORST=1 ;; # new machines would meet it again
                *) ((WORST)) || WORST=$LOST ;;
            esac
        fi
    done
}

# leave STATUS NODE HOST: a host that never came keeps all others waiting for it: they are stopped, so
# that all begin again. Only the first that leaves stops them: a second SIGTERM would end a process that
# saves.
leave() {
    local node host stop stops=()
    case "$1" in 255 | 125 | 126 | 127) ;; *) exit "$1" ;; esac
    if mkdir "$LOGS/stopping" 2>/dev/null && [[ "$(known_state)" == ACTIVE ]]; then
        say "$2, host $3: $(refusal "$1"); the other hosts are stopped"
        for node in "${NODES[@]}"; do
            for ((host = 0; host < HOSTS; host++)); do
                if [[ "$node-$host" != "$2-$3" ]]; then
                    gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" "--worker=$host" \
                        "--command=sudo docker stop -t $GRACE $NAME" &
                    stops+=($!)
                fi
            done
        done
        # by number: without one, it would wait for the `tee` of its own log
        for stop in ${stops[@]+"${stops[@]}"}; do wait "$stop" || true; done
    fi
    exit "$1"
}

# Ends the waiting, not the run: whoever stops this script may want either.
# shellcheck disable=SC2329 # by the trap
interrupted() {
    local pid
    for pid in ${pids[@]+"${pids[@]}"}; do kill "$pid" 2>/dev/null || true; done # of `fan_out`
    say "$NAME: not waited for any more; what was asked for stays, runs, and is paid for. Then:"
    say "  the same command goes on from a checkpoint; to give the machines back:"
    say "  ${QUEUE[*]} delete $NAME ${WHERE[*]} --force"
    exit 130
}

preflight
((DRY_RUN)) || trap interrupted INT TERM
for ((attempt = 0; attempt <= RESUBMIT; attempt++)); do
    if ((attempt)); then
        say "attempt $((attempt + 1)) of $((RESUBMIT + 1))"
        sleep "$PAUSE"
    fi
    create
    if ! wait_active; then
        say "$NAME: the request ended without machines; asking anew"
        remove
        continue
    fi
    fan_out
    if ((DRY_RUN)); then
        remove
        exit 0
    fi
    now=$(known_state)
    [[ "$now" != UNKNOWN ]] || fail "$NAME: nobody could say for $WAIT s what has become of it"
    if ((WORST && SPOT)) && [[ "$now" != ACTIVE ]]; then
        say "$NAME: taken away ($now); the run goes on from its last checkpoint on new machines"
        remove
    elif ((WORST != LOST)); then
        ((KEEP)) || remove
        exit "$WORST"
    fi
done
((KEEP)) || remove
say "$NAME: not done after $((RESUBMIT + 1)) attempts"
exit "$LOST"
