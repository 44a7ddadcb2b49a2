// The element types of weights, scores and gradients. Does not use torch.
#pragma once

#include <cstdint>

namespace tamt {

enum class Type { kFloat, kHalf, kBFloat16 };

}  // namespace tamt
