# Sourced by what compiles: how many compilers run at once, and ccache where it is.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/base.sh"

CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(getconf _NPROCESSORS_ONLN)}
export CMAKE_BUILD_PARALLEL_LEVEL
if command -v ccache >/dev/null; then
  # libddu is built in several copies of the tree and for several purposes: with the same options, it is compiled once. For that
  # the copies' paths, as the compiler sees them, have to be equal, so pip builds in a folder as deep in the tree as CMake's are.
  export CCACHE_BASEDIR=$root SKBUILD_BUILD_DIR=build/skbuild-$$
  # It also takes two names of one compiler for two: CMake finds c++, pip's builds g++.
  if command -v c++ g++ >/dev/null && [ "$(realpath "$(command -v c++)")" = "$(realpath "$(command -v g++)")" ]; then
    export CC=${CC:-gcc} CXX=${CXX:-g++}
  fi
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
  # Errors on CUDA name their source, which CMakeLists.txt makes a place in the project of its whole path, not of one that ccache cut.
  export CMAKE_CUDA_COMPILER_LAUNCHER="env;CCACHE_BASEDIR=;ccache"
fi
