# Sourced by the scripts in ci/, by itself or through another file of this folder: strict mode, the repository root, messages.
# shellcheck shell=bash
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
work=${DDU_CI_WORK:-$root/build/ci}
mkdir -p "$work"

# Quiet where all is well.
quietly() {
  local log
  log=$(mktemp)
  "$@" >"$log" 2>&1 || {
    cat "$log"
    return 1
  }
  rm -f "$log"
}
say() { printf '\n=== %s\n' "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
