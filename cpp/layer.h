// One direction of one layer as a call brings it: views of the caller's arrays, its stages, and where a row's states
// lie at a step.
#pragma once

#include <array>

#include "cells/projection.h"
#include "memory.h"
#include "timeline.h"
#include "views.h"
#include "weights.h"

namespace rnnfast {

// Gains and biases of layer normalisation, (G H,) each; null where there is none.
template <class T> struct Norms {
  const T *ih_weight = nullptr, *ih_bias = nullptr, *hh_weight = nullptr, *hh_bias = nullptr;

  explicit operator bool() const { return ih_weight != nullptr; }
};

template <class T> struct Weights {
  index input = 0, hidden = 0, output = 0;  // I, H, and the width of h: H, or P with a projection
  index heads = 1;                          // of the recurrence: a unit meets the h of its own head
  const T *ih = nullptr, *hh = nullptr;     // (G H, I), (G H, output / heads); no hh where nothing reads h by a product
  index groups = 1;                         // the heads, or 1 where they were filled up with zeros (see fill_heads)
  const T *bias_ih = nullptr, *bias_hh = nullptr;  // (G H,) or null
  const T* hr = nullptr;                           // (P, H) or null
  Norms<T> norms{};
  std::array<const T*, most_unit_weights> of_units{};  // (H,) each

  bool projects() const { return hr != nullptr; }
  index projected() const { return projects() ? output : 0; }  // the width of a projected h
};

// Where a head doesn't begin at a whole vector, its weights become those of a dense recurrence, zeros between the
// heads: (G H, H) in `dense`. The zeros add nothing, so no bit depends on the width of a vector.
template <class T> void fill_heads(Weights<T>& weights, index gates, Buffer<T>& dense) {
  const index width = weights.output / weights.heads;
  weights.groups = weights.heads;
  if (!weights.hh || weights.heads == 1 || width % Vec<T>::lanes == 0) return;
  dense = Buffer<T>({gates * weights.hidden, weights.output});
  dense.fill(T(0));
  for (index row = 0; row < gates * weights.hidden; row++)
    std::copy_n(weights.hh + row * width, width,
                dense.get() + row * weights.output + row % weights.hidden / width * width);
  weights.hh = dense.get();
  weights.groups = 1;
}

// Zoneout (Krueger et al. 2017): in training a unit keeps its old state with this probability, by a mask that depends
// on nothing but the key, the step and the row; else the states are mixed in that proportion.
struct Zoneout {
  std::array<double, most_states> probability{};
  bool random = false;
  std::uint64_t seed = 0, call = 0;
  std::uint32_t stream = 0;  // the first of the key's streams, one a state

  explicit operator bool() const {
    return std::any_of(probability.begin(), probability.end(), [](double p) { return p > 0; });
  }
};

// What a row keeps of a step for backward, or for the step's later phases: values (H,) each, the gates first.
struct SavedLayout {
  index hidden = 0;
  int values = 0;        // all slots of H numbers
  int projected = none;  // m, which the projection reads
  int keep = none;       // zoneout: shares that stay, one a state
  int fresh = none;      // and the states before they were mixed
  int slots_of_h = 1;    // of each: a projected h may be wider than H
  int normal = none;     // layer norm: x̂ of x's part of each gate, then of the operand's
  index scales = 0;      // and how many 1 / √(var + ε), after the slots

