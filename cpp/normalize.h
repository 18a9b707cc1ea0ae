// Layer normalisation (Ba, Kiros & Hinton 2016) of the H pre-activations of one gate of one row:
//   y = γ x̂ + β      x̂ = (a - mean a) / √(var a + ε)
// Sums go lane by lane in the order of the units, then over the lanes as a tree: the same bits in every plan.
#pragma once

#include <algorithm>
#include <cmath>

#include "simd.h"

namespace rnnfast {

constexpr double norm_epsilon = 1e-5;

// Σ over lanes, pairwise.
template <class T> T sum_of_lanes(Vec<T> v) {
  T lane[Vec<T>::lanes];
  v.store(lane);
  for (int n = Vec<T>::lanes; n > 1; n /= 2)
    for (int k = 0; k < n / 2; k++) lane[k] += lane[k + n / 2];
  return lane[0];
}

// The first n lanes, the others zero.
template <class T> Vec<T> first_lanes(Vec<T> v, int n) {
  if (n >= Vec<T>::lanes) return v;
  T lane[Vec<T>::lanes];
  v.store(lane);
  return Vec<T>::load_first(lane, n);
}

// f(v, n) for the vectors of H numbers: n lanes of the last one count.
template <class T, class F> void for_each_vector_of(index hidden, F f) {
  constexpr index N = Vec<T>::lanes;
  for (index v = 0; v * N < hidden; v++) f(v * N, static_cast<int>(std::min(hidden - v * N, N)));
}

// x̂ in the place of a: vectors `stride` numbers apart. Gives 1 / √(var + ε).
template <class T> T normalize(T* a, index hidden, index stride) {
  using V = Vec<T>;
  constexpr index N = V::lanes;
  V sum(T(0)), squares(T(0));
  for_each_vector_of<T>(hidden, [&](index u, int n) { sum = sum + first_lanes(V::load(a + u / N * stride), n); });
  const V mean(sum_of_lanes(sum) / static_cast<T>(hidden));
  for_each_vector_of<T>(hidden, [&](index u, int n) {
    const V d = first_lanes(V::load(a + u / N * stride) - mean, n);
    squares = fma(d, d, squares);
  });
  const T variance = sum_of_lanes(squares) / static_cast<T>(hidden);
  const T scale = T(1) / std::sqrt(variance + static_cast<T>(norm_epsilon));
  for_each_vector_of<T>(hidden, [&](index u, int) {
    T* at = a + u / N * stride;
    ((V::load(at) - mean) * V(scale)).store(at);
  });
  return scale;
}

// The adjoint: from dy the gradient of a, da = scale (γ dy - mean(γ dy) - x̂ mean(γ dy ∘ x̂)).
// dy(u, n) and da(u, n, value) read and write vectors of units.
template <class T, class Read, class Write>
void normalize_backward(Read dy, const T* normal, const T* gain, T scale, index hidden, Write da) {
  using V = Vec<T>;
  V sum(T(0)), with_normal(T(0));
  const auto scaled = [&](index u, int n) { return dy(u, n) * V::load_first(gain + u, n); };
  for_each_vector_of<T>(hidden, [&](index u, int n) {
    const V d = scaled(u, n);
    sum = sum + d;
    with_normal = fma(d, V::load_first(normal + u, n), with_normal);
  });
  const V mean(sum_of_lanes(sum) / static_cast<T>(hidden)), along(sum_of_lanes(with_normal) / static_cast<T>(hidden));
  for_each_vector_of<T>(hidden, [&](index u, int n) {
    const V rest = scaled(u, n) - mean;
    da(u, n, V(scale) * fnma(along, V::load_first(normal + u, n), rest));
  });
}

}  // namespace rnnfast
