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

// l = log Σ_v exp(logits_v) - logits_target; dlogits = fraction · (softmax(logits) - onehot(target)).
// With the target's exponential kept apart from the sum of the others, nothing cancels where the target is almost sure:
// softmax - 1 is -others / sum, and l is log(1 + others).
template <class T> double cross_entropy_row(const T* logits, index classes, index target, double fraction, T* dlogits) {
  if (fraction == 0) {
    std::fill_n(dlogits, classes, T(0));
    return 0;
  }
  const T top = largest(logits, classes);
  const double margin = static_cast<double>(top) - static_cast<double>(logits[target]);
  exponentials(logits, classes, top, dlogits);
  const double hit = dlogits[target];
  dlogits[target] = 0;
  const double others = lane_sum(dlogits, classes), sum = hit + others;
  const T factor = static_cast<T>(fraction / sum);
  for (index v = 0; v < classes; v++) dlogits[v] *= factor;
  dlogits[target] = static_cast<T>(-fraction * (others / sum));
  return std::log1p(others + (hit - 1)) + margin;
}

}  // namespace rnnfast
