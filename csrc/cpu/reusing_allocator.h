// Keeps the memory that tensors on a CPU free, for later tensors.
#pragma once

namespace tamt {

// From now on, for the whole process. Returns whether the system supports it. `spare` is the memory to hold beyond the
// peak in use, as a share of that peak.
bool reuse_freed_memory(double spare);

}  // namespace tamt
