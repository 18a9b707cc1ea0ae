// What a cell is, and how the driver calls it. A cell is equations on vectors of units; it knows no product, no batch,
// no time and no thread. README.md beside this file is the contract in prose.
#pragma once

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "elementary.h"
#include "simd.h"

namespace rnnfast {

constexpr int none = -1, own = -2;

// One pre-activation of a unit: the gate whose rows of weight_ih (and bias_ih), and of weight_hh (and bias_hh), it adds
// up. Gates count in the order of the weights' rows. `own` in the place of x: it is the unit's own number of x, no
// product. Those with a product of x, and those with an h, stand side by side.
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

constexpr int most_states = 4, most_carried = 1, most_unit_weights = 3;

// How many numbers on the arrays of a row lie at the step that comes next; 0 where none comes. Cells bring them into
// the level-2 cache while they compute: what a processor foresees by itself of a tape that exceeds its caches comes too
// late (measured at 200 x 128 x (32, 64): 12 % of backward).
struct NextStep {
  index saved = 0, dy = 0;
  std::array<index, most_states> states{};
};

// Zoneout, of the states from `first` on: where among a row's numbers the share of a state before the step that stays
// lies, and what the cell has made of it. State 0 has `keep` and `fresh`, the others follow, `stride` apart.
struct Zoned {
  int first = most_states;  // none
  index keep = 0, fresh = 0, stride = 0;

