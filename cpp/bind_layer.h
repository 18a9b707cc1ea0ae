// What the bindings of the recurrent layers share: a layer's arrays and options to views.
#pragma once

#include <string_view>

#include "bind.h"
#include "cells.h"
#include "layer.h"
#include "together.h"

namespace rnnfast {

using MaybeResets = MaybeArray<bool>;
template <class T> using Arrays = std::vector<Array<T>>;
template <class T> using MaybeArrays = std::optional<Arrays<T>>;

inline Resets resets_view(const MaybeResets& resets, index steps, index batch) {
  if (!resets) return {};
  if (resets->ndim() != 2 || resets->shape(0) != steps || resets->shape(1) != batch)
    reject("resets", shape_text(std::initializer_list<index>{steps, batch}), *resets);
  return {resets->data(), resets->strides(0), resets->strides(1)};
}

// Calls that will run side by side, and the objects that they look at until then.
class Calls {
 public:
  Calls(bool of_layers, int count) : drivers_(of_layers ? Beside::layers : Beside::directions, count) {}

  template <class D, class... Arguments> void add(int threads, Arguments&... arguments) {
    drivers_.add(std::make_unique<D>(std::move(arguments)..., drivers_.threads_of_each(threads), drivers_.beside(),
                                     drivers_.last()));
  }
  template <class... Objects> void keep(const Objects&... objects) { kept_.push_back(py::make_tuple(objects...)); }
  // Once: whatever comes of it, nothing is kept after it.
  void run(int threads) {
    check_threads(threads);
    const std::vector<py::tuple> kept = std::move(kept_);
    Together drivers = std::move(drivers_);
    run_unlocked([&](Signals& signals) { drivers.run(signals, threads); });
  }

