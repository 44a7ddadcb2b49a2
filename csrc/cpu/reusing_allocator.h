// Memory of tensors on a CPU that is kept when it is freed, for tensors to come.
#pragma once

namespace tamt {

// From now on, for the whole process; returns whether the system can. `spare` is the share of the most that was in use
// that may be held beyond it.
bool reuse_freed_memory(double spare);

}  // namespace tamt
