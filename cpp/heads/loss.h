// What the losses share, loss = Σ m l / Σ m over the rows of a batch with weights m ≥ 0, and the mean squared error.
#pragma once

#include <vector>

#include "reduce.h"
#include "rows.h"

namespace rnnfast {

template <class T> class WeightedMean {
 public:
  // weights (rows,), or null: each row counts once. To be made outside of a parallel region.
  WeightedMean(const T* weights, const RowBlocks& blocks)
      : weights_(weights), partial_(static_cast<std::size_t>(blocks.count())) {
    FlushSubnormals flush;  // a weight that counts as zero below counts as zero here
    total_ = weights ? lane_sum(weights, blocks.rows()) : static_cast<double>(blocks.rows());
  }

  // m / Σ m of row n, by which its gradient is scaled.
  double fraction(index n) const { return total_ == 0 ? 0 : weight(n) / total_; }

  // row(n, fraction) gives l of row n and writes its gradient times fraction = m / Σ m. It reads nothing of a row whose
  // fraction is 0.
  template <class Row> void add(index block, Range rows, const Row& row) {
    double sum = 0;
    for (index n = rows.begin; n < rows.end; n++) {
      const double own = fraction(n), loss = row(n, own);
      if (own != 0) sum += weight(n) * loss;
    }
    partial_[block] = sum;
  }

  // Once, after all blocks.
  double value() {
    const double sum = tree_sum(partial_.data(), static_cast<index>(partial_.size()));
    return total_ == 0 ? 0 : sum / total_;
  }

 private:
  double weight(index n) const { return weights_ ? static_cast<double>(weights_[n]) : 1.0; }

  const T* weights_;
  std::vector<double> partial_;  // Σ m l of each block
  double total_ = 0;             // Σ m
};

// l = Σ (y - target)² / F over the F features of one row; dy = fraction · 2 (y - target) / F.
template <class T> double squared_error_row(const T* y, const T* target, index features, double fraction, T* dy) {
  if (fraction == 0) {
    std::fill_n(dy, features, T(0));
    return 0;
  }
  for (index f = 0; f < features; f++) dy[f] = y[f] - target[f];
  const double sum = squares(dy, features);
  const T factor = static_cast<T>(2 * fraction / static_cast<double>(features));
  for (index f = 0; f < features; f++) dy[f] *= factor;
  return sum / static_cast<double>(features);
}

}  // namespace rnnfast
