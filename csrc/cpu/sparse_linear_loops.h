// The loops of sparse products in vectors of kBytes. Included once for each instruction set, in a namespace with its
// kBytes and under its target: a vector is what the set of the function that it is written in has, not of one into which
// that is inlined. Therefore no include guard.

constexpr int64_t kLanes = kBytes / sizeof(float);
typedef float Vector __attribute__((vector_size(kBytes)));
typedef float AnyVector __attribute__((vector_size(kBytes), aligned(4), may_alias));  // at any address
typedef float Four __attribute__((vector_size(16)));
typedef float AnyFour __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t Lanes __attribute__((vector_size(kBytes)));
typedef uint32_t Bits __attribute__((vector_size(kBytes)));
typedef uint64_t Pairs __attribute__((vector_size(kBytes)));
typedef uint16_t Halves __attribute__((vector_size(kBytes / 2)));
typedef uint16_t AnyHalves __attribute__((vector_size(kBytes / 2), aligned(2), may_alias));

TAMT_INLINE inline Vector load(const float* from) { return *reinterpret_cast<const AnyVector*>(from); }
TAMT_INLINE inline Vector load(const BFloat16* from) {
  const Halves halves = *reinterpret_cast<const AnyHalves*>(from);
  return reinterpret_cast<Vector>(__builtin_convertvector(halves, Bits) << 16);
}

TAMT_INLINE inline void store(Vector vector, float* to) { *reinterpret_cast<AnyVector*>(to) = vector; }
TAMT_INLINE inline void store(Vector vector, BFloat16* to) {
  const Bits bits = reinterpret_cast<Bits>(vector);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // as from_float, to even
  const Bits nan = reinterpret_cast<Bits>((bits & 0x7fffffffu) > kInfinity);
  const Bits result = (nan & 0x7fc0u) | (~nan & rounded);
  *reinterpret_cast<AnyHalves*>(to) = __builtin_convertvector(result, Halves);
}

// The first `width` lanes; others are zeros, or are not stored.
template <typename Element>
inline Vector load_part(const Element* from, int64_t width) {
  Element part[kLanes] = {};
  std::copy(from, from + width, part);
  return load(part);
}
template <typename Element>
inline void store_part(Vector vector, Element* to, int64_t width) {
  Element part[kLanes];
  store(vector, part);
  std::copy(part, part + width, to);
}

// The lanes of two vectors by turns: of their first halves, or of their second.
template <bool second>
TAMT_INLINE inline Vector interleave(Vector a, Vector b) {
  Lanes lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = (second ? kLanes / 2 : 0) + i / 2 + i % 2 * kLanes;
  return __builtin_shuffle(a, b, lanes);
}

// A pass moves one bit of a row's number into that of the lane, and one of the lane's into that of the row.
TAMT_INLINE inline void transpose(Vector rows[kLanes]) {
  Vector other[kLanes];
  for (int64_t pass = 1; pass < kLanes; pass *= 2) {
    for (int64_t i = 0; i < kLanes / 2; ++i) {
      other[2 * i] = interleave<false>(rows[i], rows[i + kLanes / 2]);
      other[2 * i + 1] = interleave<true>(rows[i], rows[i + kLanes / 2]);
    }
    for (int64_t i = 0; i < kLanes; ++i) rows[i] = other[i];
  }
}

// kLanes columns of kLanes tokens, by columns. What lies outside is zeros.
template <typename Element>
TAMT_INLINE inline void load_columns(const Matrix& x, int64_t token, int64_t column, Vector rows[kLanes]) {
  const int64_t width = std::min(kLanes, x.columns - column);
  for (int64_t i = 0; i < kLanes; ++i) {
    const Element* from = static_cast<const Element*>(x.data) + (token + i) * x.columns + column;
    rows[i] = token + i >= x.rows ? Vector{} : width == kLanes ? load(from) : load_part(from, width);
  }
  transpose(rows);
}

