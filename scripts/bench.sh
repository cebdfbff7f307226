#!/bin/bash
# Runs every benchmark of a build directory: scripts/bench.sh [BUILD_DIR] [options for each]
set -euo pipefail
build=${1:-build/release}
shift || true
shopt -s nullglob
benches=("$build"/bench/bench_*)
if [[ ${#benches[@]} -eq 0 ]]; then
  echo "no benchmark in $build/bench; build them with: cmake --build $build --target bench" >&2
  exit 1
fi
for bench in "${benches[@]}"; do
  echo "== ${bench##*/}"
  "$bench" "$@"
done
