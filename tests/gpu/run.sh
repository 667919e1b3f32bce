#!/usr/bin/env bash
# Everything that a machine with a GPU is asked for, in one command, under 10 minutes. Neither a network nor Rust is needed there, only
# NVIDIA's driver; with the CUDA toolkit its compute-sanitizer runs too, with torch its kernels are timed beside ours.
#
#   on the machine with Rust:  cargo build --release --example gpu_check && strip target/release/examples/gpu_check
#   on the one with the GPU:   tests/gpu/run.sh target/release/examples/gpu_check OUT [SECONDS]
#
# PEERS (in the environment) names a folder of what is timed besides torch's kernels: wheels (humming-kernels), and the sources of Marlin and QServe in
# `marlin` and `qserve`.
#
# OUT gets log.txt and all.tar.gz, both after every part: what was printed, and receipts (<unit>.<device>.json, which belong into
# tests/gpu/receipts) with peers.json. The parts that matter most come first; one that takes too long is cut off and said to be, and
# SECONDS (570) is the end of all. Ends with status 1 if a part failed.
set -uo pipefail
check=$(realpath "${1:?which gpu_check?}")
out=${2:?where to?}
end=$((SECONDS + ${3:-570}))
here=$(dirname "${BASH_SOURCE[0]}")
mkdir -p "$out"
made=$(mktemp -d)
failed=0
: >"$out/log.txt"

# cuBLASLt where the linker does not look: the toolkit's, or what torch came with.
if ! ldconfig -p 2>/dev/null | grep libcublasLt.so >/dev/null; then
    packages=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null || true)
    for folder in /usr/local/cuda/lib64 "$packages"/nvidia/*/lib; do
        if compgen -G "$folder/libcublasLt.so*" >/dev/null; then
            export LD_LIBRARY_PATH="$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
            break
        fi
    done
fi

say() { echo "$@" | tee -a "$out/log.txt"; }

# part NAME SECONDS COMMAND...
part() {
    local name=$1 seconds=$2 begin=$SECONDS status
    shift 2
    ((seconds > end - SECONDS)) && seconds=$((end - SECONDS))
    if ((seconds < 5)); then
        say "== $name: no time is left"
        failed=1
        return
    fi
    say "== $name"
    timeout --kill-after=3 "$seconds" "$@" 2>&1 | tee -a "$out/log.txt"
    status=${PIPESTATUS[0]}
    case $status in
        0) say "== $name: done in $((SECONDS - begin)) s" ;;
        124 | 137) say "== $name: cut off after $seconds s" ;;
        *) say "== $name: FAILED with status $status" ;;
    esac
    [[ $status == 0 ]] || failed=1
    cp "$out/log.txt" "$made/log.txt"
    tar czf "$out/all.new" -C "$made" --exclude=./packages . && mv "$out/all.new" "$out/all.tar.gz"
}

state() {
    say "kernel $(uname -sr), libraries from ${LD_LIBRARY_PATH:-where the linker looks}"
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu --format=csv | tee -a "$out/log.txt"
}

state
part check 180 "$check" --only check --out "$made"
part bench 150 "$check" --only bench --out "$made"
torch=0
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    torch=1
    part peers 90 python3 "$here/peers.py" --ours "$made" --out "$made/peers.json"
else
    say "== peers: there is no torch that sees a GPU here"
fi
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [[ -n $sanitizer ]]; then
    for tool in memcheck racecheck initcheck synccheck; do
        # Calls that must fail are among the checks; cuBLASLt's kernels are not ours to judge.
        part "sanitizer $tool" 60 "$sanitizer" --tool "$tool" --report-api-errors no --error-exitcode 9 \
            "$check" --only check --small --runs 2 --without-blas
    done
else
    say "== sanitizer: there is no compute-sanitizer here"
fi
if [[ $torch == 1 && -n ${PEERS:-} ]]; then
    for wheel in "$PEERS"/*.whl; do
        [[ -e $wheel ]] || continue
        python3 -m pip install --quiet --no-index --no-deps --target "$made/packages" "$wheel" 2>&1 | tee -a "$out/log.txt"
        export PYTHONPATH="$made/packages${PYTHONPATH:+:$PYTHONPATH}"
    done
    for peer in "humming w3" "Marlin w4" "humming w4" "QServe w4a8"; do
        part "$peer" 75 python3 "$here/peers.py" --peer "$peer" --ours "$made" --sources "$PEERS" --out "$made/${peer// /-}.json"
    done
fi
profiler=$(command -v ncu || ls /usr/local/cuda/bin/ncu 2>/dev/null || true)
if [[ -n $profiler ]]; then
    # In the order of the table that the program prints: what comes from memory is what a product has to read, or something is wrong.
    part bytes 60 "$profiler" --clock-control none --kernel-name regex:a16_f16 \
        --metrics dram__bytes_read.sum,gpu__time_duration.sum,sm__inst_executed.sum "$check" --only alone
else
    say "== bytes: there is no ncu here"
fi
part tune 90 "$check" --only tune
state
exit "$failed"
