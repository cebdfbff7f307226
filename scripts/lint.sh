#!/bin/bash
# clang-format, clang-tidy and the TypeScript compiler; exits non-zero when one of them has something to say.
#   scripts/lint.sh             all files that git knows
#   scripts/lint.sh --changed   those that differ from the last common commit with origin/main (or from HEAD)
#   scripts/lint.sh FILE...     these
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/debug

if [[ "${1:-}" == --changed ]]; then
  base=$(git merge-base HEAD origin/main 2>/dev/null || git rev-parse HEAD)
  mapfile -t files < <({ git diff --name-only --diff-filter=d "$base"; git ls-files --others --exclude-standard; } | sort -u)
elif [[ $# -gt 0 ]]; then
  files=("$@")
else
  mapfile -t files < <(git ls-files)
fi

format=() tidy=() script=()
for file in "${files[@]}"; do
  case $file in
    *.cpp) format+=("$file"); tidy+=("$file") ;;
    *.hpp | *.h | *.c) format+=("$file") ;;
    *.ts) script+=("$file") ;;
  esac
done
[[ ${#format[@]} -eq 0 && ${#script[@]} -eq 0 ]] && { echo "lint: no C++ or TypeScript file"; exit 0; }

status=0
if [[ ${#script[@]} -gt 0 ]]; then
  mkdir -p "$build/explorer"
  python3 src/explore/build.py "$build/explorer/page.html" && tsc -p src/explore/web || status=1
fi
[[ ${#format[@]} -eq 0 ]] || clang-format --dry-run -Werror "${format[@]}" || status=1
if [[ ${#tidy[@]} -gt 0 ]]; then
  # Only what the build knows how to compile.
  mapfile -t known < <(python3 - "$build/compile_commands.json" "${tidy[@]}" <<'PY'
import json, os, sys
known = {os.path.realpath(entry["file"]) for entry in json.load(open(sys.argv[1]))}
print("\n".join(f for f in sys.argv[2:] if os.path.realpath(f) in known))
PY
  )
  printf '%s\n' "${known[@]}" | xargs -r -P2 -n4 clang-tidy -p "$build" --quiet || status=1
fi
[[ $status -eq 0 ]] && echo "lint: clean ($((${#format[@]} + ${#script[@]})) files)"
exit $status
