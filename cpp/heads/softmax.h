// Softmax and cross-entropy of one row of logits in one go, while the row stays in the nearest cache: its maximum, the
// exponentials, their sum, the gradient.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../elementary.h"
#include "reduce.h"

namespace rnnfast {

// A NaN may be skipped: it comes back through its own exponential.
template <class T> T largest(const T* x, index n) {
  using V = Vec<T>;
  T top = -std::numeric_limits<T>::infinity();
  V tops(top);
  index k = 0;
  for (; k + V::lanes <= n; k += V::lanes) tops = max(tops, V::load(x + k));
  T lane[V::lanes];
  tops.store(lane);
  for (T value : lane) top = std::max(top, value);
  for (; k < n; k++) top = std::max(top, x[k]);
  return top;
}

// to = exp(x - top)
template <class T> void exponentials(const T* x, index n, T top, T* to) {
  using V = Vec<T>;
  for (index k = 0; k < n; k += V::lanes) {
    const int some = static_cast<int>(std::min<index>(V::lanes, n - k));
    exp(V::load_first(x + k, some) - V(top)).store_first(to + k, some);
  }
}

// What the loss of a row and its gradient are made of: the target's exponential apart from the sum of the others, so
// that nothing cancels where the target is almost sure. softmax - 1 is -others / sum, and l is log(1 + others).
struct ExponentialSums {
  double hit, others, loss;
};

// l = log Σ_v exp(logits_v) - logits_target. exps = exp(logits - their maximum), but 0 for the target; it may be the
// logits themselves.
template <class T> ExponentialSums exponential_sums(const T* logits, index classes, index target, T* exps) {
  const T top = largest(logits, classes);
  const double margin = static_cast<double>(top) - static_cast<double>(logits[target]);
  exponentials(logits, classes, top, exps);
  const double hit = exps[target];
  exps[target] = 0;
  const double others = lane_sum(exps, classes);
  return {hit, others, std::log1p(others + (hit - 1)) + margin};
}

// The loss l; dlogits = fraction · (softmax(logits) - onehot(target)), which may be the logits themselves.
template <class T> double cross_entropy_row(const T* logits, index classes, index target, double fraction, T* dlogits) {
  if (fraction == 0) {
    std::fill_n(dlogits, classes, T(0));
    return 0;
  }
  const auto [hit, others, loss] = exponential_sums(logits, classes, target, dlogits);
  const double sum = hit + others;
  const T factor = static_cast<T>(fraction / sum);
  for (index v = 0; v < classes; v++) dlogits[v] *= factor;
  dlogits[target] = static_cast<T>(-fraction * (others / sum));
  return loss;
}

}  // namespace rnnfast
