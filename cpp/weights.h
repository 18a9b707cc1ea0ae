// The weights of a layer as its products read them, packed once a call.
#pragma once

#include <limits>
#include <vector>

#include "cell.h"
#include "memory.h"
#include "pack.h"
#include "threads.h"

namespace rnnfast {

// The accumulators that one of the two products adds to, which stand side by side.
struct Feed {
  index first = 0;
  std::vector<index> gates;  // whose rows of the weights

  index count() const { return static_cast<index>(gates.size()); }
};

inline Feed feed_of(const std::vector<Accumulator>& accumulators, int Accumulator::* product) {
  Feed feed;
  for (index a = 0; a < static_cast<index>(accumulators.size()); a++) {
    if (accumulators[a].*product == none) continue;
    if (feed.gates.empty()) feed.first = a;
    feed.gates.push_back(accumulators[a].*product);
  }
  return feed;
}

// A weight matrix (G H, K) for z = W v: columns are units, block by block of them.
template <class T> class PackedRows {
 public:
  PackedRows() = default;
  PackedRows(Feed feed, index hidden, index length, index width)
      : feed_(std::move(feed)), hidden_(hidden), length_(length), width_(width),
        data_({(hidden + N - 1) / N, feed_.count(), N, length}) {}

  // Packs the block of `vectors` vectors of units that begins at vector v.
  void pack(const T* weights, index v, index vectors) {
    T* to = block(v);
    for_each_column<T>(feed_.count() * vectors, width_, length_, [&](index c, index offset, index stride) {
      const index unit = (v + c % vectors) * N;
      const T* from = weights + (feed_.gates[c / vectors] * hidden_ + unit) * length_;
      pack_transposed(from, length_, hidden_ - unit, length_, to + offset, stride);
    });
  }

  // z of these rows += their product with the block, into the accumulators that it feeds.
  void multiply_into(const T* const* rows, index row_count, index v, index vectors, T* z, index z_stride) const {
    multiply(rows, row_count, Walk{length_}, block(v), feed_.count() * vectors, width_, z + feed_.first * vectors * N,
             z_stride, length_);
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  T* block(index v) const { return data_.get() + v * feed_.count() * N * length_; }

  Feed feed_;
  index hidden_ = 0, length_ = 0, width_ = 0;
  Buffer<T> data_;
};

// The same matrix for dv = Wᵀ dz: columns are the K features, k runs over dz as the backward driver lays it out: vector
// of units, accumulator, lane.
template <class T> class PackedColumns {
 public:
  PackedColumns() = default;
  // In blocks of two panels, so that the last ones share what is left, but of no more than `most` columns.
  PackedColumns(Feed feed, index hidden, index features, index width, index most = std::numeric_limits<index>::max())
      : feed_(std::move(feed)), hidden_(hidden), features_(features), width_(width), block_(std::min(2 * width, most)),
        data_({columns(), N, length()}) {}

  index columns() const { return (features_ + N - 1) / N; }
  index blocks() const { return (columns() + block_ - 1) / block_; }
  index column_of(index j) const { return j * block_; }
  index columns_of(index j) const { return columns_of({j, j + 1}); }
  index columns_of(Range blocks) const {
    return std::min(column_of(blocks.end), columns()) - std::min(column_of(blocks.begin), columns());
  }
  Range all_blocks() const { return {0, blocks()}; }

  void pack(const T* weights, index j) {
    for_each_column<T>(columns_of(j), width_, length(), [&](index c, index offset, index stride) {
      const index feature = (column_of(j) + c) * N;
      const auto row = [&](index k) -> const T* {
        const index lane = k % N, a = k / N % feed_.count(), unit = k / N / feed_.count() * N + lane;
        return unit < hidden_ ? weights + (feed_.gates[a] * hidden_ + unit) * features_ + feature : nullptr;
      };
      pack_rows(row, features_ - feature, length(), block(j) + offset, stride);
    });
  }

  // dv of these rows of dz = their product with `blocks`, side by side from dv on. A row's vectors of units lie `jump`
  // numbers apart. Some units at a time, so that their part of dz stays in a cache while the weights pass by.
  void multiply_into(const T* const* rows, index row_count, index jump, Range blocks, T* dv, index dv_stride) const {
    const index unit_length = feed_.count() * N, first = blocks.begin < blocks.end ? column_of(blocks.begin) : 0;
    for (index r = 0; r < row_count; r++) std::fill_n(dv + r * dv_stride, columns_of(blocks) * N, T(0));
    if (feed_.gates.empty()) return;
    for (index u = 0; u < units();) {
      const index count = even_part(units() - u, units_at_once());
      const Walk walk{unit_length, 1, count, jump, u * jump + feed_.first * N};
      for (index j = blocks.begin; j < blocks.end; j++)
        multiply(rows, row_count, walk, block(j), columns_of(j), width_, dv + (column_of(j) - first) * N, dv_stride,
                 length(), u * unit_length);
      u += count;
    }
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  static constexpr index length_in_cache = 256;
  // As many vectors of units as make a panel that stays in the level-1 cache.
  index units_at_once() const { return std::max<index>(1, length_in_cache / (feed_.count() * N)); }
  index units() const { return (hidden_ + N - 1) / N; }
  index length() const { return units() * feed_.count() * N; }
  T* block(index j) const { return data_.get() + column_of(j) * N * length(); }

  Feed feed_;
  index hidden_ = 0, features_ = 0, width_ = 0, block_ = 1;
  Buffer<T> data_;
};

}  // namespace rnnfast
