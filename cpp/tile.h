// The one product that everything here is made of:
//
//   z[m, c] += sum over k of a[m, k] w[k, c]        m < M rows, c < W vectors of N lanes
//
// with all M W sums in registers. a is broadcast number by number through a pointer per row, so rows may lie anywhere:
// batch order, batch_first, a reversed direction, a reset state and a transposed operand are pointers, not copies. w is
// a packed panel (see pack.h). A sum is one chain of fused multiply-adds in the order of k whatever M and W are, and
// may be stored and taken up again at any k: that is what makes a result the same to the bit in every plan.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "simd.h"

namespace rnnfast {

// How a row of a is read: `runs` runs, `jump` apart, each of `count` numbers, `stride` apart. K = runs * count.
struct Walk {
  index count = 0;
  index stride = 1;
  index runs = 1;
  index jump = 0;
  index offset = 0;  // of the first number from the row's pointer

  index length() const { return count * runs; }
};

// A third of the registers (a quarter of 16) stays free for the panel's vectors and the broadcast row.
constexpr int sums_in_registers = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 24 : 12;
constexpr int most_rows = 8;   // a row costs a pointer register
constexpr int most_width = 8;  // enough chains in flight for one row

constexpr bool tile_exists(int m, int w) { return m <= most_rows && w <= most_width && m * w <= sums_in_registers; }
constexpr int rows_of_tile(int w) { return sums_in_registers / w < most_rows ? sums_in_registers / w : most_rows; }

// Bytes that will be read next, brought into the level-2 cache meanwhile: from `at` on, `stride` apart, so many of them
// for every `steps_at_once` numbers k. What comes from further away hides behind the arithmetic only if it is asked for
// early.
struct Ahead {
  const char* at;
  index stride;
};
constexpr int steps_at_once = 4;
constexpr int lines_ahead = sums_in_registers / 6;

template <int M, int W, class T>
void tile(const T* const* rows, const Walk& walk, const T* panel, T* z, index z_stride, Ahead ahead) {
  using V = Vec<T>;
  constexpr int N = V::lanes;
  V sum[M][W];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int c = 0; c < W; c++) sum[m][c] = V::load(z + m * z_stride + c * N);

  for (index run = 0; run < walk.runs; run++) {
    const T* a[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) a[m] = rows[m] + walk.offset + run * walk.jump;
    const auto step = [&](index at) {
      // The fewer of the two kinds of vectors wait in registers, the others pass through one.
      if constexpr (M < W) {
        V scale[M];
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) scale[m] = V::broadcast(a[m] + at);
#pragma GCC unroll 8
        for (int c = 0; c < W; c++) {
          const V w = V::load(panel + c * N);
#pragma GCC unroll 8
          for (int m = 0; m < M; m++) sum[m][c] = fma(scale[m], w, sum[m][c]);
        }
      } else {
        V w[W];
#pragma GCC unroll 8
        for (int c = 0; c < W; c++) w[c] = V::load(panel + c * N);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const V scale = V::broadcast(a[m] + at);
#pragma GCC unroll 8
          for (int c = 0; c < W; c++) sum[m][c] = fma(scale, w[c], sum[m][c]);
        }
      }
      panel += W * N;
    };
    index k = 0, at = 0;
    for (; k + steps_at_once <= walk.count; k += steps_at_once) {
#pragma GCC unroll 8
      for (int line = 0; line < lines_ahead; line++, ahead.at += ahead.stride) __builtin_prefetch(ahead.at, 0, 2);
#pragma GCC unroll 8
      for (int i = 0; i < steps_at_once; i++, at += walk.stride) step(at);
    }
    for (; k < walk.count; k++, at += walk.stride) step(at);
  }

#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int c = 0; c < W; c++) sum[m][c].store(z + m * z_stride + c * N);
}

template <class T> using TileFunction = void (*)(const T* const*, const Walk&, const T*, T*, index, Ahead);

namespace detail {
template <class T, int M, int W> constexpr TileFunction<T> tile_or_null() {
  if constexpr (tile_exists(M, W)) {
    return tile<M, W, T>;
  } else {
    return nullptr;
  }
}
template <class T, int M, int... W> constexpr auto tile_row(std::integer_sequence<int, W...>) {
  return std::array<TileFunction<T>, sizeof...(W)>{tile_or_null<T, M + 1, W + 1>()...};
}
template <class T, int... M> constexpr auto tile_table(std::integer_sequence<int, M...>) {
  return std::array<std::array<TileFunction<T>, most_width>, sizeof...(M)>{
      tile_row<T, M>(std::make_integer_sequence<int, most_width>{})...};
}
}  // namespace detail

// The tile for m rows and w vectors; null where their sums exceed the registers.
template <class T> TileFunction<T> tile_for(int m, int w) {
  static constexpr auto table = detail::tile_table<T>(std::make_integer_sequence<int, most_rows>{});
  return table[m - 1][w - 1];
}

constexpr index ceil_div(index n, index by) { return (n + by - 1) / by; }

// The stride by which a tile brings `bytes` on its walk.
inline index stride_ahead(index bytes, const Walk& walk) {
  return ceil_div(bytes, std::max<index>(walk.length() / steps_at_once * lines_ahead, 1));
}

// n things in parts of at most `most`, as even as can be: the size of the next part.
constexpr index even_part(index n, index most) { return ceil_div(n, ceil_div(n, most)); }

// How wide a panel should be when about `rows` rows meet it: few rows need many columns to keep the multipliers busy.
constexpr index panel_width(index rows) {
  constexpr index widest_for_many = sums_in_registers >= 24 ? 4 : 3;
  if (rows < 1) return widest_for_many;
  const index fits = sums_in_registers / rows;
  return fits < widest_for_many ? widest_for_many : fits < most_width ? fits : most_width;
}

// z[r, c] += a[r, :] w[:, c] for all rows and all `columns` vectors of a block packed in panels of at most `width`
// vectors; z has `columns` vectors a row, `z_stride` numbers apart. The walk may be a part of the panels' `whole`
// length that begins at its k = `first`.
template <class T> void multiply(const T* const* rows, index row_count, const Walk& walk, const T* packed,
                                 index columns, index width, T* z, index z_stride, index whole, index first = 0) {
  constexpr index N = Vec<T>::lanes;
  if (row_count == 0) return;
  for (index c = 0; c < columns;) {
    const index w = even_part(columns - c, width);
    const index most = rows_of_tile(static_cast<int>(w));
    const index tiles = ceil_div(row_count, most);
    const T* panel = packed + first * w * N;
    // Each tile brings its share of the panel that follows. One tile alone reads too fast for that to help.
    const index share = ceil_div(walk.length() * w * N * static_cast<index>(sizeof(T)), tiles);
    Ahead ahead{reinterpret_cast<const char*>(panel), 0};
    if (tiles > 1) ahead = {reinterpret_cast<const char*>(panel + whole * w * N), stride_ahead(share, walk)};
    for (index r = 0; r < row_count;) {
      const index m = even_part(row_count - r, most);
      tile_for<T>(static_cast<int>(m), static_cast<int>(w))(rows + r, walk, panel, z + r * z_stride + c * N, z_stride,
                                                            ahead);
      if (tiles > 1) ahead.at += share;
      r += m;
    }
    packed += w * N * whole;
    c += w;
  }
}

}  // namespace rnnfast
