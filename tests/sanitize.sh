#!/usr/bin/env bash
# The tests of the kernels under AddressSanitizer, with every instruction set that this machine has: reads and writes outside
# of what is theirs, by whatever pointer. Debug assertions are on, so the standard library checks what unsafe code promises it.
#
# The sanitizer's runtime comes with the toolchain; the option is not stable yet, and RUSTC_BOOTSTRAP lets a stable compiler
# take it. The standard library itself is not instrumented. Takes about 8 minutes on 2 cores, so CI does not run it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address"
# Of its own, or every other build would start from the beginning.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/sanitize"
cargo test -p mbqc-kernels --target "$target" --lib --tests \
    --config 'profile.dev.package.mbqc-kernels.opt-level=1' --config 'profile.dev.package.mbqc-kernels.debug=false' "$@"
