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
  template <class T> std::vector<T*> all(const Sequence<T>& a) const {
    std::vector<T*> rows;
    rows.reserve(at_.size());
    for (index row = 0; row < count(); row++) rows.push_back(of(a, row));
    return rows;
  }

 private:
  std::vector<Place> at_;
};

template <class T> void clear_past(const Sequence<T>& a, Lengths lengths, Range rows) {
  for (index b = rows.begin; b < rows.end; b++)
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

  void pack(Range blocks, Signals& signals) {
    for (index j = blocks.begin; j < blocks.end && !signals.stop(work(j, 1)); j++)
      packed_.pack(j * block_, vectors_of(j), {j * block_, j * block_ + vectors_of(j)});
  }

  // to(i) = W x[i] + b for i < n ≤ rows_in_cache, the outputs of these blocks; z: scratch().
  template <class To>
  void multiply(const T* const* x, index n, Range blocks, T* z, const To& to, Signals& signals) const {
    for (index j = blocks.begin; j < blocks.end && !signals.stop(work(j, n)); j++) {
      const index first = j * block_ * N, stride = vectors_of(j) * N, valid = std::min(stride, output_ - first);
      packed_.multiply_into(x, nullptr, n, j * block_, vectors_of(j), Make::all, bias_.get() + first, z, stride);
      for (index i = 0; i < n; i++) std::copy_n(z + i * stride, valid, to(i) + first);
    }
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  static constexpr index block_ = 2 * panel_width(0);

  index vectors_of(index j) const { return std::min(block_, vectors_ - j * block_); }
  double work(index j, index rows) const {
    return static_cast<double>(rows * vectors_of(j) * packed_.elements_a_vector());
  }

  index output_, vectors_;
  PackedRows<T> packed_;
  Buffer<T> bias_;
};

// dx = Wᵀ dy, dW += dy xᵀ and db += dy for rows that lie anywhere, chunk by chunk.
template <class T> class LinearGradient {
 public:
  // `rows`: how many there are in all, at most `most_rows` of them in a chunk.
  LinearGradient(index input, index output, const T* weight, bool need_dx, index rows, index most_rows, int threads)
      : input_(input), output_(output), rows_(rows), most_rows_(most_rows), vectors_(ceil_div(output, N)),
        dz_({vectors_, most_rows, N}), weight_gradient_(dense_feed(), 1, output, {nullptr, input}, most_rows),
        sums_({weight_gradient_.sums()}), bias_gradient_(1, output) {
    weight_gradient_.place(sums_.get());
    if (!need_dx) return;
    to_input_ = PackedColumns<T>(dense_feed(), {weight, input}, output, panel_width(rows));
    weights_ = Buffer<T>({to_input_.size()});
    to_input_.place(weights_.get());
    for (int k = 0; k < threads; k++) z_.emplace_back(Buffer<T>({rows_in_cache, to_input_.columns(), N}));
    for (index row = 0; row < most_rows; row++) dz_rows_.push_back(dz_.get() + row * N);
  }

  // A thread's share of what is done once, before the first chunk.
  void start(int thread, int count, Signals& signals) {
    if (z_.empty()) return;
    const Range own = share(to_input_.blocks(), thread, count);
    for (index j = own.begin; j < own.end && !signals.stop(to_input_.work_of_packing(j)); j++)
      to_input_.pack(j, count > 1);
  }

  // A thread's share of a chunk of `rows` rows, all of whose dy(i) are there; dx(i) is where that of row i goes. The
  // first chunk `begins` the sums. Others may still be at work when it returns.
  template <class Dy, class Dx> void run(const T* const* x, index rows, bool begins, const Dy& dy, const Dx& dx,
                                         int thread, int count, Signals& signals) {
    const DzView<T> dz{dz_.get(), most_rows_, 1};
    const Range vectors = share(vectors_, thread, count), own = share(rows, thread, count);
    pack_rows<T>([&](index row) { return dy(row) + vectors.begin * N; }, output_ - vectors.begin * N,
                 vectors.end - vectors.begin, 1, most_rows_, 0, rows, dz_.get() + vectors.begin * most_rows_ * N,
                 count > 1);
    weight_gradient_.pack(x + own.begin, own.begin, own.end - own.begin, rows, count > 1, signals);
    publish();
    barrier_.wait(count);
    if (!z_.empty()) input_gradient(own, dx, z_[static_cast<std::size_t>(thread)].get(), signals);
    weight_gradient_.add(dz, rows, vectors, begins, signals);
    bias_gradient_.add(dz, rows, vectors);
  }

  // A thread's share, once, after all chunks. dbias may be null.
  void add_to(T* dweight, T* dbias, int thread, int count) const {
    if (rows_ == 0) return;  // no sum has begun
    weight_gradient_.exchange(dweight, share(vectors_, thread, count), AddSum{});
    if (dbias && thread == 0) bias_gradient_.exchange(feed_, dbias, AddSum{});
  }

 private:
  static constexpr index N = Vec<T>::lanes;

  template <class Dx> void input_gradient(Range rows, const Dx& dx, T* z, Signals& signals) const {
    const index stride = to_input_.columns() * N;
    for (index row = rows.begin; row < rows.end && !signals.stopped();) {
      const index n = even_part(rows.end - row, rows_in_cache);
      to_input_.multiply_into(dz_rows_.data() + row, n, most_rows_ * N, to_input_.all_blocks(), false, z, stride,
                              signals);
      for (index i = 0; i < n; i++) std::copy_n(z + i * stride, input_, dx(row + i));
      row += n;
    }
  }

  index input_, output_, rows_, most_rows_, vectors_;
  Feed feed_ = dense_feed();
  Buffer<T> dz_, weights_;
  PackedColumns<T> to_input_;
  WeightGradient<T> weight_gradient_;
  Buffer<T> sums_;
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
        product_(x.width, y.width, weight, bias, rows_.count()), from_(rows_.all(x)) {
    for (int k = 0; k < threads_; k++) z_.emplace_back(product_.scratch());
  }

  void run(Signals& signals) {
    parallel(threads_, [&](int thread, int count) {
      const Range own = share(product_.all_blocks().end, thread, count);
      product_.pack(own, signals);
      barrier_.wait(count);
      if (rows_.count() >= rows_worth_splitting * count) {
        multiply(share(rows_.count(), thread, count), product_.all_blocks(), thread, signals);
      } else {
        multiply({0, rows_.count()}, own, thread, signals);
      }
      clear_past(y_, lengths_, share(y_.batch, thread, count));
    });
  }

 private:
  void multiply(Range rows, Range blocks, int thread, Signals& signals) const {
    for (index row = rows.begin; row < rows.end && !signals.stopped();) {
      const index n = even_part(rows.end - row, rows_in_cache);
      product_.multiply(
          from_.data() + row, n, blocks, z_[static_cast<std::size_t>(thread)].get(),
          [&](index i) { return rows_.of(y_, row + i); }, signals);
      row += n;
    }
  }

  Sequence<const T> x_;
  Sequence<T> y_;
  Lengths lengths_;
  LiveRows rows_;
  int threads_;
  LinearProduct<T> product_;
  std::vector<const T*> from_;
  std::vector<Buffer<T>> z_;
  Barrier barrier_;
};

template <class T> class LinearBackward {
 public:
  LinearBackward(Sequence<const T> x, const T* weight, Sequence<const T> dy, Sequence<T> dx, T* dweight, T* dbias,
                 Lengths lengths, int threads)
      : x_(x), dy_(dy), dx_(dx), dweight_(dweight), dbias_(dbias), lengths_(lengths), rows_(x.steps, x.batch, lengths),
        threads_(threads_for(1.0 * rows_.count() * x.width * dy.width, threads)),
        gradient_(x.width, dy.width, weight, static_cast<bool>(dx), rows_.count(), dense_rows_a_chunk, threads_),
        x_rows_(rows_.all(x)) {}

  void run(Signals& signals) {
    parallel(threads_, [&](int thread, int count) {
      gradient_.start(thread, count, signals);
      barrier_.wait(count);
      for (index row = 0; row < rows_.count(); row += dense_rows_a_chunk) {
        gradient_.run(
            x_rows_.data() + row, std::min(dense_rows_a_chunk, rows_.count() - row), row == 0,
            [&](index i) { return rows_.of(dy_, row + i); }, [&](index i) { return rows_.of(dx_, row + i); }, thread,
            count, signals);
        if (barrier_.agree_to_stop(count, signals)) return;
      }
      if (dx_) clear_past(dx_, lengths_, share(dx_.batch, thread, count));
      gradient_.add_to(dweight_, dbias_, thread, count);
    });
  }

 private:
  Sequence<const T> x_, dy_;
  Sequence<T> dx_;
  T *dweight_, *dbias_;
  Lengths lengths_;
  LiveRows rows_;
  int threads_;
  LinearGradient<T> gradient_;
  std::vector<const T*> x_rows_;
  Barrier barrier_;
};

}  // namespace rnnfast
