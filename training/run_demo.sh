#!/usr/bin/env bash
# From nothing to demo weights: clips, autoencoders, latents, networks, files, scores.
#
#     training/run_demo.sh                       # training/runs/demo, then look at its curves.png and samples/
#
# Started again it goes on where it stopped. Every number below can be given in the environment instead, as
# run_tiny.sh does. Minutes are for two cores with AMX, from seconds a step measured there; the steps are those that
# went into the shipped weights by the minutes of older scripts. This script has not been run in its full length.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${RUN:=demo}"             # folder below training/runs, or an absolute path
: "${SEED:=0}"
: "${THREADS:=2}"            # the same number on every start, or sums differ in their last bits
: "${CLIPS:=1600}"           # three shapes, 2 to 6 s; some 5 MB each with latents
: "${LARGE_CLIPS:=120}"      # of twice the size
: "${PAIRS:=220}"            # of both sizes of one scene, for super-resolution
: "${SETS:=}"                # such as --sets square_2s portrait_4s instead of all
: "${LARGE_SETS:=}"
: "${PROJECTION:=150}"       # windows that the video autoencoder's first latent is fitted to
: "${VIDEO_STEPS:=27000}"
: "${AUDIO_STEPS:=5700}"
: "${TEXT_STEPS:=1200}"
: "${BASE_STEPS:=11000}"
: "${WARM_UP:=400}"          # steps of the distilled network on the guided velocity
: "${DISTILLED_STEPS:=4400}" # with these; then one in four is the distilled network's, three are the fake's
: "${DRIVEN_STEPS:=1200}"     # of the distilled network, with the sound given
: "${SR_STEPS:=12000}"
: "${TURBO_STEPS:=2400}"
: "${AUDIO_DECODER_STEPS:=1400}"
: "${WAN_STEPS:=900}"
: "${BATCH:=8}"              # of the networks
: "${SAVE_EVERY:=500}"
: "${EVALUATE:=--clips 16}"

# shellcheck source=training/stage.sh
source training/stage.sh

# 1. Clips. 3 minutes.
# shellcheck disable=SC2086
stage data --count "$CLIPS" $SETS
# shellcheck disable=SC2086
stage data --large --count "$LARGE_CLIPS" $LARGE_SETS

# 2. Autoencoders. 150 and 40 minutes.
training train_video_vae --steps "$VIDEO_STEPS" --projection-windows "$PROJECTION" --save-every "$SAVE_EVERY"
training train_audio_vae --steps "$AUDIO_STEPS" --save-every "$SAVE_EVERY"

# 3. Latents; quick start of the text encoder; base network. 8, 2 and 85 minutes.
computing latents
training train_network text --steps "$TEXT_STEPS"
training train_network base --steps "$BASE_STEPS" --batch "$BATCH" --save-every "$SAVE_EVERY"

# 4. Distilled network, and further with given sound; super-resolution. 83, 20, 8 and 56 minutes.
training train_distilled --steps "$DISTILLED_STEPS" --warm-up "$WARM_UP" --batch "$BATCH" --save-every "$SAVE_EVERY"
training train_driven --steps "$DRIVEN_STEPS" --batch "$BATCH" --save-every "$SAVE_EVERY"
# shellcheck disable=SC2086
computing train_super_resolution pairs --count "$PAIRS" $LARGE_SETS
training train_super_resolution train --steps "$SR_STEPS" --save-every "$SAVE_EVERY"

# 5. The decoders once more, for the encoders as they are now. 12, 10 and 6 minutes.
training train_video_vae --turbo --steps "$TURBO_STEPS" --rate 3e-4 --save-every "$SAVE_EVERY"
training train_audio_vae --decoder --steps "$AUDIO_DECODER_STEPS" --save-every "$SAVE_EVERY"
training train_video_vae --wan-decoder --steps "$WAN_STEPS" --rate 3e-4 --save-every "$SAVE_EVERY"

# 6. Files in the released layouts, in the run's folder export/; scores into its CARD.md. 30 minutes.
computing export
# shellcheck disable=SC2086
computing evaluate --card $EVALUATE
