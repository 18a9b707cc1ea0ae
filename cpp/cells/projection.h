#pragma once

#include "../cell.h"

namespace rnnfast {

// The projection of a layer's output (Sak, Senior & Beaufays 2014), h' = W_hr m: a phase after the cell's own, whose
// operand m is the cell's output. No layer is made of it alone.
struct Projection {
  static constexpr const char* name = "projection";
  static constexpr int gates = 1, states = 1, saved = 0;
  static constexpr Accumulator accumulators[] = {{none, 0}};
  static constexpr std::array<UnitWeight, 0> unit_weights{};

  template <class V> static void forward(const V* z, const V*, const V*, V* s_after, V*) { s_after[0] = z[0]; }

  template <class V> static void backward(const V*, const V*, const V*, const V*, const V* ds_after, V* dz, V* ds) {
    dz[0] = ds_after[0];
    ds[0] = V(0);
  }
};

}  // namespace rnnfast
