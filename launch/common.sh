# shellcheck shell=bash
# What the launch scripts share. Sourced.

LAUNCH="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
DRY_RUN=0
PREFLIGHT=1

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Reads the flags that all scripts have and the settings; `usage` is the script's own.
begin() {
    local argument
    for argument in "$@"; do
        case "$argument" in
            --dry-run) DRY_RUN=1 ;;
            --no-preflight) PREFLIGHT=0 ;;
            --help | -h) usage && exit 0 ;;
            *) fail "$argument: expected --dry-run, --no-preflight or --help; the rest are settings" ;;
        esac
    done
    # shellcheck source=launch/settings.sh
    source "${SETTINGS:-$LAUNCH/settings.sh}"
    # shellcheck source=launch/chips.sh
    source "$LAUNCH/chips.sh"
    [[ "$NAME" =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "NAME=$NAME: expected a-z, 0-9 and -"
    [[ "$TOPOLOGY" =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || fail "TOPOLOGY=$TOPOLOGY: expected 16x16 or 4x4x4"
    [[ "$SLICES" =~ ^[1-9][0-9]*$ ]] || fail "SLICES=$SLICES: expected a number of slices"
    [[ "$WORKDIR" != *://* ]] || fail "WORKDIR=$WORKDIR: a mounted folder; see docs/pods.md"
    chip_facts
}

# Fails unless each of these settings has a value.
need() {
    local name
    for name in "$@"; do
        [[ -n "${!name}" ]] || fail "$name is empty: set it in launch/settings.sh or the environment"
    done
}

# Runs a command that changes something; with --dry-run prints it.
run() {
    if ((DRY_RUN)); then
        printf '+'
        printf ' %q' "$@"
        printf '\n'
    else
        "$@"
    fi
}

# Sets COMMAND: what every process runs.
train_command() {
    local more
    read -r -d '' -a more <<<"$FLAGS" || true # to its end, whatever lines it has
    COMMAND=(python -m inset_jax.train "--config=$CONFIG" "--workdir=$WORKDIR")
    if [[ -n "$PACKS" ]]; then
        COMMAND+=("--config.data.packs=$PACKS")
    fi
    if ((SLICES > 1)); then
        COMMAND+=("--config.mesh.dcn=$SLICES")
    fi
    if ((SPOT)); then
        COMMAND+=("--config.run.save_minutes=$SAVE_MINUTES")
    fi
    COMMAND+=(${more[@]+"${more[@]}"})
}

# Compiles the step for these very chips before machines are asked for; fails if it does not fit.
preflight() {
    local word words=() slice="$CHIP:$TOPOLOGY"
    ((PREFLIGHT)) || return 0
    if ((SLICES > 1)); then
        slice="${SLICES}x $slice"
    fi
    for word in "${COMMAND[@]}"; do
        # the fields of the config; what else the run takes is not for the compile
        [[ "$word" != --config* ]] || words+=("$word")
    done
    (cd "$LAUNCH/.." && run python -m tools.preflight "${words[@]}" "--slice=$slice" \
        --exact "--out=launch-logs/$NAME/preflight") ||
        fail "preflight: see above; --no-preflight asks for machines all the same"
}
