# Sourced by the scripts in ci/: strict mode, the repository root, virtual environments, a copy of the tree.
# shellcheck shell=bash
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
work=${DDU_CI_WORK:-$root/build/ci}
mkdir -p "$work"

# What the tests run beside. Asked for by exact version, since a range takes the newest release and its CUDA libraries.
# shellcheck disable=SC2034
torch=${DDU_TORCH:-torch==2.13.0}

# A CUDA 12.4 toolkit: where the caller says, or where ci/install-cuda12 puts it.
cuda12=${DDU_CUDA12:-$work/cuda-12.4}

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off
export MPLBACKEND=Agg
CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(getconf _NPROCESSORS_ONLN)}
export CMAKE_BUILD_PARALLEL_LEVEL
if command -v ccache >/dev/null; then
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_CUDA_COMPILER_LAUNCHER=ccache
fi

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

# Prints a Python that this package supports and that can make virtual environments.
find_python() {
  local python windows=
  if [ "${OS:-}" = Windows_NT ]; then windows=python; fi # an environment's only name for its Python there
  for python in ${DDU_PYTHON:-$windows python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
    if "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      echo "$python"
      return
    fi
  done
  die "no Python >= 3.10 with venv among: ${DDU_PYTHON:-python3 python3.1x}"
}

# activate DIR: the virtual environment there.
activate() {
  local bin=bin
  if [ ! -d "$1/bin" ]; then bin=Scripts; fi # Windows
  # shellcheck disable=SC1090
  source "$1/$bin/activate"
}

# fresh_venv NAME [REQUIREMENT...]: makes an environment anew and activates it.
fresh_venv() {
  local dir=$work/venv/$1 python
  shift
  python=$(find_python)
  rm -rf "$dir"
  "$python" -m venv "$dir"
  activate "$dir"
  if [ $# -gt 0 ]; then python -m pip install -qq "$@"; fi
}

# torch_venv NAME RELEASE [REQUIREMENT...]: the same with a release of torch, as torch==2.13.0, which is unpacked once and linked
# from then on: it takes most of the time. What is installed beside it replaces files and leaves those of others as they are.
torch_venv() {
  local dir=$work/venv/$1 release=$2 base
  base=$work/venv/$("$(find_python)" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-$release
  if [ "$(uname)" != Linux ]; then
    fresh_venv "$@"
    return
  fi
  if [ ! -e "$base/complete" ]; then
    fresh_venv "$(basename "$base")" "$release"
    deactivate
    touch "$base/complete"
  fi
  rm -rf "$dir"
  cp -al "$base" "$dir"
  grep -lI "$base" "$dir"/bin/* "$dir/pyvenv.cfg" | xargs sed -i "s|$base|$dir|g"
  activate "$dir"
  if [ $# -gt 2 ]; then python -m pip install -qq "${@:3}"; fi
}

# tool_venv NAME: activates an environment with ci/requirements/NAME.txt, made anew only when that file changes.
tool_venv() {
  local dir=$work/venv/$1 requirements=$root/ci/requirements/$1.txt
  if ! cmp -s "$requirements" "$dir/requirements.txt"; then
    fresh_venv "$1" -r "$requirements"
    cp "$requirements" "$dir/requirements.txt"
  fi
  activate "$dir"
}

# nvcc_of TAG: prints the nvcc here whose version is that of the tag's toolkit in ci/matrix.toml; fails if there is none.
nvcc_of() {
  local toolkit nvcc
  toolkit=$("$root/ci/matrix" get "$1" toolkit)
  for nvcc in "${CUDACXX:-nvcc}" nvcc "$cuda12/bin/nvcc" "/usr/local/cuda-$toolkit/bin/nvcc"; do
    if "$nvcc" --version 2>/dev/null | grep -q "release $toolkit,"; then
      command -v "$nvcc"
      return
    fi
  done
  return 1
}

# matrix_environment TAG [PLATFORM]: exports what ci/matrix says that a build needs set.
matrix_environment() {
  local settings name value
  settings=$("$root/ci/matrix" environment "$@")
  while IFS='=' read -r name value; do export "$name=$value"; done <<<"$settings"
}

# build_as TAG: exports what a build of that tag needs set, here and without a container.
build_as() {
  if [ "$1" != cpu ]; then
    CUDACXX=$(nvcc_of "$1") || die "no nvcc of CUDA $("$root/ci/matrix" get "$1" toolkit) here, in CUDACXX or in DDU_CUDA12"
    export CUDACXX
  fi
  matrix_environment "$1"
}

# The time that archives record: the commit's, so that builds of one commit are equal to the byte.
source_date_epoch() {
  SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
  export SOURCE_DATE_EPOCH
}

# copy_tree DIR: the files that git knows or would add, as they are now.
copy_tree() {
  rm -rf "$1"
  mkdir -p "$1"
  git ls-files -z --cached --others --exclude-standard --deduplicate |
    while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done |
    tar -c --null -T - | tar -x -C "$1"
}

