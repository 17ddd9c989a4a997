if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64" AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  set(DDU_X86 ON)
endif()

# The kernels: cpp/src/cpu/NAME_kernels.cpp.
set(DDU_CPU_KERNELS grouped sums unfold)

# Compiles the kernels once per instruction set, each time into a namespace of its own. Which one runs is
# decided when the library is used (cpp/src/cpu/core/targets.cpp), so one build serves every processor.
# The baseline comes first: of a template that several objects hold, the linker keeps the first, which every processor can run.
function(ddu_cpu_targets library)
  set(targets baseline)
  if(DDU_X86)
    list(APPEND targets avx2 avx512)
    target_compile_definitions(${library} PRIVATE DDU_X86_TARGETS)
  endif()
  set(flags_baseline "")
  set(flags_avx2 -mavx2 -mfma -mf16c)
  set(flags_avx512 ${flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  # Vectorised loops are the point of these sources, whatever the build type, unless sanitizers look at every access anyway.
  set(optimize -O3)
  set(sanitized FALSE)
  if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=")
    set(optimize -O1)
    set(sanitized TRUE)
  endif()
  foreach(target IN LISTS targets)
    foreach(kernels IN LISTS DDU_CPU_KERNELS)
      # A wheel has room for so much: of small groups' kernels a processor with AVX-512 runs those for AVX2, and x86 processors
      # without either are rare.
      if(kernels STREQUAL "grouped" AND target STREQUAL "avx512")
        continue()
      endif()
      set(level ${optimize})
      if(DDU_X86 AND target STREQUAL "baseline" AND NOT sanitized)
        set(level -O2)
      endif()
      set(flags "${flags_${target}}")
      # With sanitizers each instruction set takes minutes. No line of the sums is compiled for AVX-512 alone but one of
      # core/nontemporal.h, which the unfold's kernels have too: so the sums run the baseline's code in its place.
      if(sanitized AND kernels STREQUAL "sums" AND target STREQUAL "avx512")
        set(flags "${flags_baseline}")
      endif()
      set(object ddu_cpu_${target}_${kernels})
      add_library(${object} OBJECT cpp/src/cpu/${kernels}_kernels.cpp)
      target_include_directories(${object} PRIVATE cpp/include)
      target_compile_definitions(${object} PRIVATE DDU_TARGET=${target} $<TARGET_PROPERTY:${library},COMPILE_DEFINITIONS>)
      # Strict IEEE rules stay, but traps need not. Where each variable lives in optimised vector code helps no debugger, and
      # takes gcc long to find out.
      target_compile_options(
        ${object} PRIVATE ${flags} $<$<NOT:$<CXX_COMPILER_ID:MSVC>>:${level} -fno-trapping-math -fno-math-errno>
                          $<$<CXX_COMPILER_ID:GNU>:-fno-var-tracking>)
      ddu_warnings(${object})
      target_sources(${library} PRIVATE $<TARGET_OBJECTS:${object}>)
    endforeach()
  endforeach()
endfunction()
