#pragma once

#include "../cell.h"

namespace rnnfast {

// Elman 1990: h' = φ(W x + b + R h). Each φ here has a derivative that is a function of its value.
template <class Activation> struct Rnn {
  static constexpr const char* name = Activation::name;
  static constexpr int gates = 1, states = 1, saved = 0;
  static constexpr Accumulator accumulators[] = {{0, 0}};
  static constexpr std::array<UnitWeight, 0> unit_weights{};

  template <class V> static void forward(const V* z, const V*, const V*, V* s_after, V*) {
    s_after[0] = Activation::value(z[0]);
  }

  template <class V>
  static void backward(const V*, const V*, const V*, const V* s_after, const V* ds_after, V* dz, V* ds) {
    dz[0] = Activation::slope_times(ds_after[0], s_after[0]);
    ds[0] = V(0);
  }
};

struct Tanh {
  static constexpr const char *name = "rnn_tanh", *independent = "ind_rnn_tanh";
  template <class V> static V value(V z) { return tanh(z); }
  template <class V> static V slope_times(V dh, V h) { return dh * (V(1) - h * h); }
};

struct Relu {
  static constexpr const char *name = "rnn_relu", *independent = "ind_rnn_relu";
  template <class V> static V value(V z) { return max(z, V(0)); }
  template <class V> static V slope_times(V dh, V h) { return select(less(V(0), h), dh, V(0)); }
};

struct Sigmoid {
  static constexpr const char *name = "rnn_sigmoid", *independent = "ind_rnn_sigmoid";
  template <class V> static V value(V z) { return sigmoid(z); }
  template <class V> static V slope_times(V dh, V h) { return dh * h * (V(1) - h); }
};

}  // namespace rnnfast
