#pragma once

#include "../cell.h"

namespace rnnfast {

// Cho et al. 2014 with the reset gate after the recurrent product, as in cuDNN and PyTorch:
//   r = σ(z_r)  u = σ(z_u)  n = tanh(W_n x + b_in + r (R_n h + b_hn))     h' = (1 - u) n + u h
// The two parts of n are accumulators of their own, since r comes between them.
struct Gru {
  static constexpr const char* name = "gru";
  static constexpr int gates = 3, states = 1, saved = 4;
  static constexpr Accumulator accumulators[] = {{2, none}, {0, 0}, {1, 1}, {none, 2}};
  static constexpr std::array<UnitWeight, 0> unit_weights{};

  template <class V> static void forward(const V* z, const V*, const V* s, V* s_after, V* save) {
    const V r = sigmoid(z[1]), u = sigmoid(z[2]), n = tanh(fma(r, z[3], z[0]));
    s_after[0] = fma(u, s[0] - n, n);
    save[0] = r, save[1] = u, save[2] = n, save[3] = z[3];
  }

  template <class V>
  static void backward(const V* save, const V*, const V* s, const V*, const V* ds_after, V* dz, V* ds) {
    const V one(1), r = save[0], u = save[1], n = save[2];
    const V dh = ds_after[0];
    const V dn = dh * (one - u) * (one - n * n);
    dz[0] = dn;
    dz[1] = dn * save[3] * r * (one - r);
    dz[2] = dh * (s[0] - n) * u * (one - u);
    dz[3] = dn * r;
    ds[0] = dh * u;
  }
};

}  // namespace rnnfast
