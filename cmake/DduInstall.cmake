# Installs libddu, its headers, its CMake package and its pkg-config file: into the prefix, or into the package in a wheel.
include(CMakePackageConfigHelpers)

set(DDU_INSTALL_LIBDIR "${CMAKE_INSTALL_LIBDIR}")
set(DDU_INSTALL_BINDIR "${CMAKE_INSTALL_BINDIR}")
set(DDU_INSTALL_INCLUDEDIR "${CMAKE_INSTALL_INCLUDEDIR}")
if(SKBUILD)
  set(DDU_INSTALL_LIBDIR "dynamic_dilation_unfold/lib")
  set(DDU_INSTALL_BINDIR "dynamic_dilation_unfold")  # Windows looks for a DLL beside the module, and knows no RPATH
  set(DDU_INSTALL_INCLUDEDIR "dynamic_dilation_unfold/include")
else()
  # Not in a wheel, which turns symbolic links into copies. Before 1.0, a minor version may change the ABI.
  set_target_properties(ddu PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
endif()
set(DDU_INSTALL_CMAKEDIR "${DDU_INSTALL_LIBDIR}/cmake/DynamicDilationUnfold")

# A static libddu hands its own dependencies on.
set(DDU_IS_STATIC OFF)
get_target_property(type ddu TYPE)
if(type STREQUAL "STATIC_LIBRARY")
  set(DDU_IS_STATIC ON)
endif()

install(TARGETS ddu EXPORT DynamicDilationUnfoldTargets
        RUNTIME DESTINATION "${DDU_INSTALL_BINDIR}"
        LIBRARY DESTINATION "${DDU_INSTALL_LIBDIR}"
        ARCHIVE DESTINATION "${DDU_INSTALL_LIBDIR}"
        INCLUDES DESTINATION "${DDU_INSTALL_INCLUDEDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/cpp/include/ddu" DESTINATION "${DDU_INSTALL_INCLUDEDIR}")
install(EXPORT DynamicDilationUnfoldTargets NAMESPACE DynamicDilationUnfold:: DESTINATION "${DDU_INSTALL_CMAKEDIR}")

configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/DynamicDilationUnfoldConfig.cmake.in"
                              "${PROJECT_BINARY_DIR}/DynamicDilationUnfoldConfig.cmake"
                              INSTALL_DESTINATION "${DDU_INSTALL_CMAKEDIR}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/DynamicDilationUnfoldConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/DynamicDilationUnfoldConfig.cmake"
              "${PROJECT_BINARY_DIR}/DynamicDilationUnfoldConfigVersion.cmake"
              "${CMAKE_CURRENT_LIST_DIR}/DynamicDilationUnfoldTorch.cmake"
        DESTINATION "${DDU_INSTALL_CMAKEDIR}")

# Paths relative to the file itself, so that the tree can be moved.
file(RELATIVE_PATH DDU_PC_PREFIX "/prefix/${DDU_INSTALL_LIBDIR}/pkgconfig" "/prefix")
set(DDU_PC_CFLAGS "")
set(DDU_PC_LIBS "")
if(DDU_IS_STATIC)
  set(DDU_PC_CFLAGS " -DDDU_STATIC")
  set(DDU_PC_LIBS " ${OpenMP_CXX_FLAGS} -lstdc++ -lm")
  if(DDU_HAS_CUDA)
    string(APPEND DDU_PC_LIBS " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt -lpthread")
  endif()
endif()
configure_file("${CMAKE_CURRENT_LIST_DIR}/dynamic-dilation-unfold.pc.in"
               "${PROJECT_BINARY_DIR}/dynamic-dilation-unfold.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/dynamic-dilation-unfold.pc" DESTINATION "${DDU_INSTALL_LIBDIR}/pkgconfig")
