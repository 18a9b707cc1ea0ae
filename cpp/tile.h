// The one product that everything here is made of:
//
//   z[m, c] += sum over k of a[m, k] w[k, c]        m < M rows, c < W vectors of N lanes
//
// with all M W sums in registers. a is broadcast element by element through a pointer per row, so rows may lie
// anywhere: batch order, batch_first, a reversed direction, a reset state and a transposed operand are pointers, not
// copies. w is a packed panel (see pack.h). A sum is one chain of fused multiply-adds in the order of k whatever M and
// W are, and may be stored and taken up again at any k: that is what makes a result the same to the bit in every plan.
// The sums may begin elsewhere than where they end (a bias), and k may run over several operands, one after the other
// (x, then h).
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "bfloat16.h"

namespace rnnfast {

// How a row of a is read: `runs` runs, `jump` apart, each of `count` elements, `stride` apart. K = runs * count.
struct Walk {
  index count = 0;
  index stride = 1;
  index runs = 1;
  index jump = 0;
  index offset = 0;  // of the first element from the row's pointer

  index length() const { return count * runs; }
};

// An operand: where its rows begin, and how they are walked.
template <class E> struct Part {
  const E* const* rows;
  Walk walk;
};

// What a product sums, one operand after the other: at most x and the recurrent operand.
template <class E> struct Parts {
  std::array<Part<E>, 2> part;
  int count = 0;

  Parts() = default;
  Parts(const E* const* rows, const Walk& walk) : part{{{rows, walk}, {}}}, count(1) {}
  void add(const E* const* rows, const Walk& walk) { part[static_cast<std::size_t>(count++)] = {rows, walk}; }
  index length() const {
    index sum = 0;
    for (int k = 0; k < count; k++) sum += part[static_cast<std::size_t>(k)].walk.length();
    return sum;
  }
};

// Where the sums of a row begin; a stride of 0 begins all rows alike.
template <class T> struct From {
  const T* at;
  index stride;
};

// A third of the registers (a quarter of 16) stays free for the panel's vectors and the broadcast row.
constexpr int sums_in_registers = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 24 : 12;
constexpr int most_rows = 8;   // a row costs a pointer register
constexpr int most_width = 8;  // enough chains in flight for one row

constexpr bool tile_exists(int m, int w) { return m <= most_rows && w <= most_width && m * w <= sums_in_registers; }
// By width: a table, since every product asks.
constexpr std::array<int, most_width + 1> rows_by_width = [] {
  std::array<int, most_width + 1> rows{};
  for (int w = 1; w <= most_width; w++)
    while (tile_exists(rows[static_cast<std::size_t>(w)] + 1, w)) rows[static_cast<std::size_t>(w)]++;
  return rows;
}();
constexpr int rows_of_tile(index w) { return rows_by_width[static_cast<std::size_t>(w)]; }

// Elements k that a tile takes at once. Wide panels pass few rows, as fast as they come from a cache: more instructions
// that load them than these are more than a processor can foresee (measured with one row and weights in the level-2
// cache: four at once take 1.3 to 1.7 x the time).
constexpr int steps_at_once(index w) { return w > 4 ? 2 : 4; }

// Bytes that will be read next, brought into the level-2 cache meanwhile: from `at` on, `stride` apart, so many of them
// for all elements that are taken at once; where that would leave out lines, twice as many (two tiles a panel: 16 rows
// and 19 MB of weights, one thread, 1.25 x as fast). What comes from further away hides behind the arithmetic only if
// it is asked for early.
struct Ahead {
  const char* at;
  index stride;
};
constexpr int lines_ahead(index w) { return steps_at_once(w) * sums_in_registers / 24; }

template <int M, int W, class E> void tile(const Parts<E>& parts, index first_row, const E* panel, From<SumOf<E>> from,
                                           SumOf<E>* z, index z_stride, Ahead ahead) {
  using A = Arithmetic<E>;
  using V = Vec<SumOf<E>>;
  constexpr int N = V::lanes;
  V sum[M][W];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int c = 0; c < W; c++) sum[m][c] = V::load(from.at + m * from.stride + c * N);

  for (int p = 0; p < parts.count; p++) {
    const Walk& walk = parts.part[p].walk;
    const E* const* rows = parts.part[p].rows + first_row;
    for (index run = 0; run < walk.runs; run++) {
      const E* a[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) a[m] = rows[m] + walk.offset + run * walk.jump;
      const auto step = [&](index at) {
        // The fewer of the two kinds of vectors wait in registers, the others pass through one.
        if constexpr (M < W) {
          V scale[M];
#pragma GCC unroll 8
          for (int m = 0; m < M; m++) scale[m] = A::broadcast(a[m] + at);
#pragma GCC unroll 8
          for (int c = 0; c < W; c++) {
            const V w = A::load(panel + c * N);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) sum[m][c] = A::template multiply_add<M == 1>(scale[m], w, sum[m][c]);
          }
        } else {
          V w[W];
#pragma GCC unroll 8
          for (int c = 0; c < W; c++) w[c] = A::load(panel + c * N);
#pragma GCC unroll 8
          for (int m = 0; m < M; m++) {
            const V scale = A::broadcast(a[m] + at);
#pragma GCC unroll 8
            for (int c = 0; c < W; c++) sum[m][c] = A::template multiply_add<M == 1>(scale, w[c], sum[m][c]);
          }
        }
        panel += W * N;
      };
      constexpr int steps = steps_at_once(W), lines = M > 1 ? lines_ahead(W) : 0;  // one row has one tile a panel
      index at = 0;
      for (index groups = walk.count / steps; groups > 0; groups--) {
#pragma GCC unroll 8
        for (int line = 0; line < lines; line++) __builtin_prefetch(ahead.at + line * ahead.stride, 0, 2);
        if (ahead.stride > index{cache_line}) [[unlikely]] {
#pragma GCC unroll 8
          for (int line = 0; line < lines; line++)
            __builtin_prefetch(ahead.at + (2 * line + 1) * ahead.stride / 2, 0, 2);
        }
        ahead.at += lines * ahead.stride;
#pragma GCC unroll 8
        for (int i = 0; i < steps; i++, at += walk.stride) step(at);
      }
      for (index rest = walk.count % steps; rest > 0; rest--, at += walk.stride) step(at);
    }
  }

