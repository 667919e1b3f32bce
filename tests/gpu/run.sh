#!/usr/bin/env bash
# Everything that a machine with a GPU is asked for, in one command, under 10 minutes. Neither a network nor Rust is needed there, only
# NVIDIA's driver; with the CUDA toolkit its compute-sanitizer runs too, with torch its kernels are timed beside ours.
#
#   on the machine with Rust:  cargo build --release --example gpu_check && strip target/release/examples/gpu_check
#   on the one with the GPU:   tests/gpu/run.sh target/release/examples/gpu_check OUT
#
# OUT gets check.txt, sanitizer.txt, bench.txt, peers.txt, tune.txt as they are done, and receipts (<unit>.json), which belong into
# tests/gpu/receipts. A part that takes too long is cut off and said to be; the others go on. Ends with status 1 if a part failed.
set -uo pipefail
check=$(realpath "${1:?which gpu_check?}")
out=${2:?where to?}
here=$(dirname "${BASH_SOURCE[0]}")
mkdir -p "$out"
failed=0

# part NAME SECONDS COMMAND...: its output goes to NAME.txt too.
part() {
    local name=$1 seconds=$2 begin=$SECONDS status
    shift 2
    timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee -a "$out/$name.txt"
    status=${PIPESTATUS[0]}
    case $status in
        0) echo "== $name: done in $((SECONDS - begin)) s" ;;
        124 | 137) echo "== $name: cut off after $seconds s" && failed=1 ;;
        *) echo "== $name: FAILED with status $status" && failed=1 ;;
    esac | tee -a "$out/$name.txt"
    [[ $status == 0 ]] || failed=1
}

for name in check sanitizer bench peers tune; do : >"$out/$name.txt"; done
command -v nvidia-smi >/dev/null &&
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw --format=csv | tee "$out/device.txt"

part check 150 "$check" --only check --out "$out"

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [[ -n $sanitizer ]]; then
    for tool in memcheck racecheck initcheck synccheck; do
        echo "-- $tool" | tee -a "$out/sanitizer.txt"
        part sanitizer 60 "$sanitizer" --tool "$tool" --error-exitcode 9 "$check" --only check --small --runs 2
    done
else
    echo "== sanitizer: there is no compute-sanitizer here" | tee -a "$out/sanitizer.txt"
fi

part bench 100 "$check" --only bench --out "$out/times"

if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    part peers 100 python3 "$here/peers.py" --ours "$out/times" --out "$out/peers.json"
else
    echo "== peers: there is no torch that sees a GPU here" | tee -a "$out/peers.txt"
fi

part tune 90 "$check" --only tune
command -v nvidia-smi >/dev/null &&
    nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv,noheader | tee -a "$out/device.txt"
exit "$failed"
