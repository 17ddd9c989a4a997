# DynamicDilationUnfold::torch: what ddu/torch.h needs, which is compiled against the application's Torch.
if(NOT TARGET DynamicDilationUnfold::torch)
  if(NOT TORCH_LIBRARIES)
    find_package(Torch REQUIRED)  # found before in another scope: the targets are here, what to link is not
  endif()
  add_library(DynamicDilationUnfold::torch INTERFACE IMPORTED ${DDU_TORCH_SCOPE})
  # A toolkit without NVRTC leaves a library not found in Torch's list, which nothing here needs.
  set(ddu_torch_libraries ${TORCH_LIBRARIES})
  list(FILTER ddu_torch_libraries EXCLUDE REGEX "-NOTFOUND$")
  target_link_libraries(DynamicDilationUnfold::torch INTERFACE DynamicDilationUnfold::ddu ${ddu_torch_libraries})
  unset(ddu_torch_libraries)
  if(TARGET torch_cuda)
    target_compile_definitions(DynamicDilationUnfold::torch INTERFACE DDU_TORCH_CUDA)
  endif()
endif()
