if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64" AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  set(DDU_X86 ON)
endif()

# The kernels of each operator.
set(DDU_CPU_KERNELS cpp/src/cpu/sums_kernels.cpp cpp/src/cpu/unfold_kernels.cpp)

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
  if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=")
    set(optimize -O1)
  endif()
  foreach(target IN LISTS targets)
    set(object ddu_cpu_${target})
    add_library(${object} OBJECT ${DDU_CPU_KERNELS})
    target_include_directories(${object} PRIVATE cpp/include)
    target_compile_definitions(${object} PRIVATE DDU_TARGET=${target} $<TARGET_PROPERTY:${library},COMPILE_DEFINITIONS>)
    # Strict IEEE rules stay, but traps need not.
    target_compile_options(${object} PRIVATE ${flags_${target}}
                           $<$<NOT:$<CXX_COMPILER_ID:MSVC>>:${optimize} -fno-trapping-math -fno-math-errno>)
    ddu_warnings(${object})
    target_sources(${library} PRIVATE $<TARGET_OBJECTS:${object}>)
  endforeach()
endfunction()
