#!/bin/bash
# make demo: a real program that is killed in a small memory cgroup, and lives there under weir run; then one of its swap-ins, step by step.
#   scripts/demo.sh [BUILD]     BUILD: build/release
# Exit status: 0 unless something failed that this host can do.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 scripts/demo.py "${1:-build/release}"
