#pragma once

// Visibility of the library's symbols: everything is hidden but what is marked DDU_API.
#if defined(DDU_STATIC)
#define DDU_API
#elif defined(_WIN32)
#if defined(DDU_BUILDING)
#define DDU_API __declspec(dllexport)
#else
#define DDU_API __declspec(dllimport)
#endif
#else
#define DDU_API __attribute__((visibility("default")))
#endif
