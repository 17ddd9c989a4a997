# Warnings that this project keeps clean, for a target's C++ sources.
function(ddu_warnings target)
  if(MSVC)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:/W4>)
  else()
    # Threads may have small stacks: what is large is in the caller's workspace.
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wconversion
                                                                      -Wframe-larger-than=24576>)
  endif()
  if(DDU_WERROR)
    set_target_properties(${target} PROPERTIES COMPILE_WARNING_AS_ERROR ON)
  endif()
endfunction()
