// Runs tasks on torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <functional>

namespace tamt {

// Each thread takes the next task when it is done, as tasks take unequal time and other processes may slow a thread
// down.
inline void parallel(int64_t count, const std::function<void(int64_t)>& task) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

}  // namespace tamt
