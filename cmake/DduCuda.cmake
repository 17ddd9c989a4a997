# Finds nvcc if it is wanted, and adds the CUDA kernels to a library.
if(DDU_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  set(DDU_HAS_CUDA ${CMAKE_CUDA_COMPILER})
else()
  set(DDU_HAS_CUDA ${DDU_CUDA})
endif()

function(ddu_cuda_sources library)
  target_sources(${library} PRIVATE cpp/src/no_cuda.cpp)
endfunction()
