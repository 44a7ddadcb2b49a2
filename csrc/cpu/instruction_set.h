// One plain loop, compiled for the instruction sets worth having and chosen at run time. Free of torch.
#pragma once

// A loop that is to be compiled for several instruction sets must be inlined into a function of each.
#define TAMT_INLINE __attribute__((always_inline))

#if defined(__x86_64__)
#define TAMT_HAS_AVX2 1
// A product and a sum are rounded apart, as the definitions do, though AVX-512 has fma: the build contracts none.
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

// What runs: the best that the machine has, or a lesser one while a test looks at that.
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

// Runs `loop`, a lambda marked TAMT_INLINE, as the compiler vectorises it for this machine.
template <typename Loop>
void vectorised(const Loop& loop) {
#if TAMT_HAS_AVX2
  if (instruction_set == InstructionSet::kAvx512) return run_avx512(loop);
  if (instruction_set == InstructionSet::kAvx2) return run_avx2(loop);
#endif
  loop();
}

}  // namespace tamt
