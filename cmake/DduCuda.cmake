# Finds nvcc if it is wanted, and adds the CUDA kernels to a library.

# The architectures to build for, where nobody named any: the GPUs that are present, else a few that span the fleet, the
# last also as PTX for what is newer.
function(ddu_default_cuda_architectures result)
  find_program(nvidia_smi nvidia-smi)
  if(nvidia_smi)
    execute_process(COMMAND ${nvidia_smi} --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE capabilities ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]+" capabilities "${capabilities}")
    list(REMOVE_DUPLICATES capabilities)
    list(TRANSFORM capabilities REPLACE "\\." "")
    list(TRANSFORM capabilities APPEND "-real")
  endif()
  if(NOT capabilities)
    set(capabilities 75-real 80-real 90)
  endif()
  set(${result} "${capabilities}" PARENT_SCOPE)
endfunction()

set(DDU_HAS_CUDA OFF)
if(DDU_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(DDU_HAS_CUDA ON)
  endif()
elseif(DDU_CUDA)
  set(DDU_HAS_CUDA ON)
endif()
if(DDU_HAS_CUDA)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    ddu_default_cuda_architectures(CMAKE_CUDA_ARCHITECTURES)
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  if(NOT BUILD_SHARED_LIBS)
    # The users of a static library link the CUDA runtime, also those without CUDA among their languages.
    find_package(CUDAToolkit REQUIRED)
  endif()
  message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} for architectures ${CMAKE_CUDA_ARCHITECTURES}")
endif()

# A target's architectures. No line of the kernels differs between compute capabilities 8.0 and 8.6, nor between 10.0 and 12.0:
# one run of the compiler's front, which takes three quarters of an architecture's time, serves both of each.
function(ddu_set_architectures target architectures)
  set(firsts 80 100)
  set(seconds 86 120)
  foreach(first second IN ZIP_LISTS firsts seconds)
    if(architectures MATCHES "(^|;)${first}(-real)?(;|$)" AND architectures MATCHES "(^|;)${second}-real(;|$)")
      list(REMOVE_ITEM architectures ${second}-real)
      set_property(SOURCE ${ARGN} APPEND PROPERTY COMPILE_OPTIONS --generate-code=arch=compute_${first},code=[sm_${second}])
    endif()
  endforeach()
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
endfunction()

# Kernels that are compiled for architectures of their own: a target by itself, since architectures are a target's.
function(ddu_cuda_part library name architectures)
  add_library(${library}_${name} OBJECT ${ARGN})
  ddu_set_architectures(${library}_${name} "${architectures}" ${ARGN})
  set_target_properties(${library}_${name} PROPERTIES CUDA_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)
  target_include_directories(${library}_${name} PRIVATE $<TARGET_PROPERTY:${library},INCLUDE_DIRECTORIES>)
  target_compile_definitions(${library}_${name} PRIVATE $<TARGET_PROPERTY:${library},COMPILE_DEFINITIONS>)
  target_compile_options(${library}_${name} PRIVATE $<TARGET_PROPERTY:${library},COMPILE_OPTIONS>)
  target_sources(${library} PRIVATE $<TARGET_OBJECTS:${library}_${name}>)
endfunction()

# Those of the architectures that have the convolution's products of matrices, but for what runs code of another as it is: a
# device of compute capability 8.6 or 8.9 that for 8.0. That is a third of the time these kernels take to compile.
function(ddu_convolution_architectures result)
  set(kept)
  foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
    if(NOT architecture MATCHES "^([0-9]+)")  # all, native
      set(${result} "${CMAKE_CUDA_ARCHITECTURES}" PARENT_SCOPE)
      return()
    endif()
    if(CMAKE_MATCH_1 GREATER_EQUAL 80)
      list(APPEND kept ${architecture})
    endif()
  endforeach()
  if(kept MATCHES "(^|;)80(-real)?(;|$)")
    list(FILTER kept EXCLUDE REGEX "^8[1-9]-real$")
  endif()
  set(${result} "${kept}" PARENT_SCOPE)
endfunction()

function(ddu_convolution_sources library)
  set(architectures)
  if(DDU_FUSED_CONV2D)
    ddu_convolution_architectures(architectures)
  endif()
  if(NOT architectures)
    target_sources(${library} PRIVATE cpp/src/no_conv2d.cpp)
    return()
  endif()
  ddu_cuda_part(${library} convolution "${architectures}" cuda/conv2d_forward.cu cuda/conv2d_forward_square.cu
                cuda/conv2d_backward.cu cuda/conv2d_backward_corners.cu cuda/convolution/image.cu)
  # What only devices of compute capability 9.0 run is compiled for them alone, as sm_90a, and only where they are built for.
  # CUDA 12.4 takes three minutes for one of them and says of each kernel that its products wait for one another: there 9.0 runs
  # what other devices run.
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13 AND
     architectures MATCHES "(^|;)(90a?(-real)?|all|all-major|native)(;|$)")
    ddu_cuda_part(${library} sm90 90a-real cuda/conv2d_forward_sm90.cu cuda/conv2d_backward_sm90.cu)
    set_property(SOURCE cuda/conv2d_forward_square.cu cuda/conv2d_backward.cu cuda/conv2d_backward_corners.cu
                 APPEND PROPERTY COMPILE_DEFINITIONS DDU_HAS_SM90)
  endif()
endfunction()

function(ddu_cuda_sources library)
  if(NOT DDU_HAS_CUDA)
    target_sources(${library} PRIVATE cpp/src/no_cuda.cpp)
    return()
  endif()
  ddu_convolution_sources(${library})
  set(sources cuda/core/device.cu cuda/unfold_forward.cu cuda/unfold_backward.cu cuda/aggregate.cu cuda/correlate.cu
              cuda/attention.cu cuda/channels_last/columns.cu cuda/channels_last/columns_backward.cu
              cuda/channels_last/image_rows.cu cuda/channels_last/outer_product.cu cuda/conv2d.cu cuda/depthwise.cu)
  target_sources(${library} PRIVATE ${sources})
  ddu_set_architectures(${library} "${CMAKE_CUDA_ARCHITECTURES}" ${sources})
  # The runtime is linked in, so that the library stands beside any torch. The device code is compressed.
  set_target_properties(${library} PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden
                                              CUDA_SEPARABLE_COMPILATION OFF)
  if(NOT BUILD_SHARED_LIBS)
    target_link_libraries(${library} PRIVATE CUDA::cudart_static)
  endif()
  string(REPLACE ";" "\\;" architectures "${CMAKE_CUDA_ARCHITECTURES}")
  set_property(SOURCE cuda/core/device.cu APPEND PROPERTY COMPILE_DEFINITIONS "DDU_CUDA_ARCHITECTURES=\"${architectures}\"")
  # The tighter compression is read by drivers of CUDA 12.4 and later: those that CUDA 13 needs, not all that CUDA 12 has.
  set(compression -Xfatbin=-compress-all)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
    set(compression --compress-mode=size)
  endif()
  # One source takes most of the time, so its architectures are compiled side by side.
  target_compile_options(${library} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${compression};--threads=2>")
endfunction()
