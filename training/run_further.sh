#!/usr/bin/env bash
# From the demo's own weights to better ones. Each part goes on where it stopped when it is started again.
#
#     training/run_further.sh encoder      # clips, then encoder and Turbo decoder together, latents
#     training/run_further.sh networks     # text encoder, base network, distilled network, driven
#     training/run_further.sh decoders     # both video decoders for the encoder as it is now; pairs of two sizes
#     training/run_further.sh rest         # super-resolution, files, scores
#
# Once encoder is done, networks and decoders can run at the same time, with THREADS=1 each. Seconds a step are those of
# one quiet core with AMX: encoder 1.1, base 2.0, distilled 5 (3 while it warms up), Turbo decoder 1.3.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${RUN:=second}"           # folder below training/runs, or an absolute path
: "${SEED:=0}"
: "${THREADS:=1}"
: "${CLIPS:=1200}"
: "${LARGE_CLIPS:=90}"
: "${PAIRS:=220}"
: "${VIDEO_STEPS:=600}"
: "${TEXT_STEPS:=500}"
: "${BASE_STEPS:=5000}"
: "${DISTILLED_STEPS:=2400}"
: "${DRIVEN_STEPS:=1200}"
: "${TURBO_STEPS:=1500}"
: "${WAN_STEPS:=600}"
: "${SR_STEPS:=6000}"

export OMP_NUM_THREADS=$THREADS
# shellcheck disable=SC2034 # of stage.sh
NICE=19
# shellcheck source=training/stage.sh
source training/stage.sh

case "${1:?encoder, networks, decoders or rest}" in
encoder)
    stage data --count "$CLIPS"
    stage data --large --count "$LARGE_CLIPS"
    training start_from_demo --stages video_vae audio_vae wan_decoder text
    training train_video_vae --steps "$VIDEO_STEPS" --save-every 150
    computing latents
    ;;
networks)
    training train_network text --steps "$TEXT_STEPS" --rate 5e-4 --save-every 250
    training start_from_demo --stages base super_resolution
    training train_network base --steps "$BASE_STEPS" --rate 6e-4 --save-every 150
    training train_distilled --steps "$DISTILLED_STEPS" --warm-up 400 --rate 2e-4 --save-every 100
    training train_driven --steps "$DRIVEN_STEPS" --save-every 300
    ;;
decoders)
    training train_video_vae --turbo --steps "$TURBO_STEPS" --rate 3e-4 --save-every 150
    training train_video_vae --wan-decoder --steps "$WAN_STEPS" --rate 3e-4 --save-every 150
    computing train_super_resolution pairs --count "$PAIRS"
    ;;
rest)
    training train_super_resolution train --steps "$SR_STEPS" --rate 1e-3 --save-every 500
    computing export
    computing evaluate --card --clips 12
    ;;
*)
    echo "Unknown part $1: encoder, networks, decoders or rest." >&2
    exit 2
    ;;
esac
