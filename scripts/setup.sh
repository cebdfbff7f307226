#!/bin/bash
# Installs what weir is built and tested with, only what is missing, without a question.
#   scripts/setup.sh [lint]     with "lint" also clang-format, clang-tidy and the TypeScript compiler
# Without root and with something missing: prints the one line to run and exits 2.
set -euo pipefail

packages=(
  g++ cmake ninja-build make ccache python3
  libboost-context-dev libboost-dev libfmt-dev libcli11-dev libtomlplusplus-dev nlohmann-json3-dev
  libxxhash-dev zlib1g-dev liblz4-dev libzstd-dev liburing-dev libjemalloc-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  esbuild chromium chromium-driver python3-selenium
  sqlite3 stress-ng
)
if [[ "${1:-}" == lint ]]; then
  packages+=(clang-format clang-tidy node-typescript)
fi
command -v npm >/dev/null || packages+=(npm)

# What npm alone has: axe-core, for the accessibility test. Where it cannot be had that test is skipped and says so.
axe() {
  local explore
  explore="$(dirname "$0")/../tests/explore"
  [[ -f "$explore/node_modules/axe-core/axe.min.js" ]] ||
    npm ci --prefix "$explore" --ignore-scripts --no-audit --no-fund --silent || echo "setup: npm could not install axe-core" >&2
}

if ! command -v dpkg-query >/dev/null; then
  echo "setup: this is not a Debian system; weir needs what Debian 12 calls: ${packages[*]}" >&2
  exit 2
fi

declare -A installed=()
while read -r name state; do
  [[ "$state" == installed ]] && installed[$name]=1
done < <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null || true)

missing=()
for package in "${packages[@]}"; do
  [[ -n "${installed[$package]:-}" ]] || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
  axe
  exit 0
fi

if [[ $(id -u) -ne 0 ]]; then
  echo "sudo apt-get install -y ${missing[*]}"
  exit 2
fi

export DEBIAN_FRONTEND=noninteractive
echo "setup: installing ${missing[*]}"
# A machine that has just started may be updating itself: its lock is waited for. A changed configuration file stays as it is.
install() {
  apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "${missing[@]}" </dev/null
}
# The package lists may be absent or stale on a fresh machine.
if ! log=$(install 2>&1); then
  if ! log=$(apt-get update -q 2>&1 </dev/null && install 2>&1); then
    echo "$log" | tail -20 >&2
    echo "setup: could not install ${missing[*]}" >&2
    exit 2
  fi
fi
axe
