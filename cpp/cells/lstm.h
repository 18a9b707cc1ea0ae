#pragma once

#include "../cell.h"

namespace rnnfast {

// Hochreiter & Schmidhuber 1997 with the forget gate of Gers, Schmidhuber & Cummins 2000:
//   i = σ(z_i)  f = σ(z_f)  g = tanh(z_g)  o = σ(z_o)     z = W x + b + R h
//   c' = f c + i g     h' = o tanh(c')
struct Lstm {
  static constexpr const char* name = "lstm";
  static constexpr int gates = 4, states = 2, saved = 4;
  static constexpr Accumulator accumulators[] = {{0, 0}, {1, 1}, {2, 2}, {3, 3}};

  template <class V> static void forward(const V* z, const V* s, V* s_after, V* save) {
    const V i = sigmoid(z[0]), f = sigmoid(z[1]), g = tanh(z[2]), o = sigmoid(z[3]);
    const V c = fma(f, s[1], i * g);
    s_after[0] = o * tanh(c);
    s_after[1] = c;
    save[0] = i, save[1] = f, save[2] = g, save[3] = o;
  }

  template <class V>
  static void backward(const V* save, const V* s, const V* s_after, const V* ds_after, V* dz, V* ds) {
    const V one(1), i = save[0], f = save[1], g = save[2], o = save[3];
    const V dh = ds_after[0], y = tanh(s_after[1]);
    const V dc = fma(dh * o, one - y * y, ds_after[1]);
    dz[0] = dc * g * i * (one - i);
    dz[1] = dc * s[1] * f * (one - f);
    dz[2] = dc * i * (one - g * g);
    dz[3] = dh * y * o * (one - o);
    ds[0] = V(0);
    ds[1] = dc * f;
  }
};

}  // namespace rnnfast
