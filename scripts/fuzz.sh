#!/bin/bash
# Fuzzes what reads untrusted bytes: scripts/fuzz.sh [SECONDS] [TARGET...], by default 30 minutes for
# each target, two at a time. Wants a nightly compiler and cargo-fuzz (cargo install cargo-fuzz).
# Finds go to fuzz/artifacts, and the run fails; the corpus of fuzz/corpus grows by what reaches new
# code, as few and as small files as do. The last lines count executions.
cd "$(dirname "$0")/.." || exit 1
seconds=${1:-1800}
shift
targets=("$@")
[ ${#targets[@]} = 0 ] && targets=(gguf decode tokenizer chat)
build=fuzz/target/x86_64-unknown-linux-gnu/release
logs=fuzz/target/logs
mkdir -p "$logs"

# Inputs stay below 16 KiB: a head with everything in it needs 4. No allocation above 256 MiB, 120 s
# for an input; the targets themselves hold memory to tighter bounds.
limits=(-timeout=120 -rss_limit_mb=2048 -malloc_limit_mb=256 -max_len=16384)

fuzz() {
    local target=$1 corpus=fuzz/target/corpus/$1
    mkdir -p "$corpus" "fuzz/artifacts/$target"
    nice -n 10 "$build/$target" "$corpus" "fuzz/corpus/$target" "${limits[@]}" \
        -artifact_prefix="fuzz/artifacts/$target/" -max_total_time="$seconds" \
        -print_final_stats=1 >"$logs/$target.log" 2>&1 || return 1
    local small=fuzz/target/small/$target
    rm -rf "$small" && mkdir -p "$small"
    nice -n 10 "$build/$target" -merge=1 "${limits[@]}" "$small" "fuzz/corpus/$target" "$corpus" \
        >"$logs/$target.merge.log" 2>&1 || return 1
    # Of what reaches new code only the small files: the corpus is kept with the sources.
    rm -rf "fuzz/corpus/$target" && mkdir -p "fuzz/corpus/$target"
    find "$small" -type f -printf '%s %p\n' | sort -n | awk '(sum += $1) <= 200000 { print $2 }' |
        xargs -r cp -t "fuzz/corpus/$target"
}

for target in "${targets[@]}"; do
    cargo +nightly fuzz build --fuzz-dir fuzz "$target" || exit 1
done
failed=()
while [ ${#targets[@]} -gt 0 ]; do
    pids=()
    for target in "${targets[@]:0:2}"; do
        fuzz "$target" &
        pids+=("$!:$target")
    done
    for pid in "${pids[@]}"; do
        wait "${pid%%:*}" || failed+=("${pid#*:}")
    done
    targets=("${targets[@]:2}")
done
for log in "$logs"/*.log; do
    case $log in *.merge.log) continue ;; esac
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    covered=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)
    echo "$(basename "$log" .log): ${executed:-no} executions, ${covered:-cov: none}"
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]} (see $logs)" && exit 1; }
