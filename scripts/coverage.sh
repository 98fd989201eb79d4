#!/bin/bash
# Lines that the tests run: scripts/coverage.sh [NEXTEST ARGUMENTS], by default all tests but those that
# run the same kernels on whole models at length: unoptimised, with counters in them, they take hours.
# Kernel bodies count too, since the emulator runs them. Wants cargo-llvm-cov (cargo install cargo-llvm-cov)
# and LLVM's tools of the compiler's own LLVM version: rustup's component llvm-tools, or Debian's
# package llvm-22. Leaves target/coverage.txt, and a page per file below target/llvm-cov/html.
cd "$(dirname "$0")/.." || exit 1
. ./scripts/setup.sh tests
version=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
tools=/usr/lib/llvm-$version/bin
if [ -x "$tools/llvm-cov" ]; then
    export LLVM_COV=$tools/llvm-cov LLVM_PROFDATA=$tools/llvm-profdata
fi
# With counters in them, the kernels take the optimiser longer than unoptimised ones take to run.
export CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_BUILD_OVERRIDE_OPT_LEVEL=0
cargo llvm-cov clean --profraw-only
[ $# = 0 ] && set -- -E 'not (binary(/^(model|reference)$/) | test(a_thousand_generations))'
# A test that fails is not this script's to report.
cargo llvm-cov nextest --no-report --no-fail-fast "$@" || echo "some tests failed"
# The build's own script is neither the host's nor the kernels' code.
ignore='(/build/|build\.rs|/tests/)'
cargo llvm-cov report --html --ignore-filename-regex "$ignore" >/dev/null
cargo llvm-cov report --ignore-filename-regex "$ignore" >target/coverage.txt
# File, lines, missed, share.
awk '/\.rs|^TOTAL/ { printf "%-48s %6s lines %5s missed %8s\n", $1, $8, $9, $10 }' target/coverage.txt
