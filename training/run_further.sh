#!/usr/bin/env bash
# From the demo's own weights to better ones. Each part goes on where it stopped when it is started again.
#
#     training/run_further.sh encoder      # clips, then encoder and Turbo decoder together
#     training/run_further.sh networks     # latents, text encoder, base network, distilled network, driven
#     training/run_further.sh decoders     # both video decoders for the encoder as it is now; pairs of two sizes
#     training/run_further.sh rest         # super-resolution, files, scores
#
# networks and decoders can run at the same time, with THREADS=1 each. Seconds a step are those of one quiet core with
# AMX: encoder 1.1, base 2.0, distilled 5 (3 while it warms up), Turbo decoder 1.3.
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

PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=$THREADS
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456

stage() {  # module and its own arguments
    echo "== $* $(date +%H:%M)"
    nice -n 19 "$PYTHON" -m "training.$1" "${@:2}" --run "$RUN" --seed "$SEED" --threads "$THREADS"
}

case "${1:?encoder, networks, decoders or rest}" in
encoder)
    stage data --count "$CLIPS"
    stage data --large --count "$LARGE_CLIPS"
    stage start_from_demo --stages video_vae audio_vae wan_decoder text
    stage train_video_vae --steps "$VIDEO_STEPS" --save-every 150
    ;;
networks)
    stage latents
    stage train_network text --steps "$TEXT_STEPS" --rate 5e-4 --save-every 250
    stage start_from_demo --stages base super_resolution
    stage train_network base --steps "$BASE_STEPS" --rate 6e-4 --save-every 150
    stage train_distilled --steps "$DISTILLED_STEPS" --warm-up 400 --rate 2e-4 --save-every 100
    stage train_driven --steps "$DRIVEN_STEPS" --save-every 300
    ;;
decoders)
    stage train_video_vae --turbo --steps "$TURBO_STEPS" --rate 3e-4 --save-every 150
    stage train_video_vae --wan-decoder --steps "$WAN_STEPS" --rate 3e-4 --save-every 150
    stage train_super_resolution pairs --count "$PAIRS"
    ;;
rest)
    stage train_super_resolution train --steps "$SR_STEPS" --rate 1e-3 --save-every 500
    stage export
    stage evaluate --card --clips 12
    ;;
*)
    echo "Unknown part $1: encoder, networks, decoders or rest." >&2
    exit 2
    ;;
esac