#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int c = 0; c < W; c++) sum[m][c].store(z + m * z_stride + c * N);
}

template <class E>
using TileFunction = void (*)(const Parts<E>&, index, const E*, From<SumOf<E>>, SumOf<E>*, index, Ahead);

template <class E> using TileTable = std::array<std::array<TileFunction<E>, most_width>, most_rows>;

// The tiles by rows and width, compiled once, in tiles.cpp.
template <class E> struct Tiles {
  static const TileTable<E> table;
};
extern template struct Tiles<float>;
extern template struct Tiles<double>;
extern template struct Tiles<Bfloat16Pair>;

// The tile for m rows and w vectors; null where their sums exceed the registers.
template <class E> TileFunction<E> tile_for(int m, int w) {
  return Tiles<E>::table[static_cast<std::size_t>(m - 1)][static_cast<std::size_t>(w - 1)];
}

constexpr index ceil_div(index n, index by) { return (n + by - 1) / by; }

// The stride by which a tile of w vectors brings `bytes` while it walks `length` elements.
inline index stride_ahead(index bytes, index length, index w) {
  return ceil_div(bytes, std::max<index>(length / steps_at_once(w) * lines_ahead(w), 1));
}

// n things in parts of at most `most`, as even as can be: the size of the next part.
constexpr index even_part(index n, index most) { return ceil_div(n, ceil_div(n, most)); }

// All these parts, to be had in any order: the larger ones come first. Few things are one part, at no division.
struct Cut {
  index begin, size;
};
class EvenCuts {
 public:
  constexpr EvenCuts(index n, index most)
      : count_(n <= most ? 1 : ceil_div(n, most)), least_(n <= most ? n : n / count_), larger_(n - count_ * least_) {}
  constexpr index count() const { return count_; }
  constexpr Cut operator[](index p) const {
    return {p * least_ + std::min(p, larger_), least_ + (p < larger_ ? 1 : 0)};
  }

 private:
  index count_, least_, larger_;
};

// How wide a panel should be when about `rows` rows meet it: few rows need many columns to keep the multipliers busy,
// and as many as one tile of three vectors takes need no second one (8 rows at H = 512: 0.95 of the peak, two tiles of
// four vectors 0.85).
constexpr index panel_width(index rows) {
  constexpr index widest_for_many = sums_in_registers >= 24 ? 4 : 3;
  if (rows < 1) return widest_for_many;
  const index least = rows <= rows_of_tile(3) ? 3 : widest_for_many;
  return std::clamp<index>(sums_in_registers / rows, least, most_width);
}

// A block of packed columns: a row of panels, each at most `width` vectors wide, [k][vector][lane], `length` elements
// long.
template <class E> struct Panels {
  const E* packed;
  index columns, width, length;
};

// z[r, c] = from[r, c] + Σ_k a[r, k] w[k, c] for all rows and all columns of a block; z has the columns' vectors side
// by side, rows `z_stride` numbers apart. The parts may walk a part of the panels' length, which begins at k = `first`.
// Panels may be taken from the last to the first.
template <class E> void multiply(const Parts<E>& parts, index row_count, const Panels<E>& panels, From<SumOf<E>> from,
                                 SumOf<E>* z, index z_stride, index first = 0, bool from_last = false) {
  constexpr index N = Vec<SumOf<E>>::lanes;
  if (row_count == 0 || panels.columns == 0) return;
  const index walked = parts.length();
  const EvenCuts cuts(panels.columns, panels.width);
  EvenCuts tiles(row_count, row_count);
  index width = 0, share = 0, stride = 0;
  for (index i = 0; i < cuts.count(); i++) {
    const auto [c, w] = cuts[from_last ? cuts.count() - 1 - i : i];
    const E* panel = panels.packed + (c * panels.length + first * w) * N;
    if (w != width) {
      width = w;
      tiles = EvenCuts(row_count, rows_of_tile(w));
      // Each tile brings its share of the panel that follows. One tile alone reads too fast for that to help.
      if (tiles.count() > 1) {
        share = ceil_div(walked * w * N * static_cast<index>(sizeof(E)), tiles.count());
        stride = stride_ahead(share, walked, w);
      }
    }
    const index next = panels.length * w * N;
    Ahead ahead{reinterpret_cast<const char*>(panel), 0};
    if (tiles.count() > 1) ahead = {reinterpret_cast<const char*>(from_last ? panel - next : panel + next), stride};
    for (index t = 0; t < tiles.count(); t++, ahead.at += share) {
      const auto [r, m] = tiles[t];
      tile_for<E>(static_cast<int>(m), static_cast<int>(w))(
          parts, r, panel, {from.at + r * from.stride + c * N, from.stride}, z + r * z_stride + c * N, z_stride, ahead);
    }
  }
}

}  // namespace rnnfast
