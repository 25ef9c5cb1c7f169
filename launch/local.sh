#!/usr/bin/env bash
# Several processes of one run on this machine, as on several hosts: for tests and rehearsals, and
# for machines with several accelerators of which each process gets some.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'TEXT'
launch/local.sh [--dry-run]

Settings, beside those of launch/settings.sh:
  PROCESSES   how many (default 2)
  DEVICES     CPU devices that each pretends to have (default: what JAX finds)
  PORT        of process 0 (default 29400)
  LOST_AFTER  seconds without a sign of life of a process (default 60)

SIGTERM and SIGINT are passed on, as SIGTERM: the run saves and leaves. Exit status: that of the first process
that did not end with 0.
TEXT
}

SPOT=0 # nobody takes this machine away
begin "$@"
: "${PROCESSES:=2}" "${DEVICES:=}" "${PORT:=29400}" "${LOST_AFTER:=60}"
train_command
environment=()
if [[ -n "$DEVICES" ]]; then
    # XLA runs one thread a core: with more devices than threads, collectives would wait for ever
    environment=(JAX_PLATFORMS=cpu "NPROC=$((2 * DEVICES))"
        "XLA_FLAGS=${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES")
fi

pids=()
# shellcheck disable=SC2329 # by the traps
pass_on() {
    local pid
    for pid in "${pids[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
# SIGINT too as SIGTERM: what a script starts beside itself is made to ignore SIGINT
trap 'pass_on TERM' TERM INT
for ((number = 0; number < PROCESSES; number++)); do
    words=(env ${environment[@]+"${environment[@]}"} "${COMMAND[@]}" "--lost_after=$LOST_AFTER"
        "--coordinator=127.0.0.1:$PORT" "--processes=$PROCESSES" "--process=$number")
    if ((DRY_RUN)); then
        run "${words[@]}"
    else
        "${words[@]}" &
        pids+=($!)
    fi
done

worst=0
for number in "${!pids[@]}"; do
    status=0
    # a signal ends `wait` early: until the process itself has ended
    while true; do
        wait "${pids[$number]}" && status=0 || status=$?
        kill -0 "${pids[$number]}" 2>/dev/null || break
    done
    if ((status)); then
        say "process $number of $PROCESSES: status $status"
        ((worst)) || worst=$status
    fi
done
exit "$worst"
