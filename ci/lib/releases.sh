# Sourced by what makes wheels and source distributions: what ci/matrix asks a build to have set, and the time of archives.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/environments.sh"

# nvcc_of TAG: prints the nvcc here whose version is that of the tag's toolkit in ci/matrix.toml; fails if there is none.
nvcc_of() {
  local toolkit nvcc
  toolkit=$("$root/ci/matrix" get "$1" toolkit)
  for nvcc in "${CUDACXX:-nvcc}" nvcc "/usr/local/cuda-$toolkit/bin/nvcc"; do
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
    CUDACXX=$(nvcc_of "$1") || die "no nvcc of CUDA $("$root/ci/matrix" get "$1" toolkit) here or in CUDACXX"
    export CUDACXX
  fi
  matrix_environment "$1"
}

# The time that archives record: the commit's, so that builds of one commit are equal to the byte.
source_date_epoch() {
  SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
  export SOURCE_DATE_EPOCH
}

# add_urls DIR: the table project.urls of the pyproject.toml there, where the environment says on which site the project is:
# DDU_REPOSITORY, the address of the repository, and DDU_PAGES, that of its pages.
add_urls() {
  if [ -z "${DDU_REPOSITORY:-}" ]; then return; fi
  {
    printf '\n[project.urls]\n'
    if [ -n "${DDU_PAGES:-}" ]; then printf 'Documentation = "%s/"\n' "${DDU_PAGES%/}"; fi
    printf 'Repository = "%s"\n' "$DDU_REPOSITORY"
    printf 'Issues = "%s/issues"\n' "$DDU_REPOSITORY"
    printf 'Changelog = "%s/blob/HEAD/CHANGELOG.md"\n' "$DDU_REPOSITORY"
  } >>"$1/pyproject.toml"
}