template <typename Element>
void pack_as(const Matrix& x, int64_t token, int64_t tile, int64_t begin, int64_t end, void* packed) {
  for (int64_t column = begin; column < end; column += kLanes) {
    for (int64_t i = 0; i < tile; i += kLanes) {
      Vector columns[kLanes];
      load_columns<Element>(x, token + i, column, columns);
      for (int64_t c = 0; c < std::min(kLanes, end - column); ++c) {
        store(columns[c], static_cast<float*>(packed) + (column + c) * tile + i);
      }
    }
  }
}

inline void pack(const Matrix& x, int64_t token, int64_t tile, int64_t begin, int64_t end, void* packed) {
  const auto run = x.type == Type::kFloat ? &pack_as<float> : &pack_as<BFloat16>;
  run(x, token, tile, begin, end, packed);
}

template <typename Element>
void unpack_as(const Output& y, int64_t panel, int64_t token, int64_t tile, const float* sums) {
  const int64_t first = panel * kCell, rows = std::min(kCell, y.columns - first);
  Element* data = static_cast<Element*>(y.data) + token * y.columns + first;
  for (int64_t i = 0; i < std::min(tile, y.tokens - token); i += kLanes) {
    const int64_t tokens = std::min(kLanes, y.tokens - token - i);
    for (int64_t row = 0; row < rows; row += kLanes) {
      const int64_t width = std::min(kLanes, rows - row);
      Vector block[kLanes];
      for (int64_t r = 0; r < kLanes; ++r) block[r] = r < width ? load(sums + (row + r) * tile + i) : Vector{};
      transpose(block);
      const Vector bias = y.bias ? load_part(y.bias + first + row, width) : Vector{};
      for (int64_t t = 0; t < tokens; ++t) {
        Element* to = data + (i + t) * y.columns + row;
        if (width == kLanes) {
          store(block[t] + bias, to);
        } else {
          store_part(block[t] + bias, to, width);
        }
      }
    }
  }
}

inline void unpack(const Output& y, int64_t panel, int64_t token, int64_t tile, const float* sums) {
  const auto run = y.type == Type::kFloat ? &unpack_as<float> : &unpack_as<BFloat16>;
  run(y, panel, token, tile, sums);
}

// Calls visit(row, values, columns, count) for the rows of a cell, in the order of the memory.
template <typename Value, typename Visit>
TAMT_INLINE inline void walk_cell(const SparseMatrix& weight, int64_t panel, int64_t block, const Visit& visit) {
  const int64_t cell = weight.cell(panel, block);
  const uint8_t *order = weight.order + cell * kCell, *counts = weight.counts + cell * kCell;
  const auto* value = static_cast<const Value*>(weight.values) + weight.starts[cell];
  const uint8_t* column = weight.column + weight.starts[cell];
  for (int64_t i = 0; i < kCell && counts[i] > 0; ++i) {
    visit(order[i], value, column, counts[i]);
    value += counts[i];
    column += counts[i];
  }
}

// Calls visit(row, block, values, columns, count) for the rows of a panel, cell by cell.
template <typename Value, typename Visit>
TAMT_INLINE inline void walk_panel(const SparseMatrix& weight, int64_t panel, const Visit& visit) {
  for (int64_t block = 0; block < weight.blocks(); ++block) {
    walk_cell<Value>(weight, panel, block, [&](int64_t row, const Value* value, const uint8_t* column,
                                               int64_t count) TAMT_INLINE { visit(row, block, value, column, count); });
  }
}

// Two values by turns: float32, whatever their type.
TAMT_INLINE inline Vector load_pair(const float* from) {
  uint64_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return reinterpret_cast<Vector>(Pairs{} + pair);
}
TAMT_INLINE inline Vector load_pair(const BFloat16* from) {
  return reinterpret_cast<Vector>(Pairs{} + (uint64_t{from[1].bits} << 48 | uint64_t{from[0].bits} << 16));
}

// The first or the second of them in all lanes.
template <bool second>
TAMT_INLINE inline Vector one_of(Vector pair) {
  Lanes lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = i / 2 * 2 + second;
  return __builtin_shuffle(pair, lanes);
}

