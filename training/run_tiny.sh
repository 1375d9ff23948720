#!/usr/bin/env bash
# All of run_demo.sh in a few minutes, with a few steps of everything: whether the recipe runs, not what it makes.
#
#     training/run_tiny.sh                       # training/runs/tiny; or RUN=/somewhere training/run_tiny.sh
set -euo pipefail

export RUN=${RUN:-tiny} CLIPS=9 LARGE_CLIPS=6 PAIRS=6 PROJECTION=6 BATCH=2 SAVE_EVERY=100
export VIDEO_STEPS=4 AUDIO_STEPS=3 TEXT_STEPS=3 BASE_STEPS=3 DISTILLED_STEPS=7 WARM_UP=2 DRIVEN_STEPS=3 SR_STEPS=3
export TURBO_STEPS=2 AUDIO_DECODER_STEPS=2 WAN_STEPS=2
export SETS="--sets square_2s portrait_2s landscape_3s" LARGE_SETS="--sets square_1s portrait_1s"
export EVALUATE="--clips 2 --rows data reconstruction"
exec "$(dirname "$0")/run_demo.sh"
