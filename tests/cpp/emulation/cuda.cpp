// Fibers for the threads of a block, and the few functions of the CUDA runtime that the library and its tests call.

#include "cuda.h"

#include <ucontext.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

#undef threadIdx
#undef blockIdx

namespace ddu::cuda {
constexpr std::size_t kSharedBytes = 227 * 1024;
alignas(16) char shared[kSharedBytes];  // the dynamic shared memory of the block that runs
}  // namespace ddu::cuda

namespace emulation {

Index thread_index, block_index, block_size, grid_size;

namespace {

/// Made once, for thread after thread. Switched by the compiler's jumps: those of the C library ask a thread for its clean-ups,
/// and contexts of the system cost a call of it each.
struct Fiber {
  std::unique_ptr<char[]> stack;
  void* jump[5];
};

/// Which threads of a warp may run, and which wait, a bit for each.
struct Warp {
  std::uint32_t ready, at_warp_barrier, at_block_barrier;
};

constexpr unsigned kMostThreads = 1024;
constexpr std::size_t kStackBytes = 128 * 1024;
Fiber fibers[kMostThreads];
Warp warps[kMostThreads / 32];
void* scheduler[5];  // where run_warp() goes on
unsigned current;
bool backwards;
const std::function<void()>* body;

bool any[2];                         // of this barrier and of the one before
unsigned generation;                 // of block barriers
std::uint32_t exchanged[2][32][32];  // likewise for each warp's exchanges
unsigned char warp_generation[32];

/// A function of its own, since the compiler takes none that is left by a jump for one that may be entered by it.
[[noreturn]] __attribute__((noinline)) void jump_to(void** place) { __builtin_longjmp(place, 1); }

[[noreturn]] void fiber_main();

/// Lets the current thread run, for the first time or on from where it waits.
[[noreturn]] void resume() {
  Fiber& fiber = fibers[current];
  if (fiber.stack) jump_to(fiber.jump);
  fiber.stack.reset(new char[kStackBytes]);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  // They end in different places of a page, since what all fibers use would else meet in a few sets of the cache.
  context.uc_stack.ss_size = kStackBytes - current % 64 * 192;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
  setcontext(&context);
  std::abort();
}

/// Lets the next thread of a warp run that may; where there is none, run_warp() goes on.
[[noreturn]] void run_next(unsigned warp) {
  const std::uint32_t ready = warps[warp].ready;
  if (!ready) jump_to(scheduler);
  current = warp * 32 + unsigned(backwards ? 31 - __builtin_clz(ready) : __builtin_ctz(ready));
  thread_index = {current};
  resume();
}

/// The current thread lets others run until those wait too that it waits for, or, having ended, until the next block.
__attribute__((noinline)) void wait(std::uint32_t Warp::* barrier) {
  const unsigned index = current / 32;
  const std::uint32_t thread = 1u << current % 32;
  Warp& warp = warps[index];
  warp.ready &= ~thread;
  if (barrier) warp.*barrier |= thread;
  if (!warp.ready && warp.at_warp_barrier && !warp.at_block_barrier) {
    std::swap(warp.ready, warp.at_warp_barrier);
    std::memset(exchanged[++warp_generation[index] % 2][index], 0, sizeof exchanged[0][0]);
  }
  if (__builtin_setjmp(fibers[current].jump) == 0) run_next(index);
}

void fiber_main() {
  for (;;) {
    (*body)();
    wait(nullptr);
  }
}

/// Until all threads of the warp wait for the block, or have ended.
__attribute__((noinline)) void run_warp(unsigned warp) {
  if (__builtin_setjmp(scheduler) == 0) run_next(warp);
}

/// A warp runs as far as it can before the next one does. What it does too early then goes wrong, in one of the two orders.
void run_block(unsigned threads) {
  const unsigned count = (threads + 31) / 32;
  for (unsigned warp = 0; warp < count; ++warp) warps[warp] = {~0u >> (32 - std::min(threads - warp * 32, 32u)), 0, 0};
  std::memset(exchanged, 0, sizeof exchanged);
  any[0] = any[1] = false;
  for (bool waiting = true; waiting;) {
    waiting = false;
    for (unsigned n = 0; n < count; ++n) {
      const unsigned warp = backwards ? count - 1 - n : n;
      if (warps[warp].ready) run_warp(warp);
      if (warps[warp].at_warp_barrier) throw std::logic_error("threads of a warp wait at different barriers");
    }
    any[++generation % 2] = false;
    for (unsigned warp = 0; warp < count; ++warp) {
      std::swap(warps[warp].ready, warps[warp].at_block_barrier);
      waiting |= warps[warp].ready != 0;
    }
  }
}

}  // namespace

bool block_barrier(bool value) {
  const unsigned turn = generation % 2;
  any[turn] = any[turn] || value;
  wait(&Warp::at_block_barrier);
  return any[turn];
}

const std::uint32_t* warp_exchange(std::uint32_t value) {
  const unsigned warp = current / 32, turn = warp_generation[warp] % 2;
  exchanged[turn][warp][current % 32] = value;
  wait(&Warp::at_warp_barrier);
  return exchanged[turn][warp];
}

void run(unsigned blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  if (threads > kMostThreads || shared_bytes > ddu::cuda::kSharedBytes) throw std::logic_error("a block is too large");
  backwards = std::getenv("DDU_EMULATION_BACKWARDS") != nullptr;
  body = &kernel;
  block_size = {threads};
  grid_size = {blocks};
  for (unsigned n = 0; n < blocks; ++n) {
    block_index = {backwards ? blocks - 1 - n : n};
    std::memset(ddu::cuda::shared, 0xff, ddu::cuda::kSharedBytes);  // NaN: nobody may read what nobody wrote
    run_block(threads);
  }
}

}  // namespace emulation

// --- The CUDA runtime -----------------------------------------------------------------------------------------------

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "an error"; }
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
/// Code for sm_90, so that what only runs there is tested too.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

/// A small device, so that small problems are cut as large ones are.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount                ? 4
           : attribute == cudaDevAttrMaxSharedMemoryPerMultiprocessor ? 228 * 1024
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin     ? int(ddu::cuda::kSharedBytes)
                                                                      : 9;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*memory, 0xff, (bytes + 255) / 256 * 256);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  return std::memset(memory, value, bytes), cudaSuccess;
}
}