// The sums of one row over the entries of one block, by as many chains as the processor adds at once, so that no addition
// waits for the last. Only their sum meets the other blocks': it waits for no memory, and rounds less.
template <int vectors, typename Value>
TAMT_INLINE inline void add_entries(
    const Value* value, const uint8_t* column, int64_t count, const float* x, Vector* sums) {
  constexpr int64_t tile = vectors * kLanes;
  constexpr int chains = vectors < 3 ? 4 : 2;
  // One load of two values, which instructions then spread, in place of two loads: some processors load but one vector
  // of this width at a time.
  constexpr bool pairs = kBytes == 64;
  Vector parts[chains][vectors] = {};
  const auto add_product = [=](auto factor, int64_t number, Vector* to) TAMT_INLINE {
    const auto* of_column = reinterpret_cast<const Vector*>(x + number * tile);
    for (int v = 0; v < vectors; ++v) to[v] += factor * of_column[v];
  };
  const auto add = [=](int64_t entry, int64_t number, Vector* to) TAMT_INLINE {
    add_product(to_float(value[entry]), number, to);
  };
  const auto add_two = [=](int64_t entry, int64_t first, int64_t second, Vector* to, Vector* to_other) TAMT_INLINE {
    if constexpr (pairs) {
      const Vector pair = load_pair(value + entry);
      add_product(one_of<false>(pair), first, to);
      add_product(one_of<true>(pair), second, to_other);
    } else {
      add(entry, first, to);
      add(entry + 1, second, to_other);
    }
  };
  int64_t entry = 0;
  for (; entry + 8 <= count; entry += 8) {
    uint64_t numbers;  // of 8 columns, the first in the lowest byte: loads are what these loops wait for
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are read from the lowest byte on");
    std::memcpy(&numbers, column + entry, sizeof numbers);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      const int64_t first = numbers >> 8 * i & 0xff, second = numbers >> (8 * i + 8) & 0xff;
      add_two(entry + i, first, second, parts[i % chains], parts[(i + 1) % chains]);
    }
  }
  for (; entry + 2 <= count; entry += 2) add_two(entry, column[entry], column[entry + 1], parts[0], parts[1]);
  if (entry < count) add(entry, column[entry], parts[0]);
#pragma GCC unroll 8
  for (int i = 1; i < chains; ++i) {
    for (int v = 0; v < vectors; ++v) parts[0][v] += parts[i][v];
  }
  for (int v = 0; v < vectors; ++v) sums[v] += parts[0][v];
}

template <int vectors, typename Value>
void multiply_by(const SparseMatrix& weight, int64_t panel, const float* x, float* sums) {
  constexpr int64_t tile = vectors * kLanes;
  std::fill(sums, sums + kCell * tile, 0.0f);
  walk_panel<Value>(weight, panel, [=](int64_t row, int64_t block, const Value* value, const uint8_t* column,
                                       int64_t count) TAMT_INLINE {
    add_entries<vectors>(value, column, count, x + block * kCell * tile, reinterpret_cast<Vector*>(sums + row * tile));
  });
}

template <typename Value>
void multiply_any(const SparseMatrix& weight, int64_t panel, int64_t tile, const void* x, float* sums) {
  constexpr decltype(&multiply_by<1, Value>) by_vectors[] = {
      &multiply_by<1, Value>, &multiply_by<2, Value>, &multiply_by<3, Value>, &multiply_by<4, Value>};
  by_vectors[tile / kLanes - 1](weight, panel, static_cast<const float*>(x), sums);
}

inline void multiply(const SparseMatrix& weight, int64_t panel, int64_t tile, const void* x, float* sums) {
  const auto run = weight.type == Type::kFloat ? &multiply_any<float> : &multiply_any<BFloat16>;
  run(weight, panel, tile, x, sums);
}

// Of four lanes each in turn, the even or the odd ones of two vectors: an instruction of its own, as no lane leaves its 16
// bytes.
template <bool odd>
TAMT_INLINE inline Vector every_second(Vector a, Vector b) {
  Lanes lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = i / 4 * 4 + i % 2 * 2 + odd + i / 2 % 2 * kLanes;
  return __builtin_shuffle(a, b, lanes);
}