  index size() const { return values * hidden + scales; }
  // Which states zoneout keeps where the cell ends: all, or those that aren't projected; and where h is.
  Zoned zoned_by_cell() const {
    if (keep == none) return {};
    return {projected == none ? 0 : 1, (keep + slots_of_h - 1) * hidden, (fresh + slots_of_h - 1) * hidden, hidden};
  }
  Zoned zoned_by_projection() const {
    if (keep == none) return {};
    return {0, keep * hidden, fresh * hidden, hidden};
  }
};

// `projected`: the width of a projected h, or 0.
template <class T>
SavedLayout saved_layout(const CellKernels<T>& cell, index hidden, index projected, bool zoneout, bool norms) {
  SavedLayout layout{hidden, cell.saved};
  const auto take = [&](int count) {
    const int first = layout.values;
    layout.values += count;
    return first;
  };
  if (projected) layout.projected = take(1);
  if (projected && hidden) layout.slots_of_h = static_cast<int>(ceil_div(projected, hidden));
  if (zoneout)
    layout.keep = take(cell.states - 1 + layout.slots_of_h), layout.fresh = take(cell.states - 1 + layout.slots_of_h);
  if (norms) {
    int parts = 0;
    for (const CellPhase<T>& phase : cell.phases)
      for (const Accumulator& a : phase.accumulators) parts += (a.x >= 0) + (a.h >= 0);
    layout.normal = take(parts);
    layout.scales = parts;
  }
  return layout;
}

// A phase of the cell with the weights that it has in this layer, or the projection.
template <class T> struct Stage {
  const CellPhase<T>* phase = nullptr;
  index units = 0;  // H, or P
  std::vector<Accumulator>
      sums;  // what its products sum: the phase's accumulators; with norms each part of a gate apart
  Matrix<T> input, recurrent;
  const T *bias_ih = nullptr, *bias_hh = nullptr;
  int operand = none;  // the slot that the recurrent product reads; `none`: h
  int output = none;   // the slot that the cell writes its state 0 to; `none`: y
  bool last = false;   // of a step
  bool ends_cell = false;
  bool projection = false;
  bool scaled = false;                 // its operand is h, or made of h, and dropped as h is
  int normal = none, unit_weight = 0;  // the first slot of its x̂, the first of its unit weights
  Zoned zoned;                         // of the states that it makes

  Feed input_feed() const { return feed_of(sums, &Accumulator::x); }
  Feed recurrent_feed() const { return feed_of(sums, &Accumulator::h); }
  index accumulators() const { return static_cast<index>(phase->accumulators.size()); }
  index vectors() const { return ceil_div(units, Vec<T>::lanes); }
};

// Each product's part of each gate as a sum of its own: what layer norm normalises. x's parts come first.
inline std::vector<Accumulator> parts_of(const std::vector<Accumulator>& accumulators) {
  std::vector<Accumulator> parts;
  for (const Accumulator& a : accumulators)
    if (a.x >= 0) parts.push_back({a.x, none});
  for (const Accumulator& a : accumulators)
    if (a.h >= 0) parts.push_back({none, a.h});
  return parts;
}

template <class T> struct Layer {
  const CellKernels<T>& cell;
  Weights<T> weights;
  Timeline timeline;
  Sequence<const T> x;
  SavedLayout layout;
  Zoneout zoneout{};
  const T* operand_scale = nullptr;  // (B, H): recurrent dropout, what h is multiplied by before it meets weight_hh
  // (T, B, H) over time, state 0 being the output y. At inference the driver has the others: one row a batch row, with
  // a step stride of 0.
  std::array<Sequence<T>, most_states> states{};
  std::array<const T*, most_states> initial{};  // (B, H) or null: the cell's own
  // (T, B, ·), or null: h after every step, where an earlier call has found it. The other values of a step are computed
  // again from it, and no step waits for the one before.
  Sequence<const T> known{};
  Sequence<T> saved{};                                        // (T, B, layout.size()), or null: inference
  bool keeps_states = false;                                  // states 1, … lie over time; else only the running value
  std::array<Buffer<T>, most_states> fresh = fresh_states();  // of a cell that starts anew
  Buffer<T> dense_heads{};                                    // what weights.hh points at, if the heads were filled up

  std::array<Buffer<T>, most_states> fresh_states() const {
    std::array<Buffer<T>, most_states> fresh;
    for (int k = 0; k < cell.states; k++) {
      fresh[k] = Buffer<T>({width(k)});
      fresh[k].fill(cell.initial[k]);
    }
    return fresh;
  }

  index hidden() const { return weights.hidden; }
  index width(int k) const { return k ? weights.hidden : weights.output; }
  index vectors() const { return ceil_div(weights.hidden, Vec<T>::lanes); }

  index accumulators() const {
    index all = 0;
    for (const CellPhase<T>& phase : cell.phases) all += static_cast<index>(phase.accumulators.size());
    return all;
  }

  // Whether a step's rows need room for values even where nothing is kept for backward.
  bool needs_values() const { return cell.phases.size() > 1 || weights.projects() || static_cast<bool>(zoneout); }

  // Whether some phase reads what other units made.
  bool recurrent() const {
    for (const CellPhase<T>& phase : cell.phases)
      for (const Accumulator& a : phase.accumulators)
        if (a.h >= 0) return true;
    return false;
  }

  // Whether several steps may be taken at once, as rows that come one after the other.
  bool scans() const { return !recurrent() || known; }
  // Whether threads that share out units have to wait for each other: where h is known, only between phases.
  bool waits() const { return recurrent() && !(known && cell.phases.size() == 1 && !weights.projects()); }

  std::vector<Stage<T>> stages() const {
    const Weights<T>& w = weights;
    std::vector<Stage<T>> all;
    int unit_weight = 0, normal = layout.normal;
    for (const CellPhase<T>& phase : cell.phases) {
      Stage<T> stage;
      stage.phase = &phase, stage.units = w.hidden;
      stage.sums = w.norms ? parts_of(phase.accumulators) : phase.accumulators;
      stage.input = {w.ih, w.input}, stage.recurrent = {w.hh, w.output / w.groups, w.groups};
      stage.bias_ih = w.bias_ih, stage.bias_hh = w.bias_hh;
      stage.operand = phase.operand, stage.output = layout.projected, stage.scaled = true;
      stage.unit_weight = unit_weight, stage.normal = normal;
      unit_weight += static_cast<int>(phase.unit_weights.size());
      if (w.norms) normal += static_cast<int>(stage.sums.size());
      all.push_back(stage);
    }
    all.back().ends_cell = true, all.back().zoned = layout.zoned_by_cell();
    if (w.projects()) {
      static const auto& projection = *new CellKernels<T>(describe<Projection, T>());  // never destroyed
      Stage<T> stage;
      stage.phase = &projection.phases.front(), stage.units = w.output;
      stage.sums = stage.phase->accumulators;
      stage.recurrent = {w.hr, w.hidden}, stage.operand = layout.projected, stage.projection = true;
      stage.zoned = layout.zoned_by_projection();
      all.push_back(stage);
    }
    all.back().last = true;
    return all;
  }

  // States (H,) of row r when step s begins and when it ends.
  T* before(int k, index s, index r) const {
    const index b = timeline.batch_row(r);
    switch (timeline.origin(s, r)) {
      case Origin::step_before: {
        const index t = timeline.time(s, r) + timeline.time_before();
        return k == 0 && known ? const_cast<T*>(known.at(t, b)) : states[k].at(t, b);
      }
      case Origin::given:
        if (initial[k]) return const_cast<T*>(initial[k]) + b * width(k);
        [[fallthrough]];
      default:
        return fresh[k].get();
    }
  }
  T* after(int k, index s, index r) const { return states[k].at(timeline.time(s, r), timeline.batch_row(r)); }
  T* saved_at(index s, index r) const { return saved.at(timeline.time(s, r), timeline.batch_row(r)); }
  const T* input_at(index s, index r) const { return x.at(timeline.time(s, r), timeline.batch_row(r)); }
};

// The rows of a thread at one step, or at several, one after the other: pointers that products and cells read through.
template <class T> class StepRows {
 public:
  StepRows() = default;
  StepRows(index rows, int states) : states_(states), x_({rows}), values_({rows}) {
    values_.fill(nullptr);
    for (auto& rows_of : slot_) rows_of = Buffer<T*>({rows});
    for (int k = 0; k < states; k++) before_[k] = Buffer<const T*>({rows}), after_[k] = Buffer<T*>({rows});
  }

  // Rows of values (size,) for steps that keep none, in the first places.
  void use_values(T* scratch, index size, index rows) {
    for (index i = 0; i < rows; i++) values_[i] = scratch + i * size;
  }
  // Rows [first, last) of step s take the places from `to` on.
  void set(const Layer<T>& layer, index s, index first, index last, index to) {
    for (index r = first, i = to; r < last; r++, i++) {
      x_[i] = layer.input_at(s, r);
      for (int k = 0; k < states_; k++) {
        before_[k][i] = layer.before(k, s, r);
        after_[k][i] = layer.after(k, s, r);
      }
      if (layer.saved) values_[i] = layer.saved_at(s, r);
    }
  }
  // The step after that of the `rows` rows from `from` on, which were not reset, takes the places from `to` on: before
  // `from`, the same, or after the last of them.
  void advance(const Layer<T>& layer, index rows, index from, index to) {
    const index way = layer.timeline.time_after();
    for (index i = 0; i < rows; i++) x_[to + i] = x_[from + i] + way * layer.x.step_stride;
    for (int k = 0; k < states_; k++)
      for (index i = 0; i < rows; i++) {
        T* before = after_[k][from + i];
        before_[k][to + i] = before;
        after_[k][to + i] = before + way * layer.states[k].step_stride;
      }
    if (layer.saved)
      for (index i = 0; i < rows; i++) values_[to + i] = values_[from + i] + way * layer.saved.step_stride;
  }
  // The step before likewise; it is not the first.
  void retreat(const Layer<T>& layer, index rows, index from, index to) {
    const index way = layer.timeline.time_before();
    for (index i = 0; i < rows; i++) x_[to + i] = x_[from + i] + way * layer.x.step_stride;
    for (int k = 0; k < states_; k++)
      for (index i = 0; i < rows; i++) {
        T* after = const_cast<T*>(before_[k][from + i]);
        after_[k][to + i] = after;
        before_[k][to + i] = after + way * layer.states[k].step_stride;
      }
    if (layer.saved)
      for (index i = 0; i < rows; i++) values_[to + i] = values_[from + i] + way * layer.saved.step_stride;
  }
  // The step that comes next is so many steps on in time; 0: none does.
  void expect(const Layer<T>& layer, index steps, index dy_stride = 0) {
    next_.saved = steps * layer.saved.step_stride, next_.dy = steps * dy_stride;
    for (int k = 0; k < states_; k++) next_.states[static_cast<std::size_t>(k)] = steps * layer.states[k].step_stride;
  }
  void set(index i, const T* x, T* values) { x_[i] = x, values_[i] = values; }
  void set(index i, int k, const T* before, T* after) { before_[k][i] = before, after_[k][i] = after; }

  int states() const { return states_; }
  const T* const* x() const { return x_.get(); }
  const T* const* before(int k) const { return before_[k].get(); }
  T* const* after(int k) const { return after_[k].get(); }
  T* const* values() const { return values_.get(); }
  const NextStep& next() const { return next_; }
  // A slot of the first rows' values, (hidden,) each: that which a stage reads, or which it writes.
  T* const* operand(int slot, index hidden, index rows) { return point(slot_[0], slot, hidden, rows); }
  T* const* output(int slot, index hidden, index rows) { return point(slot_[1], slot, hidden, rows); }

 private:
  int states_ = 0;
  Buffer<const T*> x_;
  std::array<Buffer<const T*>, most_states> before_;
  std::array<Buffer<T*>, most_states> after_;
  Buffer<T*> values_;
  std::array<Buffer<T*>, 2> slot_;
  NextStep next_;

  T* const* point(Buffer<T*>& at, int slot, index hidden, index rows) {
    for (index i = 0; i < rows; i++) at[i] = values_[i] + slot * hidden;
    return at.get();
  }
};

}  // namespace rnnfast
