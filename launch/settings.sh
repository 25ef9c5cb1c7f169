# shellcheck shell=bash disable=SC2034
# What a run on pods is, for all ways of launching. Every value can be set in the environment
# instead; launch/*.sh read this file, or the one that SETTINGS names.

# the run
: "${NAME:=inset}"                        # of resources and jobs: a-z, 0-9, -
: "${CONFIG:=configs/inset_7b.py}"        # in the image
: "${FLAGS:=}"                            # more flags of inset_jax.train, split at spaces
: "${PACKS:=}"                            # data.packs, such as 256: one a chip; "": as in CONFIG
: "${BUCKET:=}"                           # mounted at /mnt/run on every host; see docs/pods.md
: "${WORKDIR:=/mnt/run/$NAME}"            # a folder that all hosts share

# the machines
: "${CHIP:=v6e}"                          # v5e, v5p, v6e, tpu7x
: "${TOPOLOGY:=16x16}"                    # chips of one slice along each axis
: "${SLICES:=1}"                          # more than one: mesh.dcn is set to it
: "${SPOT:=1}"                            # 1: cheap, may be taken away at any time
: "${SAVE_MINUTES:=20}"                   # run.save_minutes of spot runs; FLAGS may say otherwise
: "${RESUBMIT:=50}"                       # how often a run that lost its machines begins again
: "${PROJECT:=}"
: "${ZONE:=}"
: "${RUNTIME:=}"                          # of TPU VMs; "" takes the one of launch/chips.sh

# what every TPU VM does before the run; must leave the bucket at /mnt/run
: "${SETUP:=sudo mkdir -p /mnt/run && { mountpoint -q /mnt/run ||
    sudo gcsfuse --implicit-dirs -o allow_other $BUCKET /mnt/run; }}"

# the image, from launch/Dockerfile
: "${IMAGE:=}"

# GKE
: "${NAMESPACE:=default}"
: "${SERVICE_ACCOUNT:=default}"           # may read and write the bucket

# patience
: "${PAUSE:=30}"                          # seconds between two looks or attempts
: "${WAIT:=86400}"                        # seconds to wait for machines
: "${SSH_ATTEMPTS:=5}"                    # a host
: "${GRACE:=600}"                         # seconds between SIGTERM and SIGKILL: one checkpoint
: "${KEEP:=0}"                            # 1: leave the machines when the run has ended
