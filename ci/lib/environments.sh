# Sourced by what runs Python: the release of torch that tests run beside, and virtual environments.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/compile.sh" # pip compiles the package

# Asked for by exact version, since a range takes the newest release and its CUDA libraries.
# shellcheck disable=SC2034
torch=${DDU_TORCH:-torch==2.13.0}

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off
export MPLBACKEND=Agg

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
  mkdir -p "$work/venv"
  (
    flock 9 # .ci/run has two steps at a time
    if [ ! -e "$base/complete" ]; then
      fresh_venv "$(basename "$base")" "$release"
      touch "$base/complete"
    fi
  ) 9>"$base.lock"
  rm -rf "$dir"
  cp -al "$base" "$dir"
  grep -lI "$base" "$dir"/bin/* "$dir/pyvenv.cfg" | xargs sed -i "s|$base|$dir|g"
  activate "$dir"
  if [ $# -gt 2 ]; then python -m pip install -qq "${@:3}"; fi
}

# made_wheel: prints the CPU's wheel that ci/packaging made; nothing where it made none.
made_wheel() {
  local wheel
  for wheel in "$work"/dist/*.whl; do
    if [ -e "$wheel" ] && [[ $wheel != *+* ]]; then echo "$wheel"; fi
  done
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
