// What a cell is, and how the driver calls it. A cell is equations on vectors of units; it knows no product, no batch,
// no time and no thread. README.md beside this file is the contract in prose.
#pragma once

#include <algorithm>
#include <array>
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

// A weight of its own for each unit (H,), which a cell multiplies with a state in the pre-activation of an accumulator:
// a peephole, a diagonal recurrence. Its gradient is the sum over rows of that accumulator's dz times that state,
// before or after the step.
struct UnitWeight {
  int accumulator, state;
  bool after;
};

constexpr int most_states = 4, most_unit_weights = 3;

// A block of units of some rows at one step, as a cell's forward sees it. Lanes beyond `hidden` are dropped.
template <class T> struct ForwardBlock {
  index rows, vectors;                  // vectors of units
  index unit, hidden;                   // the first unit; H
  const T* z;                           // [row][accumulator][vector][lane]
  index z_stride;                       // numbers from row to row
  const T* const* before[most_states];  // a row's states (H,) before the step
  T* const* after[most_states];         // and after it
  T* const* saved;                      // a row's (saved, H) for backward; null at inference
  const T* const* unit_weights;         // (H,) each
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
  T* const* whole[most_states];   // a row's whole gradient of the state after (H,), to be written; null: not wanted
  T* dz;                          // [vector of all units][row, dz_rows in all][accumulator][lane]
  index dz_rows;
  const T* const* unit_weights;
};

// A cell to the driver: its shape and two functions over blocks.
template <class T> struct CellKernels {
  const char* name;
  std::vector<Accumulator> accumulators;
  std::vector<UnitWeight> unit_weights;
  int gates, states, saved;
  void (*forward)(const ForwardBlock<T>&);
  void (*backward)(const BackwardBlock<T>&);
};

// Calls f(u, n) for each vector of units of a block: n is how many of its lanes are units, a constant but in the last.
template <class T, class Block, class F> void for_each_vector(const Block& block, F f) {
  constexpr index N = Vec<T>::lanes;
  const index whole = std::clamp<index>((block.hidden - block.unit) / N, 0, block.vectors);
  for (index u = 0; u < whole; u++) f(u, std::integral_constant<int, N>{});
  for (index u = whole; u < block.vectors; u++) f(u, static_cast<int>(block.hidden - block.unit - u * N));
}

template <class Cell, class T> void forward_block(const ForwardBlock<T>& block) {
  using V = Vec<T>;
  constexpr index N = V::lanes;
  constexpr int A = std::size(Cell::accumulators), S = Cell::states, K = Cell::saved, P = Cell::unit_weights.size();
  const index hidden = block.hidden;
  for (index r = 0; r < block.rows; r++) {
    const T* z_row = block.z + r * block.z_stride;
    const T* before_row[S];
    T* after_row[S];
    for (int k = 0; k < S; k++) before_row[k] = block.before[k][r] + block.unit;
    for (int k = 0; k < S; k++) after_row[k] = block.after[k][r] + block.unit;
    T* saved_row = K > 0 && block.saved ? block.saved[r] + block.unit : nullptr;
    for_each_vector<T>(block, [&](index u, auto n) {
      V z[A], p[P + 1], before[S], after[S], saved[K + 1];
      for (int k = 0; k < P; k++) p[k] = V::load_first(block.unit_weights[k] + block.unit + u * N, n);
      for (int a = 0; a < A; a++) z[a] = V::load(z_row + (a * block.vectors + u) * N);
      for (int k = 0; k < S; k++) before[k] = V::load_first(before_row[k] + u * N, n);
      Cell::forward(z, p, before, after, saved);
      for (int k = 0; k < S; k++) after[k].store_first(after_row[k] + u * N, n);
      if (saved_row)
        for (int k = 0; k < K; k++) saved[k].store_first(saved_row + k * hidden + u * N, n);
    });
  }
}

template <class Cell, class T> void backward_block(const BackwardBlock<T>& block) {
  using V = Vec<T>;
  constexpr index N = V::lanes;
  constexpr int A = std::size(Cell::accumulators), S = Cell::states, K = Cell::saved, P = Cell::unit_weights.size();
  const index hidden = block.hidden, dz_step = block.dz_rows * A * N;
  for (index r = 0; r < block.rows; r++) {
    const T *before_row[S], *after_row[S], *dh_row = block.dh + r * block.dh_stride;
    const T* saved_row = K > 0 ? block.saved[r] + block.unit : nullptr;
    T *dstate_row[S], *dz_row = block.dz + (block.unit / N) * dz_step + r * A * N;
    for (int k = 0; k < S; k++) {
      before_row[k] = block.before[k][r] + block.unit;
      after_row[k] = block.after[k][r] + block.unit;
      dstate_row[k] = block.dstate[k][r] + block.unit;
    }
    for_each_vector<T>(block, [&](index u, auto n) {
      V saved[K + 1], p[P + 1], before[S], after[S], dafter[S], dz[A], dbefore[S];
      for (int k = 0; k < P; k++) p[k] = V::load_first(block.unit_weights[k] + block.unit + u * N, n);
      for (int k = 0; k < K; k++) saved[k] = V::load_first(saved_row + k * hidden + u * N, n);
      for (int k = 0; k < S; k++) before[k] = V::load_first(before_row[k] + u * N, n);
      for (int k = 0; k < S; k++) after[k] = V::load_first(after_row[k] + u * N, n);
      dafter[0] = V::load(dh_row + u * N);
      for (int k = 1; k < S; k++) dafter[k] = V::load(dstate_row[k] + u * N);
      Cell::backward(saved, p, before, after, dafter, dz, dbefore);
      for (int k = 0; k < S; k++)
        if (block.whole[k]) dafter[k].store_first(block.whole[k][r] + block.unit + u * N, n);
      for (int k = 0; k < S; k++) dbefore[k].store(dstate_row[k] + u * N);
      // Lanes past H stay as they were: zero, whatever an equation makes of padding.
      for (int a = 0; a < A; a++) dz[a].store_first(dz_row + u * dz_step + a * N, n);
    });
  }
}

template <class Cell, class T> CellKernels<T> describe() {
  static_assert(Cell::states >= 1 && Cell::states <= most_states && Cell::unit_weights.size() <= most_unit_weights);
  return {Cell::name,
          {std::begin(Cell::accumulators), std::end(Cell::accumulators)},
          {std::begin(Cell::unit_weights), std::end(Cell::unit_weights)},
          Cell::gates,
          Cell::states,
          Cell::saved,
          forward_block<Cell, T>,
          backward_block<Cell, T>};
}

}  // namespace rnnfast
