# What the recipes share: sourced by run_demo.sh and run_further.sh, with RUN, SEED, THREADS and NICE set.
# shellcheck shell=bash disable=SC2154

PYTHON=${PYTHON:-python}
# Keeps glibc from handing large tensors' memory back to the system at every step: some 10 % of the time.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456

# A signal goes on to the stage, which saves and ends, and after it the recipe does. With -m a stage has a process group
# of its own, and so hears Ctrl-C from here alone, once for each time.
set -m
child='' signal=''
forward() {  # name and number of a signal
    signal=$2
    [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || true
}
trap 'forward INT 2' INT
trap 'forward TERM 15' TERM HUP

stage() {  # module and its own arguments
    echo "== $* $(date +%H:%M)"
    [ -z "$signal" ] || exit $((128 + signal))
    nice -n "${NICE:-0}" "$PYTHON" -m "training.$1" "${@:2}" --run "$RUN" &
    child=$!
    [ -z "$signal" ] || kill "$child" 2>/dev/null || true  # it came in between
    local status=0
    until wait "$child"; do  # which a signal interrupts
        status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    child=''
    [ -z "$signal" ] || exit $((128 + signal))
    return "$status"
}

computing() {  # the same, of a stage that computes with torch
    stage "$@" --threads "$THREADS"
}

training() {  # the same, of a stage that draws random numbers as well
    computing "$@" --seed "$SEED"
}