 private:
  Together drivers_;
  std::vector<py::tuple> kept_;
};

// None is a pointer's value only for an overload that is tried a second time.
using MaybeCalls = std::optional<Calls*>;

// Makes the driver and runs it, all without the lock; or adds it to the calls that it is to run beside.
template <class D, class... Arguments> void drive(MaybeCalls beside, int threads, Arguments&... arguments) {
  if (beside) return (*beside)->template add<D>(threads, arguments...);
  run_unlocked([&](Signals& signals) {
    D driver(std::move(arguments)..., threads);
    parallel(driver.threads(), [&](int thread, int count) { driver.work(signals, thread, count); });
  });
}

template <class A> void check_count(const char* name, const A& arrays, int expected) {
  if (static_cast<int>(arrays.size()) != expected)
    throw py::value_error(std::string(name) + ": expected " + std::to_string(expected) + " arrays, got " +
                          std::to_string(arrays.size()));
}

// Arrays by name: the parameters of a layer and direction, or their gradients. Every one has to be asked for.
template <class T> class NamedArrays {
 public:
  NamedArrays(const char* what, const py::dict& arrays) : what_(what), arrays_(arrays) {
    entries_.reserve(arrays.size());
    for (const auto& [name, value] : arrays) entries_.push_back({py::cast<std::string_view>(name), value});
  }

  // The array of this name and shape, or null.
  template <class Read> auto get(const char* name, std::initializer_list<index> shape, Read read)
      -> decltype(read("", Array<T>(), shape)) {
    const py::handle value = find(name);
    if (!value) return nullptr;
    asked_++;
    if (!py::isinstance<Array<T>>(value))
      throw py::type_error(std::string(what_) + "[\"" + name + "\"]: expected an array of the dtype of x");
    return read(name, py::reinterpret_borrow<Array<T>>(value), shape);
  }
  const T* in(const char* name, std::initializer_list<index> shape) {
    return get(name, shape,
               [](const char* n, const Array<T>& a, std::initializer_list<index> s) { return dense(n, a, s); });
  }
  T* out(const char* name, std::initializer_list<index> shape) {
    return get(name, shape,
               [](const char* n, const Array<T>& a, std::initializer_list<index> s) { return dense_out(n, a, s); });
  }
  index rows(const char* name) const {
    const py::handle value = find(name);
    if (!value || !py::isinstance<Array<T>>(value)) return 0;
    const auto array = py::reinterpret_borrow<Array<T>>(value);
    return array.ndim() > 0 ? array.shape(0) : 0;
  }
  Arrays<T> list(const char* name, int expected) {
    Arrays<T> all;
    if (const py::handle value = find(name)) {
      asked_++;
      for (const py::handle item : value) {
        if (!py::isinstance<Array<T>>(item))
          throw py::type_error(std::string(what_) + "[\"" + name + "\"]: expected arrays of the dtype of x");
        all.push_back(py::reinterpret_borrow<Array<T>>(item));
      }
    }
    check_count(name, all, expected);
    return all;
  }
  void check_all_asked() const {
    if (asked_ == entries_.size()) return;
    throw py::value_error(std::string(what_) + ": a name among " + std::string(py::str(py::list(arrays_))) +
                          " is none of this cell's");
  }

 private:
  struct Entry {
    std::string_view name;
    py::handle value;
  };

  py::handle find(std::string_view name) const {
    for (const Entry& entry : entries_)
      if (entry.name == name) return entry.value;
    return {};
  }

  const char* what_;
  py::dict arrays_;
  std::vector<Entry> entries_;  // of arrays_: a dozen names are asked for, and each would be made a string of Python's
  std::size_t asked_ = 0;
};

template <class T> int unit_weights_of(const CellKernels<T>& cell) {
  std::size_t count = 0;
  for (const CellPhase<T>& phase : cell.phases) count += phase.unit_weights.size();
  return static_cast<int>(count);
}

template <class T> bool reads_h(const CellKernels<T>& cell) {
  for (const CellPhase<T>& phase : cell.phases)
    for (const Accumulator& a : phase.accumulators)
      if (a.h >= 0) return true;
  return false;
}

// Whether a unit takes its own number of x.
template <class T> bool reads_own_x(const CellKernels<T>& cell) {
  for (const CellPhase<T>& phase : cell.phases)
    for (const Accumulator& a : phase.accumulators)
      if (a.x == own) return true;
  return false;
}

// The parameters of a cell: weight_hh where it has a recurrent product, the unit weights as many as it declares.
template <class T> Weights<T> weights_view(const CellKernels<T>& cell, index input, index hidden, index output,
                                           index heads, NamedArrays<T>& arrays) {
  const index rows = checked_product({cell.gates, hidden});
  if (hidden < 1) throw py::value_error("weight_ih: expected rows for at least one unit of each gate");
  if (heads < 1 || output % heads) throw py::value_error("heads: expected a divisor of the width of h");
  Weights<T> weights;
  weights.input = input, weights.hidden = hidden, weights.output = output, weights.heads = heads;
  weights.ih = arrays.in("weight_ih", {rows, input});
  weights.hh = arrays.in("weight_hh", {rows, output / heads});
  weights.bias_ih = arrays.in("bias_ih", {rows}), weights.bias_hh = arrays.in("bias_hh", {rows});
  weights.hr = arrays.in("weight_hr", {output, hidden});
  weights.norms = {arrays.in("ln_ih_weight", {rows}), arrays.in("ln_ih_bias", {rows}),
                   arrays.in("ln_hh_weight", {rows}), arrays.in("ln_hh_bias", {rows})};
  const Arrays<T> of_units = arrays.list("unit_weights", unit_weights_of(cell));
  for (std::size_t k = 0; k < of_units.size(); k++) weights.of_units[k] = dense("unit_weights", of_units[k], {hidden});
  arrays.check_all_asked();
  if (!weights.ih) throw py::value_error("weight_ih: expected an array, got None");
  if (!weights.hh && reads_h(cell)) throw py::value_error("weight_hh: expected an array, got None");
  if (weights.norms && !weights.norms.hh_weight) throw py::value_error("ln_hh_weight: expected an array, got None");
  if (!weights.hr && output != hidden) throw py::value_error("weight_hr: expected an array, got None");
  if (weights.hr && (heads > 1 || !reads_h(cell)))
    throw py::value_error("weight_hr: expected None for a cell with heads or without a recurrent product");
  if (reads_own_x(cell) && input != hidden)
    throw py::value_error("weight_ih: expected as many features as units, since the cell reads x itself");
  return weights;
}

// The lengths of a call that has the steps from `begin` on of longer sequences.
inline Lengths segment_view(const MaybeArray<std::int64_t>& lengths, index steps, index batch, index begin,
                            bool reverse) {
  if (begin < 0 || (begin > 0 && reverse))
    throw py::value_error("begin: expected 0, or a later step of a forward direction");
  Lengths segment = lengths_view(lengths, steps, batch, false);
  segment.begin = begin;
  return segment;
}

// Probabilities, one a state, whether masks are drawn, and their key: seed, call, first stream.
using ZoneoutArguments = std::tuple<std::vector<double>, bool, std::uint64_t, std::uint64_t, std::uint32_t>;

inline Zoneout zoneout_view(const std::optional<ZoneoutArguments>& arguments, int states) {
  Zoneout zoneout;
  if (!arguments) return zoneout;
  const auto& [probability, random, seed, call, stream] = *arguments;
  check_count("zoneout", probability, states);
  std::copy(probability.begin(), probability.end(), zoneout.probability.begin());
  zoneout.random = random, zoneout.seed = seed, zoneout.call = call, zoneout.stream = stream;
  return zoneout;
}

// What a layer has beside its weights and arrays.
template <class T> struct Options {
  index begin = 0, heads = 1;
  std::optional<ZoneoutArguments> zoneout;
  MaybeArray<T> operand_scale;
};

// What forward and backward share: everything but what they write.
template <class T> Layer<T> layer_view(const std::string& name, const Array<T>& x, const py::dict& parameters,
                                       const MaybeArrays<T>& initial, const Array<T>& y, const Arrays<T>& states,
                                       const MaybeArray<T>& saved, const MaybeArray<std::int64_t>& lengths,
                                       const MaybeResets& resets, bool reverse, const Options<T>& options) {
  const CellKernels<T>& cell = find_cell<T>(name);
  const index steps = extent("x", x, 0, 3), batch = x.shape(1), input = x.shape(2), output = extent("y", y, 2, 3);
  NamedArrays<T> arrays("weights", parameters);
  const index hidden = arrays.rows("weight_ih") / cell.gates;
  Weights<T> weights = weights_view(cell, input, hidden, output, options.heads, arrays);
  Buffer<T> dense_heads;
  fill_heads(weights, cell.gates, dense_heads);
  const Zoneout zoneout = zoneout_view(options.zoneout, cell.states);
  Layer<T> layer{
      cell,
      weights,
      Timeline(steps, batch, segment_view(lengths, steps, batch, options.begin, reverse),
               resets_view(resets, steps, batch), reverse),
      sequence("x", x, steps, batch, input),
      saved_layout(cell, hidden, weights.projected(), static_cast<bool>(zoneout), static_cast<bool>(weights.norms)),
      zoneout};
  layer.dense_heads = std::move(dense_heads);
  layer.operand_scale = dense("operand_scale", options.operand_scale, {batch, output});
  layer.states[0] = sequence_out("y", y, steps, batch, output);
  if (!states.empty()) {
    check_count("states", states, cell.states - 1);
    for (int k = 1; k < cell.states; k++) layer.states[k] = sequence_out("states", states[k - 1], steps, batch, hidden);
    layer.keeps_states = true;
  }
  if (initial) {
    check_count("initial", *initial, cell.states);
    for (int k = 0; k < cell.states; k++) layer.initial[k] = dense("initial", (*initial)[k], {batch, layer.width(k)});
  }
  if (saved && layer.layout.size()) {
    const index row = layer.layout.size();
    layer.saved = {dense_out("saved", saved, {steps, batch, row}), steps, batch, row, batch * row, row};
  }
  return layer;
}

// Calls with<E>() for the elements that products take: T itself, or, where they are asked for, pairs of bfloat16.
template <class T, class With> void with_elements(bool bfloat16, With with) {
  if constexpr (std::is_same_v<T, float> && Vec<float>::lanes >= 2) {
    if (bfloat16) return with(Bfloat16Pair{});
  } else {
    if (bfloat16) throw py::value_error("bfloat16: expected float32 arrays and a processor with vectors");
  }
  with(T{});
}

}  // namespace rnnfast
