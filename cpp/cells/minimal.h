#pragma once

#include <limits>

#include "../cell.h"

namespace rnnfast {

// Feng et al. 2024, "Were RNNs all we needed?": gates that see x only.
//   u = σ(z_u)  n = z_n     h' = (1 - u) h + u n
struct MinGru {
  static constexpr const char* name = "min_gru";
  static constexpr int gates = 2, states = 1, saved = 2;
  static constexpr Accumulator accumulators[] = {{0, none}, {1, none}};
  static constexpr std::array<UnitWeight, 0> unit_weights{};

  template <class V> static void forward(const V* z, const V*, const V* s, V* s_after, V* save) {
    save[0] = sigmoid(z[0]), save[1] = z[1];
    s_after[0] = fma(save[0], save[1], (V(1) - save[0]) * s[0]);
  }

  template <class V>
  static void backward(const V* save, const V*, const V* s, const V*, const V* ds_after, V* dz, V* ds) {
    const V one(1), u = save[0], n = save[1], dh = ds_after[0];
    dz[0] = dh * (n - s[0]) * u * (one - u);
    dz[1] = dh * u;
    ds[0] = dh * (one - u);
  }
};

//   f = σ(z_f)  i = σ(z_i)  n = z_n     h' = (f h + i n) / (f + i)
struct MinLstm {
  static constexpr const char* name = "min_lstm";
  static constexpr int gates = 3, states = 1, saved = 3;
  static constexpr Accumulator accumulators[] = {{0, none}, {1, none}, {2, none}};
  static constexpr std::array<UnitWeight, 0> unit_weights{};

  // f / (f + i), the share of what is kept; where both gates are closed to the last bit, nothing tells them apart.
  template <class V> static V share(const V& f, const V& i) {
    const V sum = f + i, tiny(std::numeric_limits<typename V::Scalar>::min());
    return select(less(sum, tiny), V(0.5), f / max(sum, tiny));
  }

  template <class V> static void forward(const V* z, const V*, const V* s, V* s_after, V* save) {
    save[0] = sigmoid(z[0]), save[1] = sigmoid(z[1]), save[2] = z[2];
    const V k = share(save[0], save[1]);
    s_after[0] = fma(k, s[0], (V(1) - k) * save[2]);
  }

  template <class V>
  static void backward(const V* save, const V*, const V* s, const V*, const V* ds_after, V* dz, V* ds) {
    const V one(1), f = save[0], i = save[1], n = save[2], dh = ds_after[0];
    const V k = share(f, i), rest = one - k, dk = dh * (s[0] - n) * k * rest;  // k = 1 / (1 + i / f)
    dz[0] = dk * (one - f);
    dz[1] = -dk * (one - i);
    dz[2] = dh * rest;
    ds[0] = dh * k;
  }
};

}  // namespace rnnfast
