// Compiles a plain loop for several instruction sets and chooses one at run time. Does not use torch.
#pragma once

// To be compiled for several instruction sets, a loop must be inlined into a function for each of them.
#define TAMT_INLINE __attribute__((always_inline))

#if defined(__x86_64__)
#define TAMT_HAS_AVX2 1
// A product and a sum are rounded separately, as in the definitions. AVX-512 has fma, but -ffp-contract=off prevents
// it.
#define TAMT_AVX2 __attribute__((target("avx2,bmi,bmi2,popcnt")))
#define TAMT_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2,popcnt,prefer-vector-width=512")))
#else
#define TAMT_HAS_AVX2 0
#endif

namespace tamt {

enum class InstructionSet { kGeneric, kAvx2, kAvx512 };

inline InstructionSet best_instruction_set() {
#if TAMT_HAS_AVX2
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi2")) return InstructionSet::kGeneric;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? InstructionSet::kAvx512 : InstructionSet::kAvx2;
#else
  return InstructionSet::kGeneric;
#endif
}

// The instruction set in use: the best that the machine has, or another one in a test.
inline InstructionSet instruction_set = best_instruction_set();

inline bool has_avx2() { return instruction_set != InstructionSet::kGeneric; }

#if TAMT_HAS_AVX2
template <typename Loop>
TAMT_AVX2 void run_avx2(const Loop& loop) {
  loop();
}

template <typename Loop>
TAMT_AVX512 void run_avx512(const Loop& loop) {
  loop();
}
#endif

// Runs `loop`, a lambda marked TAMT_INLINE, vectorised for this machine.
template <typename Loop>
void vectorised(const Loop& loop) {
#if TAMT_HAS_AVX2
  if (instruction_set == InstructionSet::kAvx512) return run_avx512(loop);
  if (instruction_set == InstructionSet::kAvx2) return run_avx2(loop);
#endif
  loop();
}

}  // namespace tamt
