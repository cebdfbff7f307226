#!/bin/bash
# Runs every benchmark of a build directory: scripts/bench.sh [BUILD_DIR]. What is compared with the host's kernel in a memory
# cgroup is run by its driver, bench/run_NAME_bench.py.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/release}
shopt -s nullglob
benches=("$build"/bench/bench_*)
if [[ ${#benches[@]} -eq 0 ]]; then
  echo "no benchmark in $build/bench; build them with: cmake --build $build --target bench" >&2
  exit 1
fi
for bench in "${benches[@]}"; do
  name=${bench##*/bench_}
  echo "== bench_$name"
  driver=bench/run_${name}_bench.py
  if [[ -f $driver ]]; then python3 "$driver" "$bench"; else "$bench"; fi
done