  bool keeps(int k) const { return k >= first; }
  index keep_of(int k) const { return keep + k * stride; }
  index fresh_of(int k) const { return fresh + k * stride; }
};

// A block of units of some rows at one step, as a cell's forward sees it. Lanes beyond `hidden` are dropped.
template <class T> struct ForwardBlock {
  index rows, vectors;                  // vectors of units
  index unit, hidden;                   // the first unit; H
  const T* z;                           // [row][accumulator][vector][lane]
  index z_stride;                       // numbers from row to row
  const T* const* before[most_states];  // a row's states (H,) before the step
  T* const* after[most_states];         // and after it
  T* const* saved;                      // a row's values (·, H); null where there are none
  const T* const* unit_weights;         // (H,) each
  Zoned zoned;
  NextStep next;  // of states after the step
};

template <class T> struct BackwardBlock {
  index rows, vectors;
  index unit, hidden;
  // The gradient of what the phase made: state 0, or an operand. As the products give it, [row][vector][lane], or null;
  // and what reaches a row's state 0 past them: through the step after, (padded) or null, and dy, (H,) or null, of
  // which the whole is clipped.
  const T* dh;
  index dh_stride;
  const T* const* direct;
  const T* const* dy;
  T clip;
  const T* const* before[most_states];
  const T* const* after[most_states];
  const T* const* saved;
  // Padded rows: the gradient of the states after (but 0) comes, of those before goes; then what phases hand on.
  T* const* dstate[most_states + most_carried];
  T* const* whole[most_states];  // a row's whole gradient of the state after (H,), to be written; null: not wanted
  T* dz;                         // of these rows, [vector of all units][row, dz_rows in all][accumulator][lane]
  index dz_rows;
  const T* const* unit_weights;
  Zoned zoned;
  NextStep next;  // of states before the step
};

// A phase to the driver: what its products sum, and its equations over blocks.
template <class T> struct CellPhase {
  std::vector<Accumulator> accumulators;
  std::vector<UnitWeight> unit_weights;
  int operand;  // the saved value that its recurrent product reads, made by the phase before; `none`: h
  void (*forward)(const ForwardBlock<T>&);
  void (*backward)(const BackwardBlock<T>&);
};

// A cell to the driver.
template <class T> struct CellKernels {
  const char* name;
  std::vector<CellPhase<T>> phases;
  int gates, states, saved, carried;
  std::array<T, most_states> initial;  // a state's value where a sequence starts anew
};

// Calls f(u, n) for each vector of units of a block: n is how many of its lanes are units, a constant but in the last.
// Never by a call: what f holds would be copied for every row, and the copy waits for what was written to it just now.
template <class T, class Block, class F> [[gnu::always_inline]] inline void for_each_vector(const Block& block, F&& f) {
  constexpr index N = Vec<T>::lanes;
  const index whole = std::clamp<index>((block.hidden - block.unit) / N, 0, block.vectors);
  for (index u = 0; u < whole; u++) f(u, std::integral_constant<int, N>{});
  for (index u = whole; u < block.vectors; u++) f(u, static_cast<int>(block.hidden - block.unit - u * N));
}

// ---- what a cell may leave out -------------------------------------------------------------------------------------

// A cell of several phases names them; else it is its own only phase.
template <class Cell, class = void> struct PhasesOf {
  using type = std::tuple<Cell>;
};
template <class Cell> struct PhasesOf<Cell, std::void_t<typename Cell::Phases>> {
  using type = typename Cell::Phases;
};

// Values that a later phase hands to an earlier one on the way back.
template <class Cell, class = void> struct CarriedBy {
  static constexpr int value = 0;
};
template <class Cell> struct CarriedBy<Cell, std::void_t<decltype(Cell::carried)>> {
  static constexpr int value = Cell::carried;
};

// The saved values that a phase makes, a bit each; the others it may read.
template <class Phase, class = void> struct SavedBy {
  static constexpr unsigned value = ~0u;
};
template <class Phase> struct SavedBy<Phase, std::void_t<decltype(Phase::saves)>> {
  static constexpr unsigned value = Phase::saves;
};

template <class Phase, class = void> struct OperandOf {
  static constexpr int value = none;
};
template <class Phase> struct OperandOf<Phase, std::void_t<decltype(Phase::operand)>> {
  static constexpr int value = Phase::operand;
};

template <class T, class Cell, class = void> struct InitialOf {
  static constexpr std::array<T, most_states> value{};
};
template <class T, class Cell> struct InitialOf<T, Cell, std::void_t<decltype(Cell::template initial<T>)>> {
  static constexpr std::array<T, most_states> value = Cell::template initial<T>;
};

// ---- blocks --------------------------------------------------------------------------------------------------------

// What does not come through the product is added after it: a long sum that began with its largest term would be
// rounded at that term's size all along. dy comes last, so that the sum before it is what passes from one call to the
// next where a sequence is cut in time.
template <class V, class T> V whole_dh(V product, const T* direct, const T* dy, int n, T clip) {
  V sum = product + V::load(direct);
  if (dy) sum = sum + V::load_first(dy, n);
  return max(min(sum, V(clip)), V(-clip));
}

// A block's members are copied first: a vector that is stored might change what lies in memory, for all that the
// compiler knows, and each would be loaded again for every vector.
template <class Cell, class Phase, bool last, class T> void forward_block(const ForwardBlock<T>& given) {
  using V = Vec<T>;
  constexpr index N = V::lanes;
  constexpr int A = std::size(Phase::accumulators), S = Cell::states, K = Cell::saved, P = Phase::unit_weights.size();
  constexpr unsigned saves = SavedBy<Phase>::value;
  const ForwardBlock<T> block = given;
  const index hidden = block.hidden;
  const T* unit_weights[P + 1];
  for (int k = 0; k < P; k++) unit_weights[k] = block.unit_weights[k] + block.unit;
  for (index r = 0; r < block.rows; r++) {
    const T* z_row = block.z + r * block.z_stride;
    const T* before_row[S];
    T* after_row[S];
    for (int k = 0; k < S; k++) before_row[k] = block.before[k][r] + block.unit;
    for (int k = 0; k < S; k++) after_row[k] = block.after[k][r] + block.unit;
    T* saved_row = block.saved ? block.saved[r] + block.unit : nullptr;
    for_each_vector<T>(block, [&](index u, auto n) __attribute__((always_inline)) {
      V z[A], p[P + 1], before[S], after[S], saved[K + 1];
      const auto value = [&](int k) { return saved_row + k * hidden + u * N; };
      for (int k = 0; k < K; k++)
        if (saved_row && saves >> k & 1) bring(value(k), block.next.saved);
      for (int k = 0; k < S && last; k++) bring(after_row[k] + u * N, block.next.states[k]);
      for (int k = 0; k < P; k++) p[k] = V::load_first(unit_weights[k] + u * N, n);
      for (int a = 0; a < A; a++) z[a] = V::load(z_row + (a * block.vectors + u) * N);
      for (int k = 0; k < S; k++) before[k] = V::load_first(before_row[k] + u * N, n);
      for (int k = 0; k < K; k++)
        if (!(saves >> k & 1)) saved[k] = V::load_first(value(k), n);
      Phase::forward(z, p, before, after, saved);
      if constexpr (last) {
        for (int k = 0; k < S; k++) {
          if (block.zoned.keeps(k)) {
            T* fresh = saved_row + block.zoned.fresh_of(k) + u * N;
            bring(fresh, block.next.saved);
            after[k].store_first(fresh, n);
            const V keep = V::load_first(saved_row + block.zoned.keep_of(k) + u * N, n);
            after[k] = fma(keep, before[k], (V(1) - keep) * after[k]);
          }
          after[k].store_first(after_row[k] + u * N, n);
        }
      }
      if (saved_row)
        for (int k = 0; k < K; k++)
          if (saves >> k & 1) saved[k].store_first(value(k), n);
    });
  }
}

template <class Cell, class Phase, bool last, class T> void backward_block(const BackwardBlock<T>& given) {
  using V = Vec<T>;
  constexpr index N = V::lanes;
  constexpr int A = std::size(Phase::accumulators), S = Cell::states, K = Cell::saved, P = Phase::unit_weights.size();
  constexpr int D = S + CarriedBy<Cell>::value;
  const BackwardBlock<T> block = given;
  const index hidden = block.hidden, dz_step = block.dz_rows * A * N;
  const T* unit_weights[P + 1];
  for (int k = 0; k < P; k++) unit_weights[k] = block.unit_weights[k] + block.unit;
  for (index r = 0; r < block.rows; r++) {
    const T *before_row[S], *after_row[S], *dh_row = block.dh ? block.dh + r * block.dh_stride : nullptr;
    const T* direct_row = block.direct ? block.direct[r] + block.unit : nullptr;
    const T* dy_row = block.dy ? block.dy[r] + block.unit : nullptr;
    const T* saved_row = block.saved ? block.saved[r] + block.unit : nullptr;
    T *dstate_row[D], *dz_row = block.dz + (block.unit / N) * dz_step + r * A * N;
    for (int k = 0; k < S; k++) {
      before_row[k] = block.before[k][r] + block.unit;
      after_row[k] = block.after[k][r] + block.unit;
    }
    for (int k = 0; k < D; k++) dstate_row[k] = block.dstate[k][r] + block.unit;
    for_each_vector<T>(block, [&](index u, auto n) __attribute__((always_inline)) {
      V saved[K + 1], p[P + 1], before[S], after[S], dafter[S], dz[A], dbefore[D], kept[S];
      const auto value = [&](int k) { return saved_row + k * hidden + u * N; };
      const auto tell = [&](int k) {
        if (block.whole[k]) dafter[k].store_first(block.whole[k][r] + block.unit + u * N, n);
      };
      for (int k = 0; k < K && last; k++) bring(value(k), block.next.saved);
      for (int k = 0; k < S && last; k++) bring(before_row[k] + u * N, block.next.states[k]);
      if (dy_row) bring(dy_row + u * N, block.next.dy);
      for (int k = 0; k < P; k++) p[k] = V::load_first(unit_weights[k] + u * N, n);
      for (int k = 0; k < K; k++) saved[k] = V::load_first(value(k), n);
      for (int k = 0; k < S; k++) before[k] = V::load_first(before_row[k] + u * N, n);
      for (int k = 0; k < S; k++) after[k] = V::load_first(after_row[k] + u * N, n);
      dafter[0] = dh_row ? V::load(dh_row + u * N) : V(0);
      if (direct_row)
        dafter[0] = whole_dh(dafter[0], direct_row + u * N, dy_row ? dy_row + u * N : nullptr, n, block.clip);
      for (int k = 1; k < S; k++) dafter[k] = V::load(dstate_row[k] + u * N);
      if constexpr (!last) {
        for (int k = 0; k < D; k++) dbefore[k] = V::load(dstate_row[k] + u * N);
      } else {
        for (int k = 0; k < S; k++) {
          if (!block.zoned.keeps(k)) continue;
          tell(k);
          const T *share = saved_row + block.zoned.keep_of(k) + u * N,
                  *fresh = saved_row + block.zoned.fresh_of(k) + u * N;
          bring(share, block.next.saved), bring(fresh, block.next.saved);
          const V keep = V::load_first(share, n);
          kept[k] = keep * dafter[k];
          dafter[k] = (V(1) - keep) * dafter[k];
          after[k] = V::load_first(fresh, n);
        }
      }
      Phase::backward(saved, p, before, after, dafter, dz, dbefore);
      if constexpr (last) {
        for (int k = 0; k < S; k++) {
          if (block.zoned.keeps(k)) {
            dbefore[k] = dbefore[k] + kept[k];
          } else {
            tell(k);
          }
        }
      }
      for (int k = 0; k < D; k++) dbefore[k].store(dstate_row[k] + u * N);
      // Lanes past H stay as they were: zero, whatever an equation makes of padding.
      for (int a = 0; a < A; a++) dz[a].store_first(dz_row + u * dz_step + a * N, n);
    });
  }
}

// ---- descriptions --------------------------------------------------------------------------------------------------

template <class T, class Cell, class Phase, bool last> CellPhase<T> describe_phase() {
  static_assert(Phase::unit_weights.size() <= most_unit_weights);
  return {{std::begin(Phase::accumulators), std::end(Phase::accumulators)},
          {std::begin(Phase::unit_weights), std::end(Phase::unit_weights)},
          OperandOf<Phase>::value,
          forward_block<Cell, Phase, last, T>,
          backward_block<Cell, Phase, last, T>};
}

template <class T, class Cell, class... Phases, std::size_t... I>
std::vector<CellPhase<T>> describe_phases(std::tuple<Phases...>*, std::index_sequence<I...>) {
  return {describe_phase<T, Cell, Phases, I + 1 == sizeof...(Phases)>()...};
}

template <class Cell, class T> CellKernels<T> describe() {
  static_assert(Cell::states >= 1 && Cell::states <= most_states && CarriedBy<Cell>::value <= most_carried);
  using Phases = typename PhasesOf<Cell>::type;
  return {
      Cell::name,
      describe_phases<T, Cell>(static_cast<Phases*>(nullptr), std::make_index_sequence<std::tuple_size_v<Phases>>{}),
      Cell::gates,
      Cell::states,
      Cell::saved,
      CarriedBy<Cell>::value,
      InitialOf<T, Cell>::value};
}

}  // namespace rnnfast
