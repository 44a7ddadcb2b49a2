// The loops of sparse products in vectors of kBytes. Included once for each instruction set, in a namespace with its
// kBytes and under its target: a vector is what the set of the function that it is written in has, not of one into which
// that is inlined. Therefore no include guard.

constexpr int64_t kLanes = kBytes / sizeof(float);
typedef float Vector __attribute__((vector_size(kBytes)));
typedef float AnyVector __attribute__((vector_size(kBytes), aligned(4), may_alias));  // at any address
typedef int32_t Lanes __attribute__((vector_size(kBytes)));

TAMT_INLINE inline Vector load(const float* from) { return *reinterpret_cast<const AnyVector*>(from); }
TAMT_INLINE inline Vector load(const BFloat16* from) {
  alignas(kBytes) float wide[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) wide[i] = to_float(from[i]);
  return load(wide);
}

TAMT_INLINE inline void store(Vector vector, float* to) { *reinterpret_cast<AnyVector*>(to) = vector; }
TAMT_INLINE inline void store(Vector vector, BFloat16* to) {
  alignas(kBytes) float wide[kLanes];
  store(vector, wide);
  for (int64_t i = 0; i < kLanes; ++i) to[i] = from_float<BFloat16>(wide[i]);
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

// kLanes columns of kLanes tokens of x [tokens][columns], by columns. What lies outside is zeros.
template <typename Element>
TAMT_INLINE inline void load_columns(
    const Element* x, int64_t tokens, int64_t columns, int64_t token, int64_t column, Vector rows[kLanes]) {
  const int64_t width = std::min(kLanes, columns - column);
  for (int64_t i = 0; i < kLanes; ++i) {
    const Element* from = x + (token + i) * columns + column;
    rows[i] = token + i >= tokens ? Vector{} : width == kLanes ? load(from) : load_part(from, width);
  }
  transpose(rows);
}

// Columns from `begin` to `end` of the tile of tokens from `token`: packed [columns][tile].
template <typename Element>
void pack_as(const SparseProduct& product, int64_t token, int64_t tile, int64_t begin, int64_t end, float* packed) {
  const auto* x = static_cast<const Element*>(product.x);
  for (int64_t column = begin; column < end; column += kLanes) {
    for (int64_t i = 0; i < tile; i += kLanes) {
      Vector columns[kLanes];
      load_columns(x, product.tokens, product.weight.columns, token + i, column, columns);
      for (int64_t c = 0; c < std::min(kLanes, end - column); ++c) store(columns[c], packed + (column + c) * tile + i);
    }
  }
}

// A panel of y, with its bias, from sums [rows][tile].
template <typename Element>
void unpack_as(const SparseProduct& product, int64_t panel, int64_t token, int64_t tile, const float* sums) {
  const int64_t columns = product.weight.rows, rows = product.weight.panel_rows(panel), first = panel * kPanel;
  Element* y = static_cast<Element*>(product.y) + token * columns + first;
  for (int64_t i = 0; i < std::min(tile, product.tokens - token); i += kLanes) {
    const int64_t tokens = std::min(kLanes, product.tokens - token - i);
    for (int64_t row = 0; row < rows; row += kLanes) {
      const int64_t width = std::min(kLanes, rows - row);
      Vector block[kLanes];
      for (int64_t r = 0; r < kLanes; ++r) block[r] = r < width ? load(sums + (row + r) * tile + i) : Vector{};
      transpose(block);
      const Vector bias = product.bias ? load_part(product.bias + first + row, width) : Vector{};
      for (int64_t t = 0; t < tokens; ++t) {
        Element* to = y + (i + t) * columns + row;
        if (width == kLanes) {
          store(block[t] + bias, to);
        } else {
          store_part(block[t] + bias, to, width);
        }
      }
    }
  }
}

// Calls visit(row, block, values, columns, count) for the rows of a panel, block by block. Rows lie apart in memory: this
// panel's next is fetched into the first cache meanwhile, the next panel into the second. 3072 x 768 from memory take 0.93
// ms so, and 2.0 ms unfetched (64 tokens, 20 % kept, Zen 4).
template <typename Value, typename Visit>
TAMT_INLINE inline void walk_panel(const SparseMatrix& weight, int64_t panel, const Visit& visit) {
  constexpr int64_t kAhead = 3, kLine = 64;
  const int64_t rows = weight.panel_rows(panel), blocks = weight.blocks(), first = panel * kPanel;
  const auto* values = static_cast<const Value*>(weight.values);
  int64_t positions[kPanel];
  std::copy(weight.starts + first, weight.starts + first + rows, positions);
  int64_t next_panel = weight.starts[first + rows];
  for (int64_t block = 0; block < blocks; ++block) {
    const uint8_t* order = weight.order_in(panel, block);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = order[i], begin = positions[row], count = weight.counts[(first + row) * blocks + block];
      positions[row] += count;
      const int64_t ahead = positions[order[std::min(i + kAhead, rows - 1)]];
      __builtin_prefetch(values + ahead);
      __builtin_prefetch(reinterpret_cast<const char*>(values + ahead) + kLine);
      __builtin_prefetch(weight.column + ahead + kLine / 2);
      for (int64_t entry = 0; entry < count; entry += kLine / static_cast<int64_t>(sizeof(Value))) {
        __builtin_prefetch(values + next_panel + entry, /* rw: read */ 0, /* locality: second cache */ 2);
      }
      __builtin_prefetch(weight.column + next_panel, 0, 2);
      next_panel += count;
      visit(row, block, values + begin, weight.column + begin, count);
    }
  }
}

