#pragma once

#include "../cell.h"

namespace rnnfast {

// Lei et al. 2018: gates that see c of their own unit only, and a highway past them.
//   f = σ(z_f + v_f c)  r = σ(z_r + v_r c)     c' = f c + (1 - f) z_x     h' = r c' + (1 - r) x
// x is the unit's own number of the input where there are as many as units; else a fourth block of weights makes it.
template <bool skip> struct Sru {
  static constexpr const char* name = skip ? "sru_skip" : "sru";
  static constexpr int gates = skip ? 4 : 3, states = 2, saved = 4;
  static constexpr Accumulator accumulators[] = {{0, none}, {1, none}, {2, none}, {skip ? 3 : own, none}};
  static constexpr std::array<UnitWeight, 2> unit_weights{{{1, 1, false}, {2, 1, false}}};
  static constexpr int X = 0, F = 1, R = 2, S = 3;

  template <class V> static void forward(const V* z, const V* p, const V* s, V* s_after, V* save) {
    const V f = sigmoid(fma(p[0], s[1], z[F])), r = sigmoid(fma(p[1], s[1], z[R]));
    // x̃ and x have no bound: as f (c - x̃) + x̃ a large one would swallow the c that is kept.
    const V c = fma(f, s[1], (V(1) - f) * z[X]);
    s_after[0] = fma(r, c, (V(1) - r) * z[S]);
    s_after[1] = c;
    save[X] = z[X], save[F] = f, save[R] = r, save[S] = z[S];
  }

  template <class V>
  static void backward(const V* save, const V* p, const V* s, const V* s_after, V* ds_after, V* dz, V* ds) {
    const V one(1), f = save[F], r = save[R], dh = ds_after[0];
    V& dc = ds_after[1];
    dc = fma(dh, r, dc);
    dz[R] = dh * (s_after[1] - save[S]) * r * (one - r);
    dz[S] = dh * (one - r);
    dz[F] = dc * (s[1] - save[X]) * f * (one - f);
    dz[X] = dc * (one - f);
    ds[0] = V(0);
    ds[1] = fma(dz[F], p[0], fma(dz[R], p[1], dc * f));
  }
};

}  // namespace rnnfast
