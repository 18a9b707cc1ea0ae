#pragma once

#include <limits>

#include "../cell.h"

namespace rnnfast {

// Beck et al. 2024 (xLSTM), the scalar cell: exponential input gate, kept in range by m, normalised by n.
//   m' = max(log σ(z_f) + m, z_i)     i = exp(z_i - m')     f = exp(log σ(z_f) + m - m')
//   c' = f c + i tanh(z_z)            n' = f n + i          h' = σ(z_o) c' / n'
// h' is the same for every m, so that no gradient passes through it. Where m' = -∞ (nothing but -∞ has come in), i and
// f are 0; where n' = 0, so is h'.
struct SLstm {
  static constexpr const char* name = "slstm";
  static constexpr int gates = 4, states = 4, saved = 5;
  static constexpr Accumulator accumulators[] = {{0, 0}, {1, 1}, {2, 2}, {3, 3}};
  static constexpr std::array<UnitWeight, 0> unit_weights{};
  template <class T> static constexpr std::array<T, most_states> initial{0, 0, 0, -std::numeric_limits<T>::infinity()};
  static constexpr int I = 0, F = 1, Z = 2, O = 3, SF = 4;  // SF: σ(z_f)

  template <class V> static V ratio(const V& a, const V& n) { return select(equal(n, V(0)), V(0), a / n); }

  template <class V> static void forward(const V* z, const V*, const V* s, V* s_after, V* save) {
    const V log_f = log_sigmoid(z[F]) + s[3], m = max(log_f, z[I]);
    const V least(std::numeric_limits<typename V::Scalar>::lowest()), finite = max(m, least);
    const V i = exp(z[I] - finite), f = exp(log_f - finite), g = tanh(z[Z]), o = sigmoid(z[O]);
    const V c = fma(f, s[1], i * g), n = fma(f, s[2], i);
    s_after[0] = o * ratio(c, n);
    s_after[1] = c, s_after[2] = n, s_after[3] = m;
    save[I] = i, save[F] = f, save[Z] = g, save[O] = o, save[SF] = sigmoid(z[F]);
  }

  template <class V>
  static void backward(const V* save, const V*, const V* s, const V* s_after, V* ds_after, V* dz, V* ds) {
    const V one(1), i = save[I], f = save[F], g = save[Z], o = save[O];
    const V dh = ds_after[0], mean = ratio(s_after[1], s_after[2]), share = ratio(dh * o, s_after[2]);
    V &dc = ds_after[1], &dn = ds_after[2];
    dc = dc + share;
    dn = fnma(share, mean, dn);
    dz[O] = dh * mean * o * (one - o);
    dz[Z] = dc * i * (one - g * g);
    dz[I] = fma(dc, g, dn) * i;
    dz[F] = fma(dc, s[1], dn * s[2]) * f * (one - save[SF]);
    ds[0] = V(0), ds[1] = dc * f, ds[2] = dn * f, ds[3] = V(0);
    ds_after[3] = V(0);
  }
};

}  // namespace rnnfast
