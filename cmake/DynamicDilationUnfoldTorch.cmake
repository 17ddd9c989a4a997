# DynamicDilationUnfold::torch: what ddu/torch.h needs, which is compiled against the application's Torch.
if(NOT TARGET DynamicDilationUnfold::torch)
  add_library(DynamicDilationUnfold::torch INTERFACE IMPORTED ${DDU_TORCH_SCOPE})
  target_link_libraries(DynamicDilationUnfold::torch INTERFACE DynamicDilationUnfold::ddu ${TORCH_LIBRARIES})
  if(TARGET torch_cuda)
    target_compile_definitions(DynamicDilationUnfold::torch INTERFACE DDU_TORCH_CUDA)
  endif()
endif()
