// A layer as forward computes it: weights packed once, and for a block of units b + W x, then + R h and the cell. What
// a whole sequence and a stream of single steps share, so that they agree to the bit.
#pragma once

#include "plan.h"
#include "weights.h"

namespace rnnfast {

template <class T> class PackedLayer {
 public:
  // Nothing is packed yet: that is shared among threads, block by block.
  PackedLayer(const CellKernels<T>& cell, const Weights<T>& weights, const Plan& plan, index rows)
      : cell_(cell), weights_(weights), accumulators_(static_cast<index>(cell.accumulators.size())),
        vectors_((weights.hidden + N - 1) / N), unit_vectors_(unit_vectors(plan, rows)),
        input_(feed_of(cell.accumulators, &Accumulator::x), weights.hidden, weights.input,
               plan.steps_ahead > 1 ? panel_width(0) : plan.width),
        recurrent_(feed_of(cell.accumulators, &Accumulator::h), weights.hidden, weights.hidden, plan.width),
        bias_({accumulators_, vectors_, N}) {}

  const CellKernels<T>& cell() const { return cell_; }
  index accumulators() const { return accumulators_; }
  index blocks() const { return ceil_div(vectors_, unit_vectors_); }
  index vector_of(index j) const { return j * unit_vectors_; }
  index vectors_of(index j) const { return std::min(unit_vectors_, vectors_ - vector_of(j)); }
  index most_vectors() const { return unit_vectors_; }
  // Numbers from row to row of the block's pre-activations: [accumulator][vector][lane].
  index z_stride(index j) const { return accumulators_ * vectors_of(j) * N; }

  void pack(index j) {
    const index v = vector_of(j), vectors = vectors_of(j), hidden = weights_.hidden;
    input_.pack(weights_.ih, v, vectors);
    recurrent_.pack(weights_.hh, v, vectors);
    for (index a = 0; a < accumulators_; a++) {
      const auto [x, h] = cell_.accumulators[a];
      for (index lane = 0; lane < vectors * N; lane++) {
        const index unit = v * N + lane;
        T sum = 0;
        if (unit < hidden && x != none && weights_.bias_ih) sum = weights_.bias_ih[x * hidden + unit];
        if (unit < hidden && h != none && weights_.bias_hh) sum += weights_.bias_hh[h * hidden + unit];
        bias_[v * accumulators_ * N + a * vectors * N + lane] = sum;
      }
    }
  }

  // z = b + W x for a block of units of some rows.
  void start(index j, const T* const* x, index rows, T* z) const {
    const index stride = z_stride(j);
    const T* bias = bias_.get() + vector_of(j) * accumulators_ * N;
    for (index r = 0; r < rows; r++) std::copy_n(bias, stride, z + r * stride);
    input_.multiply_into(x, rows, vector_of(j), vectors_of(j), z, stride);
  }

  // z += R h, then the states after; of rows [first, first + rows) of what the pointers show.
  void end(index j, const RowPointers<T>& pointers, index first, index rows, bool saves, T* z) const {
    recurrent_.multiply_into(pointers.before(0) + first, rows, vector_of(j), vectors_of(j), z, z_stride(j));
    ForwardBlock<T> block{rows, vectors_of(j), vector_of(j) * N,        weights_.hidden, z, z_stride(j), {},
                          {},   nullptr,       weights_.of_units.data()};
    for (int k = 0; k < cell_.states; k++)
      block.before[k] = pointers.before(k) + first, block.after[k] = pointers.after(k) + first;
    if (saves) block.saved = pointers.saved() + first;
    cell_.forward(block);
  }

 private:
  static constexpr index N = Vec<T>::lanes;

  index unit_vectors(const Plan& plan, index rows) const {
    const index row_bytes = accumulators_ * N * static_cast<index>(sizeof(T));
    return plan.unit_vectors(feed_of(cell_.accumulators, &Accumulator::x).count(),
                             bytes_in_cache / (std::clamp<index>(rows, 1, rows_in_cache) * row_bytes));
  }

  const CellKernels<T>& cell_;
  Weights<T> weights_;  // of the caller: but for those of units, read by pack() only
  index accumulators_, vectors_, unit_vectors_;
  PackedRows<T> input_, recurrent_;
  Buffer<T> bias_;
};

}  // namespace rnnfast
