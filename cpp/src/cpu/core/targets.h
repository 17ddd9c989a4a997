#pragma once

namespace ddu::cpu {

/// Instruction sets that kernels are compiled for, best last.
enum class Target { baseline, avx2, avx512 };

/// The best that the processor can run, or the one that the environment asks for.
Target target();

}  // namespace ddu::cpu
