// Sums in an order that nothing but the number of terms decides, in double: term k goes to lane k mod 16, the lanes are
// added as a tree, and so are the sums of blocks. The same bits for any threads and any vector width.
#pragma once

#include <algorithm>
#include <limits>

#include "../simd.h"

namespace rnnfast {

// Adds values[0 … n) pairwise; leaves the partial sums of the tree in them.
inline double tree_sum(double* values, index n) {
  if (n == 0) return 0;
  for (index kept; n > 1; n = kept) {
    kept = (n + 1) / 2;
    for (index k = 0; k < n / 2; k++) values[k] += values[kept + k];
  }
  return values[0];
}

// Σ term(x_k).
template <class T, class Term> double lane_sum(const T* x, index n, Term term) {
  constexpr index lanes = 16;
  double lane[lanes] = {};
  index k = 0;
  for (; k + lanes <= n; k += lanes)
    for (index l = 0; l < lanes; l++) lane[l] += term(x[k + l]);
  for (index l = 0; k + l < n; l++) lane[l] += term(x[k + l]);
  return tree_sum(lane, std::min(n, lanes));
}

template <class T> double lane_sum(const T* x, index n) {
  return lane_sum(x, n, [](T value) { return static_cast<double>(value); });
}

// A NaN stays a NaN, and a bound of infinity is none.
template <class T> inline T clamp(T x, T bound) { return std::min(std::max(x, -bound), bound); }

template <class T> double squares(const T* x, index n, T bound = std::numeric_limits<T>::infinity()) {
  return lane_sum(x, n, [bound](T value) {
    const double clamped = clamp(value, bound);
    return clamped * clamped;
  });
}

}  // namespace rnnfast
