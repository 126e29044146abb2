#!/usr/bin/env bash
# All that is measured on a GPU, for one H200 in less than 8 minutes:
#
#   bash benchmarks/gpu.sh [--device cpu] [WHEELS] > benchmarks/results/gpu.txt
#
# It installs nothing but the wheels in the folder WHEELS, if one is given, and those into a folder of its own. torch
# must be there. A part that fails or takes too long is named, and the others go on. With --device cpu the same paths
# run in small, which tests them and measures nothing.
set -u
cd "$(dirname "$0")/.." || exit

device=cuda
if [ "${1:-}" = --device ]; then device=$2; shift 2; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
if [ $# -gt 0 ]; then
    python -m pip install --quiet --no-index --no-deps --target "$work/site" "$1"/*.whl || exit
    PYTHONPATH="$PWD:$work/site"
fi

# The times of all parts add up to 470 s.
failed=0
part() {
    local most=$(($1 * patience)) begin=$SECONDS
    shift
    echo
    echo "\$ $*"
    timeout --kill-after=5 "$most" "$@" 2>&1 || { echo "failed or took longer than $most s: $*"; failed=1; }
    echo "[$((SECONDS - begin)) s]"
}

if [ "$device" = cpu ]; then
    patience=10
    sizes=1,2 rounds=1 seeds=1 sweep=4x2 size=(--width 8 --depth 4 --backend eager) models=cnn
    short=(depth=4 width=8 steps=2)
    part 60 python -m pytest -q -p no:cacheprovider -m 'not slow' tests/probe/test_captured.py
else
    patience=1
    sizes=1,4,16,64,256 rounds=20 seeds=16 sweep=64x50 size=() models=mlp512,transformer
    short=()
    part 120 python -m pytest -q -p no:cacheprovider -m cuda
fi
part 90 python benchmarks/probe_modes.py --device "$device" "${size[@]}" "$rounds"
if [ "$device" != cpu ]; then
    part 60 python benchmarks/probe_overhead.py --device "$device" --models "$models" 2
fi
part 30 python benchmarks/stack.py --device "$device" --sizes "$sizes" 3
part 70 python benchmarks/sweep.py --device "$device" --settings "$sweep" --seeds "$seeds" --launchers ensemble
part 60 python benchmarks/sweep.py --device "$device" --settings "$sweep" --seeds 1 --launchers basic,ensemble
part 40 python -m gradexp.run "device=$device" "${short[@]}" "hydra.run.dir=$work/run"
exit $failed
