// Fibers for the threads of a block, and the few functions of the CUDA runtime that the library and its tests call.

#include "cuda.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#undef threadIdx
#undef blockIdx

namespace ddu::cuda {
constexpr std::size_t kSharedBytes = 227 * 1024;
alignas(16) char shared[kSharedBytes];  // the dynamic shared memory of the block that runs
}  // namespace ddu::cuda

namespace emulation {

Index thread_index, block_index, block_size, grid_size;

namespace {

enum class State { ready, at_block_barrier, at_warp_barrier, ended };

/// Made once, for thread after thread. Switched by jumps, since contexts of the system cost a call of it each.
struct Fiber {
  std::unique_ptr<char[]> stack;
  jmp_buf jump;
  State state;
};

constexpr std::size_t kStackBytes = 128 * 1024;
std::vector<Fiber> fibers;
jmp_buf scheduler;
unsigned current, live;
const std::function<void()>* body;

bool any[2];                         // of this barrier and of the one before
unsigned generation;                 // of block barriers
std::uint32_t exchanged[2][32][32];  // likewise for each warp's exchanges
unsigned char warp_generation[32];

void wait(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  if (_setjmp(fiber.jump) == 0) _longjmp(scheduler, 1);
}

[[noreturn]] void fiber_main() {
  for (;;) {
    (*body)();
    wait(State::ended);
  }
}

void resume() {
  Fiber& fiber = fibers[current];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.stack) _longjmp(fiber.jump, 1);
  fiber.stack.reset(new char[kStackBytes]);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
  setcontext(&context);
}

/// Lets threads go on whose barrier all of them have reached; false if there are none.
bool release(unsigned threads) {
  bool progress = false;
  unsigned waiting = 0;
  for (unsigned t = 0; t < threads; ++t) waiting += fibers[t].state == State::at_block_barrier;
  if (waiting > 0 && waiting == live) {
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t].state == State::at_block_barrier) fibers[t].state = State::ready;
    }
    any[++generation % 2] = false;
    return true;
  }
  for (unsigned warp = 0; warp * 32 < threads; ++warp) {
    const unsigned first = warp * 32, last = std::min(first + 32, threads);
    unsigned there = 0, alive = 0;
    for (unsigned t = first; t < last; ++t) {
      there += fibers[t].state == State::at_warp_barrier;
      alive += fibers[t].state != State::ended;
    }
    if (there == 0 || there != alive) continue;
    for (unsigned t = first; t < last; ++t) {
      if (fibers[t].state == State::at_warp_barrier) fibers[t].state = State::ready;
    }
    std::memset(exchanged[++warp_generation[warp] % 2][warp], 0, sizeof exchanged[0][0]);
    progress = true;
  }
  return progress;
}

void run_block(unsigned threads, bool backwards) {
  if (fibers.empty()) fibers.resize(1024);
  for (unsigned t = 0; t < threads; ++t) fibers[t].state = State::ready;
  std::memset(exchanged, 0, sizeof exchanged);
  any[0] = any[1] = false;
  live = threads;
  while (live > 0) {
    for (unsigned n = 0; n < threads; ++n) {
      current = backwards ? threads - 1 - n : n;
      if (fibers[current].state != State::ready) continue;
      thread_index = {current};
      resume();
      live -= fibers[current].state == State::ended;
    }
    if (live > 0 && !release(threads)) throw std::logic_error("threads wait at different barriers");
  }
}

}  // namespace

bool block_barrier(bool value) {
  const unsigned turn = generation % 2;
  any[turn] = any[turn] || value;
  wait(State::at_block_barrier);
  return any[turn];
}

const std::uint32_t* warp_exchange(std::uint32_t value) {
  const unsigned warp = current / 32, turn = warp_generation[warp] % 2;
  exchanged[turn][warp][current % 32] = value;
  wait(State::at_warp_barrier);
  return exchanged[turn][warp];
}

void run(unsigned blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  if (threads > 1024 || shared_bytes > ddu::cuda::kSharedBytes) throw std::logic_error("a block is too large");
  const bool backwards = std::getenv("DDU_EMULATION_BACKWARDS") != nullptr;
  body = &kernel;
  block_size = {threads};
  grid_size = {blocks};
  for (unsigned n = 0; n < blocks; ++n) {
    block_index = {backwards ? blocks - 1 - n : n};
    std::memset(ddu::cuda::shared, 0xff, ddu::cuda::kSharedBytes);  // NaN: nobody may read what nobody wrote
    run_block(threads, backwards);
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
