// Layer normalisation (Ba, Kiros & Hinton 2016) of the H pre-activations of one gate of one row:
//   y = γ x̂ + β      x̂ = (a - mean a) / √(var a + ε)
// Sums go lane by lane in the order of the units, then over the lanes as a tree: the same bits in every plan.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "simd.h"

namespace rnnfast {

constexpr double norm_epsilon = 1e-5;

// Σ over lanes, as a tree.
template <class T> T sum_of_lanes(Vec<T> v) { return Eigen::internal::predux(v.p); }

// The same of N vectors, lane k that of the k-th, side by side: alone, each instruction waits for the one before.
template <class T> Vec<T> sums_of_lanes(const Vec<T>* v) {
  constexpr int N = Vec<T>::lanes;
  Eigen::internal::PacketBlock<typename Vec<T>::Packet, N> block;
  for (int k = 0; k < N; k++) block.packet[k] = v[k].p;
  if constexpr (N > 1) Eigen::internal::ptranspose(block);
  for (int half = N / 2; half > 0; half /= 2)
    for (int k = 0; k < half; k++) block.packet[k] = Eigen::internal::padd(block.packet[k], block.packet[k + half]);
  return block.packet[0];
}

// The first n lanes, the others zero.
template <class T> Vec<T> first_lanes(Vec<T> v, int n) {
  if (n >= Vec<T>::lanes) return v;
  const Vec<T> lane = Eigen::internal::plset<typename Vec<T>::Packet>(T(0));
  return select(less(lane, Vec<T>(n)), v, Vec<T>(0));
}

// f(u, n) for the vectors of some numbers, each from its first number u on: n lanes count, a constant but in the last.
template <class T, class F> [[gnu::always_inline]] inline void for_each_vector_of(index numbers, F&& f) {
  constexpr index N = Vec<T>::lanes;
  index u = 0;
  for (; u + N <= numbers; u += N) f(u, std::integral_constant<int, N>{});
  if (u < numbers) f(u, static_cast<int>(numbers - u));
}

// The adjoint: from dy the gradient of a, da = scale (γ dy - mean(γ dy) - x̂ mean(γ dy ∘ x̂)). The vectors of dy and da
// lie as far apart as their strides say; lanes past H stay as they were. The x̂ that is wanted next lies `next` numbers
// further.
template <class T> void normalize_backward(const T* dy, index dy_stride, const T* normal, index next, const T* gain,
                                           T scale, index hidden, T* da, index da_stride) {
  using V = Vec<T>;
  V sum(T(0)), with_normal(T(0));
  for_each_vector_of<T>(hidden, [&, at = dy](index u, auto n) mutable {
    const V d = V::load(at) * V::load_first(gain + u, n);
    sum = sum + d;
    bring(normal + u, next);
    with_normal = fma(d, V::load_first(normal + u, n), with_normal);
    at += dy_stride;
  });
  const V mean(sum_of_lanes(sum) / static_cast<T>(hidden)), along(sum_of_lanes(with_normal) / static_cast<T>(hidden));
  for_each_vector_of<T>(hidden, [&, at = dy, to = da](index u, auto n) mutable {
    const V rest = V::load(at) * V::load_first(gain + u, n) - mean;
    (V(scale) * fnma(along, V::load_first(normal + u, n), rest)).store_first(to, n);
    at += dy_stride, to += da_stride;
  });
}

}  // namespace rnnfast