TAMT_INLINE inline Vector add_neighbours(Vector a, Vector b) {
  return every_second<false>(a, b) + every_second<true>(a, b);
}

template <int distance>
TAMT_INLINE inline Vector rotated(Vector vector) {
  Lanes lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = (i + distance) % kLanes;
  return __builtin_shuffle(vector, lanes);
}

// The sums of four vectors' lanes.
TAMT_INLINE inline Four sums_of(Vector a, Vector b, Vector c, Vector d) {
  Vector sums = add_neighbours(add_neighbours(a, b), add_neighbours(c, d));  // in each 16 bytes those of its lanes
  if constexpr (kLanes > 8) sums += rotated<8>(sums);
  if constexpr (kLanes > 4) sums += rotated<4>(sums);
  Four first;
  std::memcpy(&first, &sums, sizeof first);
  return first;
}

// Over the tokens of a tile, what one row's gradient and the columns of its entries in a block give: of four entries at a
// time, as rows are short.
template <int vectors>
TAMT_INLINE inline void add_gradients(
    const float* grad, const float* x, const uint8_t* column, int64_t count, bool begin, float* sums) {
  constexpr int64_t tile = vectors * kLanes;
  Vector of_row[vectors];
  for (int v = 0; v < vectors; ++v) of_row[v] = reinterpret_cast<const Vector*>(grad)[v];
  const auto product = [&](int64_t number) TAMT_INLINE {
    const auto* of_column = reinterpret_cast<const Vector*>(x + number * tile);
    Vector sum = of_row[0] * of_column[0];
    for (int v = 1; v < vectors; ++v) sum += of_row[v] * of_column[v];
    return sum;
  };
  int64_t entry = 0;
  for (; entry + 4 <= count; entry += 4) {
    const uint8_t* four = column + entry;
    Four sum = sums_of(product(four[0]), product(four[1]), product(four[2]), product(four[3]));
    if (!begin) sum += *reinterpret_cast<const AnyFour*>(sums + entry);
    *reinterpret_cast<AnyFour*>(sums + entry) = sum;
  }
  if (entry == count) return;
  const uint8_t *last = column + count - 1, *second = std::min(column + entry + 1, last);
  const Four sum = sums_of(product(column[entry]), product(*second), product(*last), Vector{});
  const float left[] = {sum[0], sum[1], sum[2]};
  for (int64_t i = 0; i < count - entry; ++i) sums[entry + i] = left[i] + (begin ? 0.0f : sums[entry + i]);
}

// Asks for what will be read in no order, which the processor does not foresee.
TAMT_INLINE inline void prefetch(const float* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(float)) __builtin_prefetch(from + i, 0, 2);
}

template <int vectors>
void add_products_by(
    const SparseMatrix& pattern, int64_t panel, const float* grad, const float* x, bool begin, float* grad_values) {
  constexpr int64_t tile = vectors * kLanes;
  SparseMatrix with_sums = pattern;
  with_sums.values = grad_values;
  const float* of_panel = grad + panel * kCell * tile;
  prefetch(of_panel, std::min(kCell, pattern.rows - panel * kCell) * tile);
  prefetch(x, std::min(kCell, pattern.columns) * tile);
  walk_panel<float>(with_sums, panel, [=](int64_t row, int64_t block, const float* sums, const uint8_t* column,
                                          int64_t count) TAMT_INLINE {
    const int64_t in_next_block = (block + 1) * kCell + row;
    if (in_next_block < pattern.columns) prefetch(x + in_next_block * tile, tile);
    add_gradients<vectors>(
        of_panel + row * tile, x + block * kCell * tile, column, count, begin, grad_values + (sums - grad_values));
  });
}

inline void add_products(
    const SparseMatrix& pattern, int64_t panel, int64_t tile, const void* grad, const void* x, bool begin,
    float* grad_values) {
  constexpr decltype(&add_products_by<1>) by_vectors[] = {
      &add_products_by<1>, &add_products_by<2>, &add_products_by<3>, &add_products_by<4>};
  by_vectors[tile / kLanes - 1](
      pattern, panel, static_cast<const float*>(grad), static_cast<const float*>(x), begin, grad_values);
}
