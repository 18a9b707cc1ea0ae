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

// Cho et al. 2014 as printed, the reset gate before the product: n = tanh(W_n x + b_in + R_n (r h) + b_hn).
// Two phases, since R_n reads r h of all units.
struct GruResetBefore {
  static constexpr const char* name = "gru_reset_before";
  static constexpr int gates = 3, states = 1, saved = 4, carried = 1;
  static constexpr int R = 0, U = 1, N = 2, RH = 3;  // saved

  struct Gates {
    static constexpr Accumulator accumulators[] = {{0, 0}, {1, 1}};
    static constexpr std::array<UnitWeight, 0> unit_weights{};
    static constexpr unsigned saves = 1u << R | 1u << U | 1u << RH;

    template <class V> static void forward(const V* z, const V*, const V* s, V*, V* save) {
      save[R] = sigmoid(z[0]), save[U] = sigmoid(z[1]);
      save[RH] = save[R] * s[0];
    }
    // ds_after is the gradient of r h; that of z_u has been carried here.
    template <class V>
    static void backward(const V* save, const V*, const V* s, const V*, const V* ds_after, V* dz, V* ds) {
      const V r = save[R];
      dz[0] = ds_after[0] * s[0] * r * (V(1) - r);
      dz[1] = ds[1];
      ds[0] = fma(ds_after[0], r, ds[0]);
    }
  };

  struct Candidate {
    static constexpr Accumulator accumulators[] = {{2, 2}};
    static constexpr std::array<UnitWeight, 0> unit_weights{};
    static constexpr int operand = RH;
    static constexpr unsigned saves = 1u << N;

    template <class V> static void forward(const V* z, const V*, const V* s, V* s_after, V* save) {
      save[N] = tanh(z[0]);
      s_after[0] = fma(save[U], s[0] - save[N], save[N]);
    }
    template <class V>
    static void backward(const V* save, const V*, const V* s, const V*, const V* ds_after, V* dz, V* ds) {
      const V one(1), u = save[U], n = save[N], dh = ds_after[0];
      dz[0] = dh * (one - u) * (one - n * n);
      ds[0] = dh * u;
      ds[1] = dh * (s[0] - n) * u * (one - u);
    }
  };

  using Phases = std::tuple<Gates, Candidate>;
};

}  // namespace rnnfast
