// One direction of one layer as a call brings it: views of the caller's arrays, and where a row's states lie at a step.
#pragma once

#include <array>

#include "cell.h"
#include "memory.h"
#include "timeline.h"
#include "views.h"

namespace rnnfast {

template <class T> struct Weights {
  index input = 0, hidden = 0;
  const T *ih = nullptr, *hh = nullptr;                // (G H, I), (G H, H); no hh where nothing reads h by a product
  const T *bias_ih = nullptr, *bias_hh = nullptr;      // (G H,) or null
  std::array<const T*, most_unit_weights> of_units{};  // (H,) each
};

template <class T> struct Layer {
  const CellKernels<T>& cell;
  Weights<T> weights;
  Timeline timeline;
  Sequence<const T> x;
  // (T, B, H) over time, state 0 being the output y. At inference the others have a step stride of 0: one row a batch
  // row.
  std::array<Sequence<T>, most_states> states{};
  std::array<const T*, most_states> initial{};  // (B, H) or null: zeros
  Sequence<T> saved{};                          // (T, B, saved H), or null: inference
  bool keeps_states = false;                    // states 1, … lie over time; else only the running value
  Buffer<T> zeros = fresh_state();              // of a cell that starts anew

  Buffer<T> fresh_state() const {
    Buffer<T> state({weights.hidden});
    state.fill(T(0));
    return state;
  }

  index hidden() const { return weights.hidden; }
  index vectors() const { return (weights.hidden + Vec<T>::lanes - 1) / Vec<T>::lanes; }

  // States (H,) of row r when step s begins and when it ends.
  T* before(int k, index s, index r) const {
    const index b = timeline.batch_row(r);
    switch (timeline.origin(s, r)) {
      case Origin::step_before:
        return states[k].at(timeline.time(s, r) + timeline.time_before(), b);
      case Origin::given:
        if (initial[k]) return const_cast<T*>(initial[k]) + b * hidden();
        [[fallthrough]];
      default:
        return zeros.get();
    }
  }
  T* after(int k, index s, index r) const { return states[k].at(timeline.time(s, r), timeline.batch_row(r)); }
};

// The rows of a block of steps at one step: pointers that products and cells read through.
template <class T> class RowPointers {
 public:
  RowPointers() = default;
  RowPointers(index rows, int states) : states_(states) {
    for (int k = 0; k < states; k++) before_[k].resize(rows), after_[k].resize(rows);
    saved_.resize(rows);
  }

  void set(const Layer<T>& layer, index s, index first, index last) {
    for (index r = first; r < last; r++) {
      for (int k = 0; k < states_; k++) {
        before_[k][r - first] = layer.before(k, s, r);
        after_[k][r - first] = layer.after(k, s, r);
      }
      saved_[r - first] =
          layer.saved ? layer.saved.at(layer.timeline.time(s, r), layer.timeline.batch_row(r)) : nullptr;
    }
  }

  void set(index r, int k, const T* before, T* after) { before_[k][r] = before, after_[k][r] = after; }

  const T* const* before(int k) const { return before_[k].data(); }
  T* const* after(int k) const { return after_[k].data(); }
  T* const* saved() const { return saved_.data(); }

 private:
  int states_ = 0;
  std::array<std::vector<const T*>, most_states> before_;
  std::array<std::vector<T*>, most_states> after_;
  std::vector<T*> saved_;
};

}  // namespace rnnfast
