#pragma once

#include "../cell.h"
#include "rnn.h"

namespace rnnfast {

// Li et al. 2018: h' = φ(W x + b + u h), each unit seeing its own state only.
template <class Activation> struct IndRnn {
  static constexpr const char* name = Activation::independent;
  static constexpr int gates = 1, states = 1, saved = 0;
  static constexpr Accumulator accumulators[] = {{0, none}};
  static constexpr std::array<UnitWeight, 1> unit_weights{{{0, 0, false}}};

  template <class V> static void forward(const V* z, const V* p, const V* s, V* s_after, V*) {
    s_after[0] = Activation::value(fma(p[0], s[0], z[0]));
  }

  template <class V>
  static void backward(const V*, const V* p, const V*, const V* s_after, const V* ds_after, V* dz, V* ds) {
    dz[0] = Activation::slope_times(ds_after[0], s_after[0]);
    ds[0] = dz[0] * p[0];
  }
};

}  // namespace rnnfast
