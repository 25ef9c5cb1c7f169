# shellcheck shell=bash disable=SC2034,SC2153
# Facts of each chip kind, and the environment that its runs get, each with its reason.

# Sets ACCELERATOR (gcloud), RUNTIME, NODE (GKE's label), CHIPS_PER_HOST, CHIPS and HOSTS of a slice.
chip_facts() {
    local runtime
    CHIPS=$((${TOPOLOGY//x/*}))
    CHIPS_PER_HOST=4
    case "$CHIP" in
        v5e) ACCELERATOR="v5litepod-$CHIPS" runtime=v2-alpha-tpuv5-lite NODE=tpu-v5-lite-podslice ;;
        # named by TensorCores, two a chip
        v5p) ACCELERATOR="v5p-$((2 * CHIPS))" runtime=v2-alpha-tpuv5 NODE=tpu-v5p-slice ;;
        v6e) ACCELERATOR="v6e-$CHIPS" runtime=v2-alpha-tpuv6e NODE=tpu-v6e-slice ;;
        tpu7x) ACCELERATOR="tpu7x-$((2 * CHIPS))" runtime="" NODE=tpu7x ;;
        *) fail "CHIP=$CHIP: expected v5e, v5p, v6e or tpu7x" ;;
    esac
    RUNTIME="${RUNTIME:-$runtime}"
    if ((CHIPS < 4)) || [[ "$CHIP:$CHIPS" == v5e:8 || "$CHIP:$CHIPS" == v6e:8 ]]; then
        CHIPS_PER_HOST=$CHIPS # these slices are one host
    fi
    HOSTS=$((CHIPS / CHIPS_PER_HOST))
}

# Prints NAME=VALUE lines: the environment of every process of the run.
chip_environment() {
    local args=()
    case "$CHIP" in
        v5p | v6e)
            # Without these every large collective is synchronous. With them XLA puts matrix work
            # inside the layers' all-gathers: 98.7% of their bytes on 256 v6e, 99.7% on 64 v5p, by
            # compiling ahead of time (docs/preflight.md; never timed on a chip).
            args+=(--xla_tpu_enable_async_collective_fusion=true)
            args+=(--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true)
            args+=(--xla_tpu_enable_async_collective_fusion_multiple_steps=true)
            args+=(--xla_tpu_overlap_compute_collective_tc=true)
            args+=(--xla_enable_async_all_gather=true)
            ;;
        tpu7x)
            # libtpu 0.0.42 gives lookups of rows to the SparseCores and fails to compile one of them.
            # Layers' gathers are asynchronous there without a flag.
            args+=(--xla_tpu_offload_gather_to_sparsecore=false)
            ;;
        v5e) ;; # nothing: what the flags of v5p and v6e do there has not been looked at
    esac
    if ((${#args[@]})); then
        echo "LIBTPU_INIT_ARGS=${args[*]}"
    fi
    # An accelerator that cannot be used is an error, never a run on the host's CPU.
    echo "JAX_PLATFORMS=tpu,cpu"
    # A run that begins again does not compile again: minutes for the 7B.
    echo "JAX_COMPILATION_CACHE_DIR=$WORKDIR/compiled"
    # Lines appear when they are printed: what a killed process said last is in the log.
    echo "PYTHONUNBUFFERED=1"
}
