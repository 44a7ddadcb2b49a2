// One plain loop, compiled for the instruction sets worth having and chosen at run time. Free of torch.
#pragma once

// A loop that is to be compiled for several instruction sets must be inlined into a function of each.
#define TAMT_INLINE __attribute__((always_inline))

#if defined(__x86_64__)
#define TAMT_HAS_AVX2 1
// Without fma: a fused multiply-add would round otherwise than the definitions do.
#define TAMT_AVX2 __attribute__((target("avx2,bmi,bmi2,popcnt")))
#else
#define TAMT_HAS_AVX2 0
#endif

namespace tamt {

// No AVX-512: these loops are bound by memory, which AVX2 keeps busy.
inline bool has_avx2() {
#if TAMT_HAS_AVX2
  static const bool found = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
  return found;
#else
  return false;
#endif
}

#if TAMT_HAS_AVX2
template <typename Loop>
TAMT_AVX2 void run_avx2(const Loop& loop) {
  loop();
}
#endif

// Runs `loop`, a lambda marked TAMT_INLINE, as the compiler vectorises it for this machine.
template <typename Loop>
void vectorised(const Loop& loop) {
#if TAMT_HAS_AVX2
  if (has_avx2()) return run_avx2(loop);
#endif
  loop();
}

}  // namespace tamt
