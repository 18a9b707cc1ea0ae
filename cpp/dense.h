// The linear layer y = W x + b over the rows of a sequence, made of the same products as the recurrences.
#pragma once

#include "gradient.h"
#include "plan.h"
#include "weights.h"

namespace rnnfast {

// The rows of a padded batch that count, last step first: the order in which every weight gradient is summed.
class LiveRows {
 public:
  struct Place {
    index t, b;
  };

  // counts(t, b): whether a row does.
  template <class Counts> LiveRows(index steps, index batch, const Counts& counts) {
    for (index t = steps; t-- > 0;)
      for (index b = 0; b < batch; b++)
        if (counts(t, b)) at_.push_back({t, b});
  }
  LiveRows(index steps, index batch, Lengths lengths)
      : LiveRows(steps, batch, [&](index t, index b) { return t < lengths(b); }) {}

  index count() const { return static_cast<index>(at_.size()); }
  Place operator[](index row) const { return at_[static_cast<std::size_t>(row)]; }
  template <class T> T* of(const Sequence<T>& a, index row) const { return a.at((*this)[row].t, (*this)[row].b); }

 private:
  std::vector<Place> at_;
};

template <class T> void clear_past(const Sequence<T>& a, Lengths lengths) {
  for (index b = 0; b < a.batch; b++)
    for (index t = lengths(b); t < a.steps; t++) std::fill_n(a.at(t, b), a.width, T(0));
}

constexpr index dense_rows_a_chunk = 256;
inline Feed dense_feed() { return {0, {0}}; }

// y = W x + b for rows that lie anywhere, by blocks of outputs.
template <class T> class LinearProduct {
 public:
  // `rows`: how many meet the weights, about.
  LinearProduct(index input, index output, const T* weight, const T* bias, index rows)
      : output_(output), vectors_(ceil_div(output, N)),
        packed_({{0, none}}, {weight, input}, {}, output, panel_width(rows)), bias_({vectors_, N}) {
    bias_.fill(T(0));
    if (bias) std::copy_n(bias, output, bias_.get());
  }

  static Buffer<T> scratch() { return Buffer<T>({rows_in_cache, block_, N}); }
  Range all_blocks() const { return {0, ceil_div(vectors_, block_)}; }

  void pack(Range blocks) {
    for (index j = blocks.begin; j < blocks.end; j++) packed_.pack(j * block_, vectors_of(j));
  }

  // to(i) = W x[i] + b for i < n ≤ rows_in_cache, the outputs of these blocks; z: scratch().
  template <class To> void multiply(const T* const* x, index n, Range blocks, T* z, const To& to) const {
    for (index j = blocks.begin; j < blocks.end; j++) {
      const index first = j * block_ * N, stride = vectors_of(j) * N, valid = std::min(stride, output_ - first);
      packed_.multiply_into(x, nullptr, n, j * block_, vectors_of(j), Make::all, bias_.get() + first, z, stride);
      for (index i = 0; i < n; i++) std::copy_n(z + i * stride, valid, to(i) + first);
    }
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  static constexpr index block_ = 2 * panel_width(0);

  index vectors_of(index j) const { return std::min(block_, vectors_ - j * block_); }

  index output_, vectors_;
  PackedRows<T> packed_;
  Buffer<T> bias_;
};

// dx = Wᵀ dy, dW += dy xᵀ and db += dy for rows that lie anywhere, chunk by chunk.
template <class T> class LinearGradient {
 public:
  // `rows`: how many there are in all, at most `most_rows` of them in a chunk.
  LinearGradient(index input, index output, const T* weight, bool need_dx, index rows, index most_rows, int threads)
      : input_(input), output_(output), most_rows_(most_rows), vectors_(ceil_div(output, N)),
        dz_({vectors_, most_rows, N}), weight_gradient_(dense_feed(), output, {nullptr, input}, most_rows),
        bias_gradient_(1, output) {
    if (!need_dx) return;
    to_input_ = PackedColumns<T>(dense_feed(), {weight, input}, output, panel_width(rows));
    for (int k = 0; k < threads; k++) z_.emplace_back(Buffer<T>({rows_in_cache, to_input_.columns(), N}));
    for (index row = 0; row < most_rows; row++) dz_rows_.push_back(dz_.get() + row * N);
  }

  // A thread's share of what is done once, before the first chunk.
  void pack(int thread, int count) {
    if (z_.empty()) return;
    const Range own = share(to_input_.blocks(), thread, count);
    for (index j = own.begin; j < own.end; j++) to_input_.pack(j);
  }

  // A thread's share of a chunk of `rows` rows, all of whose dy(i) are there; dx(i) is where that of row i goes.
  template <class Dy, class Dx>
  void run(const T* const* x, index rows, const Dy& dy, const Dx& dx, int thread, int count) {
    const DzView<T> dz{dz_.get(), most_rows_, 1};
    const Range vectors = share(vectors_, thread, count),
                columns = share(weight_gradient_.all_columns(), thread, count);
    for (index v = vectors.begin; v < vectors.end; v++)
      pack_rows<T>([&](index row) { return dy(row) + v * N; }, output_ - v * N, rows, dz_.get() + v * most_rows_ * N,
                   N);
    weight_gradient_.pack(x, rows, columns.begin, columns.end);
    barrier_.wait(count);
    if (!z_.empty()) input_gradient(share(rows, thread, count), dx, z_[thread].get());
    weight_gradient_.add(dz, 0, rows, vectors.begin, vectors.end);
    bias_gradient_.add(dz, 0, rows, vectors.begin, vectors.end);
  }

  // Once, after all chunks. dbias may be null.
  void add_to(T* dweight, T* dbias, int threads) const {
    parallel(threads, [&](int thread, int count) {
      const Range own = share(weight_gradient_.rows(), thread, count);
      weight_gradient_.exchange(dweight, own.begin, own.end, AddSum{});
    });
    if (dbias) bias_gradient_.exchange(dense_feed(), dbias, AddSum{});
  }

 private:
  static constexpr index N = Vec<T>::lanes;

  template <class Dx> void input_gradient(Range rows, const Dx& dx, T* z) const {
    const index stride = to_input_.columns() * N;
    for (index row = rows.begin; row < rows.end;) {
      const index n = even_part(rows.end - row, rows_in_cache);
      to_input_.multiply_into(dz_rows_.data() + row, n, most_rows_ * N, to_input_.all_blocks(), false, z, stride);
      for (index i = 0; i < n; i++) std::copy_n(z + i * stride, input_, dx(row + i));
      row += n;
    }
  }

  index input_, output_, most_rows_, vectors_;
  Buffer<T> dz_;
  PackedColumns<T> to_input_;
  WeightGradient<T> weight_gradient_;
  BiasGradient<T> bias_gradient_;
  std::vector<const T*> dz_rows_;
  std::vector<Buffer<T>> z_;
  Barrier barrier_;
};

template <class T> class LinearForward {
 public:
  LinearForward(Sequence<const T> x, const T* weight, const T* bias, Sequence<T> y, Lengths lengths, int threads)
      : x_(x), y_(y), lengths_(lengths), rows_(x.steps, x.batch, lengths),
        threads_(threads_for(1.0 * rows_.count() * x.width * y.width, threads)),
        product_(x.width, y.width, weight, bias, rows_.count()), pace_(2.0 * x.width * y.width),
        from_(static_cast<std::size_t>(rows_.count())) {
    for (index row = 0; row < rows_.count(); row++) from_[row] = rows_.of(x_, row);
    for (int k = 0; k < threads_; k++) z_.emplace_back(product_.scratch());
    parallel(threads_, [&](int thread, int count) { product_.pack(share_of_blocks(thread, count)); });
  }

  bool advance() {
    const index end = std::min(row_ + pace_.steps(), rows_.count());
    pace_.start();
    parallel(threads_, [&](int thread, int count) {
      const bool by_rows = end - row_ >= rows_worth_splitting * count;
      const Range rows = by_rows ? share(end - row_, thread, count) : Range{0, end - row_};
      run({row_ + rows.begin, row_ + rows.end}, by_rows ? product_.all_blocks() : share_of_blocks(thread, count),
          z_[thread].get());
    });
    pace_.stop(end - row_);
    row_ = end;
    if (row_ < rows_.count()) return true;
    clear_past(y_, lengths_);
    return false;
  }

 private:
  Range share_of_blocks(int thread, int count) const { return share(product_.all_blocks().end, thread, count); }

  void run(Range rows, Range blocks, T* z) const {
    for (index row = rows.begin; row < rows.end;) {
      const index n = even_part(rows.end - row, rows_in_cache);
      product_.multiply(from_.data() + row, n, blocks, z, [&](index i) { return rows_.of(y_, row + i); });
      row += n;
    }
  }

  Sequence<const T> x_;
  Sequence<T> y_;
  Lengths lengths_;
  LiveRows rows_;
  int threads_;
  LinearProduct<T> product_;
  Pace pace_;
  std::vector<const T*> from_;
  std::vector<Buffer<T>> z_;
  index row_ = 0;
};

template <class T> class LinearBackward {
 public:
  LinearBackward(Sequence<const T> x, const T* weight, Sequence<const T> dy, Sequence<T> dx, T* dweight, T* dbias,
                 Lengths lengths, int threads)
      : x_(x), dy_(dy), dx_(dx), dweight_(dweight), dbias_(dbias), lengths_(lengths), rows_(x.steps, x.batch, lengths),
        threads_(threads_for(1.0 * rows_.count() * x.width * dy.width, threads)),
        gradient_(x.width, dy.width, weight, static_cast<bool>(dx), rows_.count(), dense_rows_a_chunk, threads_),
        pace_(4.0 * x.width * dy.width), x_rows_(dense_rows_a_chunk) {
    parallel(threads_, [&](int thread, int count) { gradient_.pack(thread, count); });
  }

  bool advance() {
    const index rows = std::min({dense_rows_a_chunk, pace_.steps(), rows_.count() - row_});
    for (index i = 0; i < rows; i++) x_rows_[i] = rows_.of(x_, row_ + i);
    const auto dy = [&](index i) { return rows_.of(dy_, row_ + i); };
    const auto dx = [&](index i) { return rows_.of(dx_, row_ + i); };
    pace_.start();
    parallel(threads_, [&](int thread, int count) { gradient_.run(x_rows_.data(), rows, dy, dx, thread, count); });
    pace_.stop(rows);
    row_ += rows;
    if (row_ < rows_.count()) return true;
    if (dx_) clear_past(dx_, lengths_);
    gradient_.add_to(dweight_, dbias_, threads_);
    return false;
  }

 private:
  Sequence<const T> x_, dy_;
  Sequence<T> dx_;
  T *dweight_, *dbias_;
  Lengths lengths_;
  LiveRows rows_;
  int threads_;
  LinearGradient<T> gradient_;
  Pace pace_;
  std::vector<const T*> x_rows_;
  index row_ = 0;
};

}  // namespace rnnfast
