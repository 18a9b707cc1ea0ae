// Packed operands: what a tile reads in order, with the tails padded by zeros, here and nowhere else.
//
// A block of `columns` vectors is a row of panels, each at most `width` vectors wide and split as multiply() splits
// them; a panel is [k][vector][lane].
#pragma once

#include "tile.h"

namespace rnnfast {

// Calls f(c, offset, stride) for each vector column of a block: its k-th vector lies at offset + k * stride.
template <class E, class F> void for_each_column(index columns, index width, index length, F f) {
  constexpr index N = Vec<SumOf<E>>::lanes;
  const EvenCuts panels(columns, width);
  for (index p = 0; p < panels.count(); p++) {
    const auto [c, w] = panels[p];
    for (index i = 0; i < w; i++) f(c + i, (c * length + i) * N, w * N);
  }
}

// As many rows as a vector has lanes are more streams than a processor foresees: it is told so far ahead (measured with
// AVX-512 and one thread: LSTM's whole forward pass at 20 × (650, 650) 1.05 to 1.07 x as fast, at 20 × (1500, 1500)
// 1.1 x; four times further 1.04 and 1.08 x).
constexpr index bytes_asked_for = 256;

// to[k * stride + lane] = element k of row `lane` of a matrix, for the `valid` first lanes; the others zero. A row has
// `length` numbers. `for_others`: see Vec::store_for_others; whole lines only, which are not written one after the
// other.
template <class E> void pack_transposed(const SumOf<E>* from, index from_stride, index valid, index length, E* to,
                                        index stride, bool for_others = false) {
  using T = SumOf<E>;
  using Lanes = Vec<T>;  // of elements' bits: moved, never computed with
  constexpr int N = Lanes::lanes;
  static_assert(sizeof(E) == sizeof(T));
  const index whole = length / Arithmetic<E>::numbers, count = elements<E>(length);
  index k = 0;
  if (valid >= N) {
    for (; k + N <= whole; k += N) {
      Eigen::internal::PacketBlock<typename Lanes::Packet, N> block;
      for (int lane = 0; lane < N; lane++) {
        const T* row = from + lane * from_stride + k * Arithmetic<E>::numbers;
        __builtin_prefetch(reinterpret_cast<const char*>(row) + bytes_asked_for);
        if constexpr (Arithmetic<E>::numbers == 1) {
          block.packet[lane] = Lanes::load(row).p;
        } else {
          alignas(64) E pairs[N];
          to_elements<E>(row, N * Arithmetic<E>::numbers, pairs);
          block.packet[lane] = Lanes::load(reinterpret_cast<const T*>(pairs)).p;
        }
      }
      Eigen::internal::ptranspose(block);
      const bool past = for_others && sizeof(Lanes) == cache_line;
      for (int i = 0; i < N; i++) {
        T* at = reinterpret_cast<T*>(to + (k + i) * stride);
        past ? Lanes(block.packet[i]).store_for_others(at) : Lanes(block.packet[i]).store(at);
      }
    }
  }
  for (; k < count; k++)
    for (index lane = 0; lane < N; lane++)
      to[k * stride + lane] = lane < valid ? element<E>(from + lane * from_stride, length, k) : E{};
}

// The bits of a vector of elements, of one row or of a pair of rows.
template <class E, class VectorOf> Vec<SumOf<E>> element_vector(const VectorOf& vector, const SumOf<E>* const* rows) {
  if constexpr (Arithmetic<E>::numbers == 1) {
    return vector(rows[0]);
  } else {
    constexpr int N = Vec<SumOf<E>>::lanes;
    alignas(64) SumOf<E> even[N], odd[N];
    alignas(64) E pairs[N];
    vector(rows[0]).store(even), vector(rows[1]).store(odd);
    for (int lane = 0; lane < N; lane++) pairs[lane] = make_pair(even[lane], odd[lane]);
    return Vec<SumOf<E>>::load(reinterpret_cast<const SumOf<E>*>(pairs));
  }
}

// Vector c of the k-th row of a block of columns = row(k)[c N …], for rows [first, first + count) of panels that are
// `length` rows long. A row has `valid` numbers, the others are zero; a null row is all zeros. A pair takes its terms
// from rows 2k and 2k + 1. Some rows at a time, so that each is read from end to end. `for_others`: see
// Vec::store_for_others.
template <class E, class Row> void pack_rows(Row row, index valid, index columns, index width, index length,
                                             index first, index count, E* to, bool for_others = false) {
  using T = SumOf<E>;
  constexpr int N = Vec<T>::lanes, numbers = Arithmetic<E>::numbers;
  constexpr index together = 16;
  const EvenCuts panels(columns, width);
  for (index k = 0; k < count; k += together) {
    const index some = std::min(together, count - k);
    const T* rows[together * numbers];
    for (index i = 0; i < some * numbers; i++) rows[i] = row(k * numbers + i);
    for (index p = 0; p < panels.count(); p++) {
      const auto [begin, w] = panels[p];
      E* at = to + (begin * length + (first + k) * w) * N;
      const auto put = [&](index i, index c, const auto& load) {
        const Vec<T> packed = element_vector<E>([&](const T* from) { return load(from, c * N); }, rows + i * numbers);
        T* lanes = reinterpret_cast<T*>(at + (i * w + c - begin) * N);
        for_others ? packed.store_for_others(lanes) : packed.store(lanes);
      };
      for (index i = 0; i < some; i++) {
        bool is_there = true;
        for (index q = 0; q < numbers; q++) is_there = is_there && rows[i * numbers + q];
        const index whole = is_there ? std::clamp(valid / N, begin, begin + w) : begin;
        for (index c = begin; c < whole; c++)
          put(i, c, [](const T* from, index at) { return Vec<T>::load(from + at); });
        for (index c = whole; c < begin + w; c++)
          put(i, c, [&](const T* from, index at) {
            return from ? Vec<T>::load_first(from + at, static_cast<int>(std::clamp<index>(valid - at, 0, N)))
                        : Vec<T>(T(0));
          });
      }
    }
  }
}

}  // namespace rnnfast