// The sums of one row over the entries of one block, by two chains, so that no addition waits for the last.
template <int vectors, typename Value>
TAMT_INLINE inline void add_entries(
    const Value* value, const uint8_t* column, int64_t count, const float* x, bool begin, Vector* sums) {
  constexpr int64_t tile = vectors * kLanes;
  Vector even[vectors], odd[vectors];
  for (int v = 0; v < vectors; ++v) {
    even[v] = begin ? Vector{} : sums[v];
    odd[v] = Vector{};
  }
  const auto add = [=](int64_t entry, Vector* to) TAMT_INLINE {
    const auto* of_column = reinterpret_cast<const Vector*>(x + column[entry] * tile);
    const float factor = to_float(value[entry]);
    for (int v = 0; v < vectors; ++v) to[v] += factor * of_column[v];
  };
  int64_t entry = 0;
  for (; entry + 4 <= count; entry += 4) {
    add(entry, even);
    add(entry + 1, odd);
    add(entry + 2, even);
    add(entry + 3, odd);
  }
  for (; entry < count; ++entry) add(entry, even);
  for (int v = 0; v < vectors; ++v) sums[v] = even[v] + odd[v];
}

template <int vectors, typename Value>
void multiply_by(const SparseMatrix& weight, int64_t panel, const float* x, float* sums) {
  constexpr int64_t tile = vectors * kLanes;
  walk_panel<Value>(weight, panel, [=](int64_t row, int64_t block, const Value* value, const uint8_t* column,
                                       int64_t count) TAMT_INLINE {
    add_entries<vectors>(
        value, column, count, x + block * kBlock * tile, block == 0, reinterpret_cast<Vector*>(sums + row * tile));
  });
}

void pack(const SparseProduct& product, int64_t token, int64_t tile, int64_t begin, int64_t end, void* packed) {
  const auto run = product.weight.type == Type::kFloat ? &pack_as<float> : &pack_as<BFloat16>;
  run(product, token, tile, begin, end, static_cast<float*>(packed));
}

void unpack(const SparseProduct& product, int64_t panel, int64_t token, int64_t tile, const float* sums) {
  const auto run = product.y_type == Type::kFloat ? &unpack_as<float> : &unpack_as<BFloat16>;
  run(product, panel, token, tile, sums);
}

template <typename Value>
void multiply_any(const SparseMatrix& weight, int64_t panel, int64_t tile, const void* x, float* sums) {
  constexpr decltype(&multiply_by<1, Value>) by_vectors[] = {
      &multiply_by<1, Value>, &multiply_by<2, Value>, &multiply_by<3, Value>, &multiply_by<4, Value>};
  by_vectors[tile / kLanes - 1](weight, panel, static_cast<const float*>(x), sums);
}

void multiply(const SparseMatrix& weight, int64_t panel, int64_t tile, const void* x, float* sums) {
  const auto run = weight.type == Type::kFloat ? &multiply_any<float> : &multiply_any<BFloat16>;
  run(weight, panel, tile, x, sums);
}
