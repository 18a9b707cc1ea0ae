// The head of a classifier or a language model, a linear layer to V classes and the softmax cross-entropy of its
// outputs, in one pass over the rows: logits of a chunk of them, the loss, their gradient at once, and what follows
// from that, so that logits are never kept for more than a chunk.
//
// Every sum runs in the order that it has in a linear layer and a loss apart, so the bits are the same.
#pragma once

#include <optional>

#include "../dense.h"
#include "loss.h"
#include "softmax.h"

namespace rnnfast {

// What a row shall be, and how much it counts: arrays (N,) in the caller's layout, N = T B.
template <class T> struct Labels {
  const std::int64_t* targets = nullptr;
  const T* weights = nullptr;  // null: each row counts once
  index steps = 0, batch = 0;
  bool batch_first = false;  // the caller's layout is (B, T), not (T, B)

  index rows() const { return steps * batch; }
  index place(index t, index b) const { return batch_first ? b * steps + t : t * batch + b; }
};

// Where the gradients go; without a dweight there is the loss alone. dbias may be null.
template <class T> struct HeadAdjoints {
  Sequence<T> dx;
  T *dweight = nullptr, *dbias = nullptr;
};

template <class T> class SoftmaxHead {
 public:
  SoftmaxHead(Sequence<const T> x, const T* weight, const T* bias, index classes, Labels<T> labels, HeadAdjoints<T> to,
              int threads)
      : x_(x), labels_(labels), to_(to), classes_(classes), blocks_(labels.rows(), classes),
        mean_(labels.weights, blocks_), rows_(x.steps, x.batch, [&](index t, index b) { return fraction(t, b) != 0; }),
        threads_(threads_for(1.0 * rows_.count() * x.width * classes, threads)), chunk_(rows_of_chunk()),
        product_(x.width, classes, weight, bias, rows_.count()), logits_({chunk_, classes}),
        losses_({std::max<index>(labels.rows(), 1)}), x_rows_(rows_.all(x)) {
    for (int k = 0; k < threads_; k++) z_.emplace_back(product_.scratch());
    if (to_.dweight) gradient_.emplace(x.width, classes, weight, true, rows_.count(), chunk_, threads_);
  }

  void run(Signals& signals) {
    parallel(threads_, [&](int thread, int count) {
      product_.pack(share(product_.all_blocks().end, thread, count), signals);
      if (gradient_) gradient_->start(thread, count, signals);
      barrier_.wait(count);
      for (index row = 0; row < rows_.count(); row += chunk_) {
        run_chunk({row, std::min(row + chunk_, rows_.count())}, thread, count, signals);
        if (gradient_ ? barrier_.agree_to_stop(count, signals) : signals.stopped()) return;
      }
      if (gradient_) gradient_->add_to(to_.dweight, to_.dbias, thread, count);
    });
    if (!signals.stopped()) finish();
  }

  double loss() const { return loss_; }  // after run()

 private:
  // A chunk is as many rows as keep their logits in a cache, but enough for the sums of dW, which it reads and writes
  // once. Halves of it and halves of halves are whole tiles for every thread.
  static constexpr index most_rows = 8 * rows_in_cache, least_rows = rows_in_cache;
  static constexpr index bytes_of_logits = 4 << 20;

  index rows_of_chunk() const {
    index rows = most_rows;
    while (rows > least_rows && rows * classes_ * static_cast<index>(sizeof(T)) > bytes_of_logits) rows /= 2;
    return std::min(rows, std::max<index>(rows_.count(), 1));
  }

  double fraction(index t, index b) const {
    FlushSubnormals flush;
    return mean_.fraction(labels_.place(t, b));
  }
  index place(index row) const { return labels_.place(rows_[row].t, rows_[row].b); }

  // A thread's share of a chunk. dlogits take the place of the logits.
  void run_chunk(Range chunk, int thread, int count, Signals& signals) {
    const index first = chunk.begin, rows = chunk.end - chunk.begin;
    const auto logits = [&](index i) { return logits_.get() + i * classes_; };
    const Range own = share(rows, thread, count);
    for (index i = own.begin; i < own.end && !signals.stopped();) {
      const index n = even_part(own.end - i, rows_in_cache);
      product_.multiply(
          x_rows_.data() + first + i, n, product_.all_blocks(), z_[static_cast<std::size_t>(thread)].get(),
          [&](index k) { return logits(i + k); }, signals);
      for (const index end = i + n; i < end; i++) add_loss(place(first + i), logits(i));
    }
    if (!gradient_) return;
    barrier_.wait(count);
    gradient_->run(
        x_rows_.data() + first, rows, first == 0, logits, [&](index i) { return rows_.of(to_.dx, first + i); }, thread,
        count, signals);
  }

  void add_loss(index n, T* logits) {
    const index target = static_cast<index>(labels_.targets[n]);
    losses_[n] = gradient_ ? cross_entropy_row(logits, classes_, target, mean_.fraction(n), logits)
                           : exponential_sums(logits, classes_, target, logits).loss;
  }

  void finish() {
    FlushSubnormals flush;
    for (index block = 0; block < blocks_.count(); block++)
      mean_.add(block, blocks_[block], [&](index n, double) { return losses_[n]; });
    loss_ = mean_.value();
    if (!gradient_) return;
    for (index t = 0; t < x_.steps; t++)
      for (index b = 0; b < x_.batch; b++)
        if (mean_.fraction(labels_.place(t, b)) == 0) std::fill_n(to_.dx.at(t, b), to_.dx.width, T(0));
  }

  Sequence<const T> x_;
  Labels<T> labels_;
  HeadAdjoints<T> to_;
  index classes_;
  RowBlocks blocks_;
  WeightedMean<T> mean_;
  LiveRows rows_;  // those that count
  int threads_;
  index chunk_;
  LinearProduct<T> product_;
  std::optional<LinearGradient<T>> gradient_;
  Buffer<T> logits_;
  Buffer<double> losses_;  // l of the rows that count, in the caller's layout
  std::vector<const T*> x_rows_;
  std::vector<Buffer<T>> z_;
  Barrier barrier_;
  double loss_ = 0;
};

}  // namespace rnnfast
