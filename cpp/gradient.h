// The gradient of a weight matrix: dW[g, f] = sum over rows of dz[row, g] v[row, f], the rows in the order in which the
// caller adds them, one running sum an element, whatever the threads and however the rows are cut into chunks.
#pragma once

#include "memory.h"
#include "weights.h"

namespace rnnfast {

// dz of a chunk of rows: [vector of units][row][accumulator][lane], `rows` rows in all.
template <class T> struct DzView {
  const T* data;
  index rows, accumulators;

  index row_stride() const { return accumulators * Vec<T>::lanes; }
  const T* at(index v, index row) const { return data + (v * rows + row) * row_stride(); }
};

// How a sum and the caller's array meet. At the end it is added; a sum that goes on in the next call is handed over as
// it is, and taken up again, so that it rounds as if it had never been interrupted.
struct AddSum {
  template <class T> void operator()(T& caller, T& sum) const { caller += sum; }
};
struct HandOver {
  template <class T> void operator()(T& caller, T& sum) const { caller = sum; }
};
struct TakeUp {
  template <class T> void operator()(T& caller, T& sum) const { sum = caller; }
};

template <class T> class WeightGradient {
 public:
  WeightGradient() = default;
  WeightGradient(Feed feed, index hidden, index features, index most_rows)
      : feed_(std::move(feed)), hidden_(hidden), features_(features),
        sum_({(hidden + N - 1) / N, feed_.count() * N, columns(), N}), operand_({columns(), N, most_rows}) {
    sum_.fill(T(0));
  }

  index columns() const { return (features_ + N - 1) / N; }

  // Packs columns [first, last) of v for a chunk of rows.
  void pack(const T* const* v, index row_count, index first, index last) {
    for_each_column<T>(columns(), width, row_count, [&](index c, index offset, index stride) {
      if (c < first || c >= last) return;
      pack_rows([&](index k) { return v[k] + c * N; }, features_ - c * N, row_count, operand_.get() + offset, stride);
    });
  }

  // Adds rows [first_row, first_row + row_count) of dz times the packed rows, for vectors [first, last) of units.
  // Columns go in groups whose packed rows stay in the level-2 cache while dz passes by.
  void add(const DzView<T>& dz, index first_row, index row_count, index first, index last) const {
    const index most =
        std::max(width, bytes_of_group / (static_cast<index>(sizeof(T)) * N * std::max<index>(row_count, 1)));
    for (index begin = 0, end; begin < columns(); begin = end) {
      end = begin;
      while (end < columns() && end - begin < most) end += panel_at(end);
      for (index v = first; v < last; v++)
        for (index done = 0; done < row_count; done += rows_at_once) {
          const index rows = std::min(rows_at_once, row_count - done);
          for (index c = begin; c < end; c += panel_at(c))
            add_panel(dz, v, first_row + done, rows, operand_.get() + (c * row_count + done * panel_at(c)) * N, c,
                      panel_at(c));
        }
    }
  }

  // meet(dW[row, f], its sum) for rows [first, last) of (G H): see SumsMeet.
  template <class Meet> void exchange(T* dweights, index first, index last, Meet meet) const {
    for (index row = first; row < last; row++) {
      const index i = row / hidden_, unit = row % hidden_;
      T* weight = dweights + (feed_.gates[i] * hidden_ + unit) * features_;
      for (index c = 0; c < columns(); c += panel_at(c)) {
        T* of_panel = sum(unit / N, c) + (i * N + unit % N) * panel_at(c) * N;
        const index end = std::min((c + panel_at(c)) * N, features_);
        for (index f = c * N; f < end; f++) meet(weight[f], *of_panel++);
      }
    }
  }
  index rows() const { return feed_.count() * hidden_; }

 private:
  static constexpr index N = Vec<T>::lanes;
  // Tile rows are lanes of one accumulator, so their number divides N; panels take the rest of the registers.
  static constexpr int tile_rows = N < rows_of_tile(3) ? static_cast<int>(N) : rows_of_tile(3);
  static constexpr index width = std::min(sums_in_registers / tile_rows, most_width);
  // Rows whose dz and operand panel share the level-1 cache.
  static constexpr index rows_at_once = 128;
  static constexpr index bytes_of_group = 192 * 1024;

  index panel_at(index c) const { return even_part(columns() - c, width); }
  // The sums of a vector of units and a panel of columns lie together: [accumulator][lane][column], padding and all.
  T* sum(index v, index c) const { return sum_.get() + (v * columns() + c) * feed_.count() * N * N; }

  void add_panel(const DzView<T>& dz, index v, index row, index rows, const T* panel, index c, index w) const {
    const Walk walk{rows, dz.row_stride()};
    const T* from = dz.at(v, row) + feed_.first * N;
    T* to = sum(v, c);
    for (index lane = 0; lane < feed_.count() * N; lane += tile_rows) {
      const T* pointers[tile_rows];
      for (int k = 0; k < tile_rows; k++) pointers[k] = from + lane + k;
      T* sums = to + lane * w * N;
      tile_for<T>(tile_rows, static_cast<int>(w))(pointers, walk, panel, sums, w * N, next_sums(sums, w, walk));
    }
  }

  static Ahead next_sums(const T* sums, index w, const Walk& walk) {
    const index size = tile_rows * w * N;
    return {reinterpret_cast<const char*>(sums + size), stride_ahead(size * static_cast<index>(sizeof(T)), walk)};
  }

  Feed feed_;
  index hidden_ = 0, features_ = 0;
  Buffer<T> sum_, operand_;
};

// The gradients of the biases: dz summed over rows in the same order, an accumulator each.
template <class T> class BiasGradient {
 public:
  BiasGradient() = default;
  BiasGradient(index accumulators, index hidden)
      : hidden_(hidden), accumulators_(accumulators), sum_({(hidden + N - 1) / N, accumulators, N}) {
    sum_.fill(T(0));
  }

  void add(const DzView<T>& dz, index first_row, index row_count, index first, index last) const {
    for (index v = first; v < last; v++)
      for (index a = 0; a < accumulators_; a++) {
        T* to = sum_.get() + (v * accumulators_ + a) * N;
        Vec<T> sum = Vec<T>::load(to);
        for (index row = first_row; row < first_row + row_count; row++) sum = sum + Vec<T>::load(dz.at(v, row) + a * N);
        sum.store(to);
      }
  }

  template <class Meet> void exchange(const Feed& feed, T* dbias, Meet meet) const {
    for (index i = 0; i < feed.count(); i++)
      for (index unit = 0; unit < hidden_; unit++)
        meet(dbias[feed.gates[i] * hidden_ + unit],
             sum_.get()[((unit / N) * accumulators_ + feed.first + i) * N + unit % N]);
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  index hidden_ = 0, accumulators_ = 0;
  Buffer<T> sum_;
};

// The gradients of the weights that a unit has for itself: dz of an accumulator times a state, summed over rows in the
// same order.
template <class T> class UnitWeightGradient {
 public:
  UnitWeightGradient() = default;
  UnitWeightGradient(std::vector<UnitWeight> weights, index hidden)
      : weights_(std::move(weights)), hidden_(hidden), sum_({count(), (hidden + N - 1) / N, N}) {
    sum_.fill(T(0));
  }

  index count() const { return static_cast<index>(weights_.size()); }
  const UnitWeight& operator[](index k) const { return weights_[static_cast<std::size_t>(k)]; }

  // states[row]: the state (H,) that weight k meets in a row of the chunk.
  void add(index k, const DzView<T>& dz, index first_row, const T* const* states, index row_count, index first,
           index last) const {
    const index a = weights_[static_cast<std::size_t>(k)].accumulator;
    for (index v = first; v < last; v++) {
      const int n = static_cast<int>(std::min(hidden_ - v * N, N));
      T* to = sum_.get() + (k * ((hidden_ + N - 1) / N) + v) * N;
      Vec<T> sum = Vec<T>::load(to);
      for (index row = 0; row < row_count; row++)
        sum = fma(Vec<T>::load(dz.at(v, first_row + row) + a * N), Vec<T>::load_first(states[row] + v * N, n), sum);
      sum.store(to);
    }
  }

  template <class Meet> void exchange(index k, T* dweight, Meet meet) const {
    T* sums = sum_.get() + k * ((hidden_ + N - 1) / N) * N;
    for (index unit = 0; unit < hidden_; unit++) meet(dweight[unit], sums[unit]);
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  std::vector<UnitWeight> weights_;
  index hidden_ = 0;
  Buffer<T> sum_;
};

}  // namespace rnnfast
