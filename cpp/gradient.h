// The gradient of a weight matrix: dW[g, f] = sum over rows of dz[row, g] v[row, f], the rows in the order in which the
// caller adds them, one running sum an element, whatever the threads and however the rows are cut into chunks.
#pragma once

#include "memory.h"
#include "weights.h"

namespace rnnfast {

// dz of a chunk of rows: [vector of units][row][accumulator][lane], `rows` rows in all. Of pairs, a row holds two.
template <class E> struct DzView {
  const E* data;
  index rows, accumulators;

  index row_stride() const { return accumulators * Vec<SumOf<E>>::lanes; }
  const E* at(index v, index row) const { return data + (v * rows + row) * row_stride(); }
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

// A tile's rows are lanes of dz, and its panel are features; where features would fill less than half of a vector, it
// is the other way round.
template <class E> class WeightGradient {
  using T = SumOf<E>;

 public:
  WeightGradient() = default;
  // Of a matrix (G H, columns) that meets an operand of groups · columns numbers, and dz of so many accumulators.
  WeightGradient(Feed feed, index accumulators, index hidden, Matrix<T> matrix, index most_rows)
      : feed_(std::move(feed)), accumulators_(accumulators), hidden_(hidden), features_(matrix.columns),
        groups_(matrix.groups), group_vectors_(ceil_div(hidden / matrix.groups, N)), panels_(columns(), width),
        operand_({groups_, columns(), N, most_rows}) {}

  // How many sums it has, and where they are to lie.
  index sums() const { return checked_product({ceil_div(hidden_, N), sums_a_vector()}); }
  void place(T* sums) { sum_ = sums; }

  // Multiply-adds of a vector of units and so many rows.
  double work(index row_count) const { return static_cast<double>(row_count) * static_cast<double>(sums_a_vector()); }

  // Packs v from the `first` of a chunk's `row_count` rows on; of pairs, v[2k] and v[2k + 1] make the k-th.
  // `for_others`: other threads add them too.
  void pack(const T* const* v, index first, index count, index row_count, bool for_others, Signals& signals) {
    constexpr index together = 64, numbers = Arithmetic<E>::numbers;
    for (index k = 0; k < count; k += together) {
      const index some = std::min(together, count - k);
      if (signals.stop(static_cast<double>(some * groups_ * columns() * N))) return;
      for (index g = 0; g < groups_; g++) {
        const auto row = [&](index i) { return v[k * numbers + i] ? v[k * numbers + i] + g * features_ : nullptr; };
        pack_rows<E>(row, features_, columns(), width, row_count, first + k, some, operand(g, row_count), for_others);
      }
    }
  }

  // Adds the first rows of dz times the packed rows, for some vectors of units, to their sums or, where these begin, to
  // zero. Columns go in groups whose packed rows stay in the level-2 cache while dz passes by.
  void add(const DzView<E>& dz, index row_count, Range vectors, bool begins, Signals& signals) const {
    const index most =
        std::max(width, bytes_in_cache / (static_cast<index>(sizeof(E)) * N * std::max<index>(row_count, 1)));
    for (index begin = 0, end; begin < panels_.count(); begin = end) {
      index together = 0;  // columns
      for (end = begin; end < panels_.count() && together < most; end++) together += panels_[end].size;
      for (index v = vectors.begin; v < vectors.end; v++) {
        if (signals.stop(work(row_count) * static_cast<double>(together) / static_cast<double>(columns()))) return;
        const E* packed = operand(v / group_vectors_, row_count);
        for (index done = 0, rows; done < row_count; done += rows) {
          rows = even_part(row_count - done, rows_at_once);
          for (index p = begin; p < end; p++) {
            const auto [c, w] = panels_[p];
            const E* panel = packed + (c * row_count + done * w) * N;
            const bool from_zero = begins && done == 0;
            few_features() ? add_features(dz, v, done, rows, panel, from_zero)
                           : add_panel(dz, v, done, rows, panel, c, w, from_zero);
          }
        }
      }
    }
  }

  // meet(dW[row, f], its sum) for the rows of some vectors of units, `meet` one of the above. A row of the caller's may
  // have only a part of a group's columns, `row_columns` of them: those of the unit's own head.
  template <class Meet> void exchange(T* dweights, Range vectors, Meet meet, index row_columns = 0) const {
    if (row_columns == 0) row_columns = features_;
    for (index v = vectors.begin; v < vectors.end; v++)
      for (index i = 0; i < feed_.count(); i++)
        for (index lane = 0; lane < std::min(N, hidden_ - v * N); lane++) {
          const index unit = v * N + lane;
          T* weight = dweights + (feed_.gates[static_cast<std::size_t>(i)] * hidden_ + unit) * row_columns;
          const index begin =
              groups_ == 1 && row_columns == features_ ? 0 : unit % features_ / row_columns * row_columns;
          exchange_row(weight, v, i, lane, {begin, begin + row_columns}, meet);
        }
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  // Tile rows are lanes of one accumulator, so their number divides N; panels take the rest of the registers.
  static constexpr int tile_rows = N < rows_of_tile(3) ? static_cast<int>(N) : rows_of_tile(3);
  static constexpr index width = std::min(sums_in_registers / tile_rows, most_width);
  // Rows that are added together, so that sums are loaded and stored once for most chunks: where they come from beyond
  // the level-2 cache, that costs more than a panel that exceeds the level-1 cache (measured with one thread: backward
  // 1.01 to 1.03 x as fast as with 128 rows).
  static constexpr index rows_at_once = 320;
  static constexpr index bytes_in_cache = 192 * 1024;

  bool few_features() const { return 2 * features_ <= N && groups_ == 1 && accumulators_ <= most_width; }
  index sums_a_vector() const {  // of units
    return few_features() ? features_ * accumulators_ * N : feed_.count() * N * columns() * N;
  }
  index columns() const { return ceil_div(features_, N); }  // vectors, of a group
  E* operand(index g, index row_count) const { return operand_.get() + g * columns() * N * row_count; }
  // The sums of a vector of units and a panel of columns lie together: [accumulator][lane][column], padding and all.
  T* sum(index v, index c) const { return sum_ + v * sums_a_vector() + c * feed_.count() * N * N; }

  // Of all accumulators, those too that the feed leaves out: [feature][accumulator][lane].
  void add_features(const DzView<E>& dz, index v, index row, index rows, const E* packed, bool from_zero) const {
    const index w = accumulators_, stride = w * N;
    for (index f = 0; f < features_;) {
      const index m = even_part(features_ - f, rows_of_tile(w));
      const E* pointers[most_rows];
      for (index i = 0; i < m; i++) pointers[i] = packed + f + i;
      T* sums = sum_ + v * sums_a_vector() + f * stride;
      const E* panel = dz.at(v, row);
      tile_for<E>(static_cast<int>(m), static_cast<int>(w))(Parts<E>(pointers, Walk{rows, N}), 0, panel,
                                                            from(sums, stride, from_zero), sums, stride,
                                                            {reinterpret_cast<const char*>(panel), 0});
      f += m;
    }
  }

  void add_panel(const DzView<E>& dz, index v, index row, index rows, const E* panel, index c, index w,
                 bool from_zero) const {
    const Walk walk{rows, dz.row_stride()};
    const E* dz_row = dz.at(v, row) + feed_.first * N;
    T* to = sum(v, c);
    const index size = tile_rows * w * N, stride = stride_ahead(size * static_cast<index>(sizeof(T)), rows, w);
    for (index lane = 0; lane < feed_.count() * N; lane += tile_rows) {
      if (v * N + lane % N >= hidden_) continue;  // no unit's
      const E* pointers[tile_rows];
      for (int k = 0; k < tile_rows; k++) pointers[k] = dz_row + lane + k;
      T* sums = to + lane * w * N;
      tile_for<E>(tile_rows, static_cast<int>(w))(Parts<E>(pointers, walk), 0, panel, from(sums, w * N, from_zero),
                                                  sums, w * N, {reinterpret_cast<const char*>(sums + size), stride});
    }
  }

  // Of some columns, which begin at weight[0].
  template <class Meet>
  void exchange_row(T* weight, index v, index i, index lane, Range columns_of_row, const Meet& meet) const {
    const auto [begin, end] = columns_of_row;
    if (few_features()) {
      T* of_unit = sum_ + v * sums_a_vector() + (feed_.first + i) * N + lane;
      for (index f = begin; f < end; f++) meet(weight[f - begin], of_unit[f * accumulators_ * N]);
      return;
    }
    for (index p = 0; p < panels_.count(); p++) {
      const auto [c, w] = panels_[p];
      T* of_panel = sum(v, c) + (i * N + lane) * w * N - c * N;
      for (index f = std::max(c * N, begin); f < std::min((c + w) * N, end); f++) meet(weight[f - begin], of_panel[f]);
    }
  }

  static From<T> from(const T* sums, index stride, bool from_zero) {
    alignas(cache_line) static constexpr T zeros[most_width * N] = {};
    return from_zero ? From<T>{zeros, 0} : From<T>{sums, stride};
  }

  Feed feed_;
  index accumulators_ = 0, hidden_ = 0, features_ = 0, groups_ = 1, group_vectors_ = 1;
  EvenCuts panels_{0, width};
  T* sum_ = nullptr;
  Buffer<E> operand_;
};

// Sums over rows that run side by side: alone, every addition would wait for the one before.
constexpr index sums_together = 4;

// The gradients of the biases: dz summed over rows in the same order, an accumulator each.
template <class T> class BiasGradient {
 public:
  BiasGradient() = default;
  BiasGradient(index accumulators, index hidden)
      : hidden_(hidden), accumulators_(accumulators), sum_({(hidden + N - 1) / N, accumulators, N}) {
    sum_.fill(T(0));
  }

  void add(const DzView<T>& dz, index row_count, Range vectors) const {
    const auto [first, last] = vectors;
    const index end = last * accumulators_;
    for (index k = first * accumulators_; k < end; k += sums_together) {
      const T* at[sums_together];
      Vec<T> sum[sums_together];
      for (index i = 0; i < sums_together; i++) {
        const index q = std::min(k + i, end - 1);  // some twice, where fewer are left
        at[i] = dz.at(q / accumulators_, 0) + q % accumulators_ * N;
        sum[i] = Vec<T>::load(sum_.get() + q * N);
      }
      for (index row = 0; row < row_count; row++)
        for (index i = 0; i < sums_together; i++) sum[i] = sum[i] + Vec<T>::load(at[i] + row * dz.row_stride());
      for (index i = 0; i < sums_together && k + i < end; i++) sum[i].store(sum_.get() + (k + i) * N);
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
  void add(index k, const DzView<T>& dz, const T* const* states, Range rows, Range vectors) const {
    const auto [first, last] = vectors;
    const index a = weights_[static_cast<std::size_t>(k)].accumulator;
    T* sums = sums_of(k);
    for (index v = first; v < last; v += sums_together) {
      const T* at[sums_together];
      index unit[sums_together];
      Vec<T> sum[sums_together];
      for (index i = 0; i < sums_together; i++) {
        const index q = std::min(v + i, last - 1);
        at[i] = dz.at(q, 0) + a * N;
        unit[i] = q * N;
        sum[i] = Vec<T>::load(sums + q * N);
      }
      for (index row = rows.begin; row < rows.end; row++)
        for (index i = 0; i < sums_together; i++) {
          const int n = static_cast<int>(std::min(hidden_ - unit[i], N));
          const Vec<T> state = Vec<T>::load_first(states[row] + unit[i], n);
          sum[i] = fma(Vec<T>::load(at[i] + row * dz.row_stride()), state, sum[i]);
        }
      for (index i = 0; i < sums_together && v + i < last; i++) sum[i].store(sums + (v + i) * N);
    }
  }

  template <class Meet> void exchange(index k, T* dweight, Meet meet) const {
    T* sums = sums_of(k);
    for (index unit = 0; unit < hidden_; unit++) meet(dweight[unit], sums[unit]);
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  T* sums_of(index k) const { return sum_.get() + k * ((hidden_ + N - 1) / N) * N; }

  std::vector<UnitWeight> weights_;
  index hidden_ = 0;
  Buffer<T> sum_;
};

}  // namespace rnnfast
