#pragma once

// Threads with small stacks, where tests can have them: DDU_SMALL_STACKS.

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#define DDU_SMALL_STACKS

#include <gtest/gtest.h>
#include <limits.h>
#include <pthread.h>

#include <algorithm>
#include <cstddef>

/// Runs body in a thread whose stack has 64 KiB, as F.unfold can.
template <class Body>
void on_small_stack(Body body) {
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, std::max<std::size_t>(64 * 1024, PTHREAD_STACK_MIN)), 0);
  pthread_t thread;
  const auto run = [](void* given) -> void* {
    (*static_cast<Body*>(given))();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, run, &body), 0);
  EXPECT_EQ(pthread_join(thread, nullptr), 0);
  pthread_attr_destroy(&attributes);
}

#endif
