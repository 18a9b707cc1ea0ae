// The linear layer y = W x + b over the rows of a sequence, made of the same products as the recurrences.
#pragma once

#include "gradient.h"
#include "plan.h"
#include "weights.h"

namespace rnnfast {

// The rows of a padded batch that count, last step first: the order in which every weight gradient is summed.
class LiveRows {
 public:
  LiveRows(index steps, index batch, Lengths lengths) {
    for (index t = steps; t-- > 0;)
      for (index b = 0; b < batch; b++)
        if (t < lengths(b)) at_.push_back({t, b});
  }
  index count() const { return static_cast<index>(at_.size()); }
  template <class T> T* of(const Sequence<T>& a, index row) const {
    const auto [t, b] = at_[static_cast<std::size_t>(row)];
    return a.at(t, b);
  }

 private:
  struct Place {
    index t, b;
  };
  std::vector<Place> at_;
};

template <class T> void clear_past(const Sequence<T>& a, Lengths lengths) {
  for (index b = 0; b < a.batch; b++)
    for (index t = lengths(b); t < a.steps; t++) std::fill_n(a.at(t, b), a.width, T(0));
}

constexpr index dense_rows_a_chunk = 256;

template <class T> class LinearForward {
 public:
  LinearForward(Sequence<const T> x, const T* weight, const T* bias, Sequence<T> y, Lengths lengths, int threads)
      : x_(x), y_(y), lengths_(lengths), rows_(x.steps, x.batch, lengths),
        threads_(threads_for(1.0 * rows_.count() * x.width * y.width, threads)), vectors_((y.width + N - 1) / N),
        packed_({{0, none}}, {weight, x.width}, {}, y.width, panel_width(rows_.count())), bias_({vectors_, N}),
        pace_(2.0 * x.width * y.width), from_(static_cast<std::size_t>(rows_.count())) {
    bias_.fill(T(0));
    if (bias) std::copy_n(bias, y.width, bias_.get());
    for (index row = 0; row < rows_.count(); row++) from_[row] = rows_.of(x_, row);
    for (int k = 0; k < threads_; k++) z_.emplace_back(Buffer<T>({rows_in_cache, block_, N}));
    parallel(threads_, [&](int thread, int count) {
      const Range own = share(blocks(), thread, count);
      for (index j = own.begin; j < own.end; j++) packed_.pack(j * block_, vectors_of(j));
    });
  }

  bool advance() {
    const index end = std::min(row_ + pace_.steps(), rows_.count());
    pace_.start();
    parallel(threads_, [&](int thread, int count) {
      const bool by_rows = end - row_ >= rows_worth_splitting * count;
      const Range rows = by_rows ? share(end - row_, thread, count) : Range{0, end - row_};
      run({row_ + rows.begin, row_ + rows.end}, by_rows ? Range{0, blocks()} : share(blocks(), thread, count),
          z_[thread].get());
    });
    pace_.stop(end - row_);
    row_ = end;
    if (row_ < rows_.count()) return true;
    clear_past(y_, lengths_);
    return false;
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  static constexpr index block_ = 2 * panel_width(0);

  index blocks() const { return (vectors_ + block_ - 1) / block_; }
  index vectors_of(index j) const { return std::min(block_, vectors_ - j * block_); }

  void run(Range rows, Range blocks, T* z) const {
    for (index row = rows.begin; row < rows.end;) {
      const index n = even_part(rows.end - row, rows_in_cache);
      for (index j = blocks.begin; j < blocks.end; j++) {
        const index first = j * block_ * N, stride = vectors_of(j) * N, valid = std::min(stride, y_.width - first);
        packed_.multiply_into(from_.data() + row, nullptr, n, j * block_, vectors_of(j), Make::all, bias_.get() + first,
                              z, stride);
        for (index i = 0; i < n; i++) std::copy_n(z + i * stride, valid, rows_.of(y_, row + i) + first);
      }
      row += n;
    }
  }

  Sequence<const T> x_;
  Sequence<T> y_;
  Lengths lengths_;
  LiveRows rows_;
  int threads_;
  index vectors_;
  PackedRows<T> packed_;
  Buffer<T> bias_;
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
        threads_(threads_for(1.0 * rows_.count() * x.width * dy.width, threads)), vectors_((dy.width + N - 1) / N),
        dz_({vectors_, dense_rows_a_chunk, N}),
        weight_gradient_(feed(), dy.width, {nullptr, x.width}, dense_rows_a_chunk), bias_gradient_(1, dy.width),
        pace_(4.0 * x.width * dy.width) {
    if (dx_) to_input_ = PackedColumns<T>(feed(), {weight, x.width}, dy.width, panel_width(rows_.count()));
    if (dx_)
      for (int k = 0; k < threads_; k++) z_.emplace_back(Buffer<T>({rows_in_cache, to_input_.columns(), N}));
    for (index row = 0; row < dense_rows_a_chunk; row++) dz_rows_.push_back(dz_.get() + row * N);
    x_rows_.resize(dense_rows_a_chunk);
    parallel(threads_, [&](int thread, int count) {
      if (!dx_) return;
      const Range own = share(to_input_.blocks(), thread, count);
      for (index j = own.begin; j < own.end; j++) to_input_.pack(j);
    });
  }

  bool advance() {
    const index rows = std::min({dense_rows_a_chunk, pace_.steps(), rows_.count() - row_});
    for (index i = 0; i < rows; i++) x_rows_[i] = rows_.of(x_, row_ + i);
    pace_.start();
    parallel(threads_, [&](int thread, int count) { run(rows, thread, count); });
    pace_.stop(rows);
    row_ += rows;
    if (row_ < rows_.count()) return true;
    finish();
    return false;
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  static Feed feed() { return {0, {0}}; }

  void run(index rows, int thread, int count) {
    const DzView<T> dz{dz_.get(), dense_rows_a_chunk, 1};
    const Range vectors = share(vectors_, thread, count),
                columns = share(weight_gradient_.all_columns(), thread, count);
    for (index v = vectors.begin; v < vectors.end; v++)
      pack_rows<T>([&](index row) { return rows_.of(dy_, row_ + row) + v * N; }, dy_.width - v * N, rows,
                   dz_.get() + v * dense_rows_a_chunk * N, N);
    weight_gradient_.pack(x_rows_.data(), rows, columns.begin, columns.end);
    barrier_.wait(count);
    if (dx_) input_gradient(share(rows, thread, count), z_[thread].get());
    weight_gradient_.add(dz, 0, rows, vectors.begin, vectors.end);
    bias_gradient_.add(dz, 0, rows, vectors.begin, vectors.end);
  }

  void input_gradient(Range rows, T* z) const {
    const index stride = to_input_.columns() * N;
    for (index row = rows.begin; row < rows.end;) {
      const index n = even_part(rows.end - row, rows_in_cache);
      to_input_.multiply_into(dz_rows_.data() + row, n, dense_rows_a_chunk * N, to_input_.all_blocks(), false, z,
                              stride);
      for (index i = 0; i < n; i++) std::copy_n(z + i * stride, dx_.width, rows_.of(dx_, row_ + row + i));
      row += n;
    }
  }

  void finish() {
    if (dx_) clear_past(dx_, lengths_);
    parallel(threads_, [&](int thread, int count) {
      const Range own = share(weight_gradient_.rows(), thread, count);
      weight_gradient_.exchange(dweight_, own.begin, own.end, AddSum{});
    });
    if (dbias_) bias_gradient_.exchange(feed(), dbias_, AddSum{});
  }

  Sequence<const T> x_, dy_;
  Sequence<T> dx_;
  T *dweight_, *dbias_;
  Lengths lengths_;
  LiveRows rows_;
  int threads_;
  index vectors_;
  Buffer<T> dz_;
  PackedColumns<T> to_input_;
  WeightGradient<T> weight_gradient_;
  BiasGradient<T> bias_gradient_;
  Pace pace_;
  std::vector<const T*> dz_rows_, x_rows_;
  std::vector<Buffer<T>> z_;
  Barrier barrier_;
  index row_ = 0;
};

}  // namespace rnnfast
