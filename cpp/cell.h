// What a cell is, and how the driver calls it. A cell is equations on vectors of units; it knows no product, no batch,
// no time and no thread. README.md beside this file is the contract in prose.
#pragma once

#include <vector>

#include "elementary.h"
#include "simd.h"

namespace rnnfast {

constexpr int none = -1;

// One pre-activation of a unit: the gate whose rows of weight_ih (and bias_ih), and of weight_hh (and bias_hh), it adds
// up. Gates count in the order of the weights' rows. Those with an x, and those with an h, stand side by side.
struct Accumulator {
  int x, h;
};

constexpr int most_states = 4;

// A block of units of some rows at one step, as a cell's forward sees it. Lanes beyond `hidden` are dropped.
template <class T> struct ForwardBlock {
  index rows, vectors;                  // vectors of units
  index unit, hidden;                   // the first unit; H
  const T* z;                           // [row][accumulator][vector][lane]
  index z_stride;                       // numbers from row to row
  const T* const* before[most_states];  // a row's states (H,) before the step
  T* const* after[most_states];         // and after it
  T* const* saved;                      // a row's (saved, H) for backward; null at inference
};

template <class T> struct BackwardBlock {
  index rows, vectors;
  index unit, hidden;
  const T* dh;  // [row][vector][lane]: the whole gradient of state 0
  index dh_stride;
  const T* const* before[most_states];
  const T* const* after[most_states];
  const T* const* saved;
  T* const* dstate[most_states];  // padded rows: the gradient of the states after (but 0) comes, of those before goes
  T* dz;                          // [vector of all units][row, dz_rows in all][accumulator][lane]
  index dz_rows;
};

// A cell to the driver: its shape and two functions over blocks.
template <class T> struct CellKernels {
  const char* name;
  std::vector<Accumulator> accumulators;
  int gates, states, saved;
  void (*forward)(const ForwardBlock<T>&);
  void (*backward)(const BackwardBlock<T>&);
};

template <class Cell, class T> void forward_block(const ForwardBlock<T>& block) {
  using V = Vec<T>;
  constexpr index N = V::lanes;
  constexpr int A = std::size(Cell::accumulators), S = Cell::states, K = Cell::saved;
  for (index r = 0; r < block.rows; r++) {
    for (index u = 0; u < block.vectors; u++) {
      const index unit = block.unit + u * N;
      const int n = static_cast<int>(block.hidden - unit < N ? block.hidden - unit : N);
      V z[A], before[S], after[S], saved[K + 1];
      for (int a = 0; a < A; a++) z[a] = V::load(block.z + r * block.z_stride + (a * block.vectors + u) * N);
      for (int k = 0; k < S; k++) before[k] = V::load_first(block.before[k][r] + unit, n);
      Cell::forward(z, before, after, saved);
      for (int k = 0; k < S; k++) after[k].store_first(block.after[k][r] + unit, n);
      if (K > 0 && block.saved)
        for (int k = 0; k < K; k++) saved[k].store_first(block.saved[r] + k * block.hidden + unit, n);
    }
  }
}

template <class Cell, class T> void backward_block(const BackwardBlock<T>& block) {
  using V = Vec<T>;
  constexpr index N = V::lanes;
  constexpr int A = std::size(Cell::accumulators), S = Cell::states, K = Cell::saved;
  for (index r = 0; r < block.rows; r++) {
    for (index u = 0; u < block.vectors; u++) {
      const index unit = block.unit + u * N;
      const int n = static_cast<int>(block.hidden - unit < N ? block.hidden - unit : N);
      V saved[K + 1], before[S], after[S], dafter[S], dz[A], dbefore[S];
      for (int k = 0; k < K; k++) saved[k] = V::load_first(block.saved[r] + k * block.hidden + unit, n);
      for (int k = 0; k < S; k++) before[k] = V::load_first(block.before[k][r] + unit, n);
      for (int k = 0; k < S; k++) after[k] = V::load_first(block.after[k][r] + unit, n);
      dafter[0] = V::load(block.dh + r * block.dh_stride + u * N);
      for (int k = 1; k < S; k++) dafter[k] = V::load(block.dstate[k][r] + unit);
      Cell::backward(saved, before, after, dafter, dz, dbefore);
      for (int k = 0; k < S; k++) dbefore[k].store(block.dstate[k][r] + unit);
      // Lanes past H stay as they were: zero, whatever an equation makes of padding.
      T* to = block.dz + ((unit / N) * block.dz_rows + r) * A * N;
      for (int a = 0; a < A; a++) dz[a].store_first(to + a * N, n);
    }
  }
}

template <class Cell, class T> CellKernels<T> describe() {
  static_assert(Cell::states >= 1 && Cell::states <= most_states);
  return {Cell::name,
          {std::begin(Cell::accumulators), std::end(Cell::accumulators)},
          Cell::gates,
          Cell::states,
          Cell::saved,
          forward_block<Cell, T>,
          backward_block<Cell, T>};
}

}  // namespace rnnfast
