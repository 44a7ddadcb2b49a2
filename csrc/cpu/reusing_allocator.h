// Memory of tensors on a CPU that is kept when it is freed, for tensors to come.
#pragma once

namespace tamt {

// From now on, for the whole process; returns whether the system can.
bool reuse_freed_memory();

}  // namespace tamt
