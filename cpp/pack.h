// Packed operands: what a tile reads in order, with the tails padded by zeros, here and nowhere else.
//
// A block of `columns` vectors is a row of panels, each at most `width` vectors wide and split as multiply() splits
// them; a panel is [k][vector][lane].
#pragma once

#include "tile.h"

namespace rnnfast {

// Calls f(c, offset, stride) for each vector column of a block: its k-th vector lies at offset + k * stride.
template <class T, class F> void for_each_column(index columns, index width, index length, F f) {
  constexpr index N = Vec<T>::lanes;
  for (index c = 0; c < columns;) {
    const index w = even_part(columns - c, width);
    for (index i = 0; i < w; i++) f(c + i, (c * length + i) * N, w * N);
    c += w;
  }
}

// to[k * stride + lane] = from[lane * from_stride + k] for the `valid` first lanes; the others zero.
template <class T>
void pack_transposed(const T* from, index from_stride, index valid, index length, T* to, index stride) {
  constexpr int N = Vec<T>::lanes;
  index k = 0;
  if (valid >= N) {
    for (; k + N <= length; k += N) {
      Eigen::internal::PacketBlock<typename Vec<T>::Packet, N> block;
      for (int lane = 0; lane < N; lane++) block.packet[lane] = Vec<T>::load(from + lane * from_stride + k).p;
      Eigen::internal::ptranspose(block);
      for (int i = 0; i < N; i++) Vec<T>(block.packet[i]).store(to + (k + i) * stride);
    }
  }
  for (; k < length; k++)
    for (index lane = 0; lane < N; lane++) to[k * stride + lane] = lane < valid ? from[lane * from_stride + k] : T(0);
}

// to[k * stride + lane] = row(k)[lane] for the `valid` first lanes; the others zero. A null row is all zeros.
template <class T, class Row> void pack_rows(Row row, index valid, index length, T* to, index stride) {
  constexpr int N = Vec<T>::lanes;
  const int n = static_cast<int>(valid < N ? valid : N);
  for (index k = 0; k < length; k++) {
    const T* from = row(k);
    (from ? Vec<T>::load_first(from, n) : Vec<T>(T(0))).store(to + k * stride);
  }
}

}  // namespace rnnfast
