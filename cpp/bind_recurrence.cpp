// The recurrent layers and the linear layer to Python: arrays to views, one driver call.
#include "backward.h"
#include "bind.h"
#include "cells.h"
#include "dense.h"
#include "forward.h"
#include "peak.h"
#include "stream.h"

namespace rnnfast {
namespace {

using MaybeResets = std::optional<py::array_t<bool, 0>>;
template <class T> using Arrays = std::vector<Array<T>>;
template <class T> using MaybeArrays = std::optional<Arrays<T>>;

py::dict cell_shapes() {
  py::dict shapes;
  for (const CellKernels<float>& cell : cells<float>()) {
    py::dict shape;
    shape["gates"] = cell.gates;
    shape["states"] = cell.states;
    shape["saved"] = cell.saved;
    shape["unit_weights"] = cell.unit_weights.size();
    shape["recurrent"] = !feed_of(cell.accumulators, &Accumulator::h).gates.empty();
    shapes[cell.name] = shape;
  }
  return shapes;
}

Resets resets_view(const MaybeResets& resets, index steps, index batch) {
  if (!resets) return {};
  if (resets->ndim() != 2 || resets->shape(0) != steps || resets->shape(1) != batch)
    reject("resets", shape_text(std::initializer_list<index>{steps, batch}), *resets);
  return {resets->data(), resets->strides(0), resets->strides(1)};
}

// Makes the driver and runs it to its end, all without the lock; between two blocks signals get their chance.
template <class Driver, class... Arguments> void drive(Arguments&... arguments) {
  std::optional<Driver> driver;
  run_in_blocks([&] {
    if (!driver) driver.emplace(arguments...);
    return driver->advance();
  });
}

template <class A> void check_count(const char* name, const A& arrays, int expected) {
  if (static_cast<int>(arrays.size()) != expected)
    throw py::value_error(std::string(name) + ": expected " + std::to_string(expected) + " arrays, got " +
                          std::to_string(arrays.size()));
}

// The parameters of a cell: weight_hh where it has a recurrent product, the unit weights as many as it declares.
template <class T> Weights<T> weights_view(const CellKernels<T>& cell, index input, index hidden, const Array<T>& ih,
                                           const MaybeArray<T>& hh, const MaybeArray<T>& bias_ih,
                                           const MaybeArray<T>& bias_hh, const Arrays<T>& unit_weights) {
  const index rows = checked_product({cell.gates, hidden});
  if (!hh && !feed_of(cell.accumulators, &Accumulator::h).gates.empty())
    throw py::value_error("weight_hh: expected an array, got None");
  check_count("unit_weights", unit_weights, static_cast<int>(cell.unit_weights.size()));
  Weights<T> weights{input,
                     hidden,
                     dense("weight_ih", ih, {rows, input}),
                     dense("weight_hh", hh, {rows, hidden}),
                     dense("bias_ih", bias_ih, {rows}),
                     dense("bias_hh", bias_hh, {rows})};
  for (std::size_t k = 0; k < unit_weights.size(); k++)
    weights.of_units[k] = dense("unit_weights", unit_weights[k], {hidden});
  return weights;
}

// The lengths of a call that has the steps from `begin` on of longer sequences.
Lengths segment_view(const MaybeArray<std::int64_t>& lengths, index steps, index batch, index begin, bool reverse) {
  if (begin < 0 || (begin > 0 && reverse))
    throw py::value_error("begin: expected 0, or a later step of a forward direction");
  Lengths segment = lengths_view(lengths, steps, batch, false);
  segment.begin = begin;
  return segment;
}

// What forward and backward share: everything but what they write.
template <class T> Layer<T> layer_view(const std::string& name, const Array<T>& x, const Array<T>& ih,
                                       const MaybeArray<T>& hh, const MaybeArray<T>& bias_ih,
                                       const MaybeArray<T>& bias_hh, const Arrays<T>& unit_weights,
                                       const MaybeArrays<T>& initial, const Array<T>& y, const Arrays<T>& states,
                                       const MaybeArray<T>& saved, const MaybeArray<std::int64_t>& lengths,
                                       const MaybeResets& resets, bool reverse, index begin) {
  const CellKernels<T>& cell = find_cell<T>(name);
  const index steps = extent("x", x, 0, 3), batch = x.shape(1), input = x.shape(2), hidden = extent("y", y, 2, 3);
  Layer<T> layer{cell, weights_view(cell, input, hidden, ih, hh, bias_ih, bias_hh, unit_weights),
                 Timeline(steps, batch, segment_view(lengths, steps, batch, begin, reverse),
                          resets_view(resets, steps, batch), reverse),
                 sequence("x", x, steps, batch, input)};
  layer.states[0] = sequence_out("y", y, steps, batch, hidden);
  if (!states.empty()) {
    check_count("states", states, cell.states - 1);
    for (int k = 1; k < cell.states; k++) layer.states[k] = sequence_out("states", states[k - 1], steps, batch, hidden);
    layer.keeps_states = true;
  }
  if (initial) {
    check_count("initial", *initial, cell.states);
    for (int k = 0; k < cell.states; k++) layer.initial[k] = dense("initial", (*initial)[k], {batch, hidden});
  }
  if (saved && cell.saved) {
    T* data = dense_out("saved", saved, {steps, batch, cell.saved, hidden});
    const index row = cell.saved * hidden;
    layer.saved = {data, steps, batch, row, batch * row, row};
  }
  return layer;
}

template <class T>
void forward(const std::string& cell, const Array<T>& x, const Array<T>& weight_ih, const MaybeArray<T>& weight_hh,
             const MaybeArray<T>& bias_ih, const MaybeArray<T>& bias_hh, const Arrays<T>& unit_weights,
             const MaybeArrays<T>& initial, const Array<T>& y, const Arrays<T>& states, const MaybeArray<T>& saved,
             const Arrays<T>& final, const MaybeArray<std::int64_t>& lengths, const MaybeResets& resets, bool reverse,
             int num_threads, index begin) {
  check_threads(num_threads);
  Layer<T> layer = layer_view(cell, x, weight_ih, weight_hh, bias_ih, bias_hh, unit_weights, initial, y, states, saved,
                              lengths, resets, reverse, begin);
  check_count("final", final, layer.cell.states);
  const index batch = layer.timeline.batch(), hidden = layer.hidden();
  std::array<T*, most_states> to{};
  for (int k = 0; k < layer.cell.states; k++) {
    to[k] = dense_out("final", final[k], {batch, hidden});
    // A state that is not kept over time is carried in the array of its last value.
    if (k > 0 && !layer.keeps_states) layer.states[k] = {to[k], layer.x.steps, batch, hidden, 0, hidden};
  }
  drive<Forward<T>>(layer, to, num_threads);
}

template <class T>
void backward(const std::string& cell, const Array<T>& x, const Array<T>& weight_ih, const MaybeArray<T>& weight_hh,
              const Arrays<T>& unit_weights, const MaybeArrays<T>& initial, const Array<T>& y, const Arrays<T>& states,
              const MaybeArray<T>& saved, const MaybeArray<T>& dy, const MaybeArrays<T>& dfinal,
              const MaybeArray<T>& dx, bool accumulate_dx, const Arrays<T>& dinitial, const Array<T>& dweight_ih,
              const MaybeArray<T>& dweight_hh, const MaybeArray<T>& dbias_ih, const MaybeArray<T>& dbias_hh,
              const Arrays<T>& dunit_weights, const MaybeArray<std::int64_t>& lengths, const MaybeResets& resets,
              bool reverse, int num_threads, index begin, bool resume, T clip, const MaybeArrays<T>& over_time) {
  check_threads(num_threads);
  Layer<T> layer = layer_view<T>(cell, x, weight_ih, weight_hh, {}, {}, unit_weights, initial, y, states, saved,
                                 lengths, resets, reverse, begin);
  const index steps = layer.x.steps, batch = layer.x.batch, input = layer.weights.input, hidden = layer.hidden();
  const index rows = layer.cell.gates * hidden;
  if (layer.cell.saved && !layer.saved) throw py::value_error("saved: expected the values that forward kept, got None");
  if (layer.cell.states > 1 && !layer.keeps_states)
    throw py::value_error("states: expected those that forward kept, got none");
  Adjoints<T> adjoints;
  if (dy) adjoints.dy = sequence("dy", *dy, steps, batch, hidden);
  if (dx) adjoints.dx = sequence_out("dx", *dx, steps, batch, input);
  adjoints.accumulate_dx = accumulate_dx;
  if (dfinal) check_count("dfinal", *dfinal, layer.cell.states);
  check_count("dinitial", dinitial, layer.cell.states);
  for (int k = 0; k < layer.cell.states; k++) {
    if (dfinal) adjoints.dfinal[k] = dense("dfinal", (*dfinal)[k], {batch, hidden});
    adjoints.dinitial[k] = dense_out("dinitial", dinitial[k], {batch, hidden});
  }
  adjoints.dweight_ih = dense_out("dweight_ih", dweight_ih, {rows, input});
  adjoints.dweight_hh = dense_out("dweight_hh", dweight_hh, {rows, hidden});
  adjoints.dbias_ih = dense_out("dbias_ih", dbias_ih, {rows});
  adjoints.dbias_hh = dense_out("dbias_hh", dbias_hh, {rows});
  check_count("dunit_weights", dunit_weights, static_cast<int>(layer.cell.unit_weights.size()));
  for (std::size_t k = 0; k < dunit_weights.size(); k++)
    adjoints.dof_units[k] = dense_out("dunit_weights", dunit_weights[k], {hidden});
  adjoints.resume = resume;
  adjoints.clip = clip;
  if (over_time) {
    check_count("over_time", *over_time, layer.cell.states);
    for (int k = 0; k < layer.cell.states; k++)
      adjoints.over_time[k] = sequence_out("over_time", (*over_time)[k], steps, batch, hidden);
  }
  drive<Backward<T>>(layer, adjoints, num_threads);
}

template <class T> void linear_forward(const Array<T>& x, const Array<T>& weight, const MaybeArray<T>& bias,
                                       const Array<T>& y, const MaybeArray<std::int64_t>& lengths, int num_threads) {
  check_threads(num_threads);
  const index steps = extent("x", x, 0, 3), batch = x.shape(1), input = x.shape(2);
  const index output = extent("weight", weight, 0, 2);
  const auto from = sequence("x", x, steps, batch, input);
  const auto to = sequence_out("y", y, steps, batch, output);
  const T *w = dense("weight", weight, {output, input}), *b = dense("bias", bias, {output});
  const Lengths live = lengths_view(lengths, steps, batch);
  drive<LinearForward<T>>(from, w, b, to, live, num_threads);
}

template <class T> void linear_backward(const Array<T>& x, const Array<T>& weight, const Array<T>& dy,
                                        const MaybeArray<T>& dx, const Array<T>& dweight, const MaybeArray<T>& dbias,
                                        const MaybeArray<std::int64_t>& lengths, int num_threads) {
  check_threads(num_threads);
  const index steps = extent("x", x, 0, 3), batch = x.shape(1), input = x.shape(2);
  const index output = extent("weight", weight, 0, 2);
  const auto x_view = sequence("x", x, steps, batch, input);
  const auto dy_view = sequence("dy", dy, steps, batch, output);
  const auto dx_view = dx ? sequence_out("dx", *dx, steps, batch, input) : Sequence<T>{};
  const T* w = dense("weight", weight, {output, input});
  T *dw = dense_out("dweight", dweight, {output, input}), *db = dense_out("dbias", dbias, {output});
  const Lengths live = lengths_view(lengths, steps, batch);
  drive<LinearBackward<T>>(x_view, w, dy_view, dx_view, dw, db, live, num_threads);
}

template <class T> Array<T> math(const std::string& name, const Array<T>& x) {
  const index n = extent("x", x, 0, 1);
  Array<T> y(n);
  apply_math(name, dense("x", x, {n}), y.mutable_data(), n);
  return y;
}

template <class T> using LayerArrays = std::tuple<Array<T>, MaybeArray<T>, MaybeArray<T>, MaybeArray<T>, Arrays<T>>;

template <class T> std::unique_ptr<Stream<T>> make_stream(const std::string& name,
                                                          const std::vector<LayerArrays<T>>& arrays, index batch,
                                                          int num_threads) {
  check_threads(num_threads);
  if (arrays.empty()) throw py::value_error("weights: expected at least one layer, got none");
  if (batch < 1) throw py::value_error("batch_size: expected at least 1, got " + std::to_string(batch));
  const CellKernels<T>& cell = find_cell<T>(name);
  const index hidden = extent("weight_ih", std::get<0>(arrays.front()), 0, 2) / cell.gates;
  std::vector<Weights<T>> layers;
  for (const auto& [ih, hh, bias_ih, bias_hh, unit_weights] : arrays) {
    const index input = layers.empty() ? extent("weight_ih", ih, 1, 2) : hidden;
    layers.push_back(weights_view(cell, input, hidden, ih, hh, bias_ih, bias_hh, unit_weights));
  }
  return std::make_unique<Stream<T>>(cell, layers, batch, num_threads);
}

// x as the kernels take it: itself, or a copy where its layout or byte order is another.
template <class T> Array<T> stream_input(const Stream<T>& stream, const py::object& x) {
  const py::array any = py::array::ensure(x);
  if (!any) {
    PyErr_Clear();
    throw py::type_error(std::string("x: expected an array, got ") + Py_TYPE(x.ptr())->tp_name);
  }
  if (any.dtype().kind() != 'f' || any.dtype().itemsize() != sizeof(T))
    throw py::type_error("x: expected " + std::string(py::str(py::dtype::of<T>())) + ", got " +
                         std::string(py::str(any.dtype())));
  if (any.ndim() != 2 || any.shape(0) != stream.batch() || any.shape(1) != stream.input())
    reject("x", shape_text(std::initializer_list<index>{stream.batch(), stream.input()}), any);
  const auto whole = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(any);
  if (!whole) throw py::error_already_set();
  if (reinterpret_cast<std::uintptr_t>(whole.data()) % alignof(T) == 0) return whole;
  Array<T> copy({stream.batch(), stream.input()});
  std::memcpy(copy.mutable_data(), whole.data(), whole.nbytes());
  return copy;
}

// A small step takes about as long as giving the lock away and getting it back, so it keeps the lock.
template <class T> Array<T> stream_step(Stream<T>& stream, const py::object& x) {
  const Array<T> from = stream_input(stream, x);
  Array<T> y({stream.batch(), stream.hidden()});
  const T* in = from.data();
  T* out = y.mutable_data();
  std::optional<py::gil_scoped_release> unlocked;
  if (stream.large()) unlocked.emplace();
  stream.step(in, out);
  unlocked.reset();
  return y;
}

template <class T> void bind_stream(py::module_& m, const char* name) {
  py::class_<Stream<T>>(m, name, py::module_local())
      .def("step", &stream_step<T>, py::arg("x"))
      .def(
          "get_state",
          [](Stream<T>& stream, int k) {
            if (k < 0 || k >= stream.states()) throw py::index_error("k: no such state");
            Array<T> out({stream.layers(), stream.batch(), stream.hidden()});
            const index size = stream.batch() * stream.hidden();
            for (index l = 0; l < stream.layers(); l++)
              std::copy_n(stream.state(l, k), size, out.mutable_data() + l * size);
            return out;
          },
          py::arg("k"))
      .def(
          "set_state",
          [](Stream<T>& stream, int k, const Array<T>& value) {
            if (k < 0 || k >= stream.states()) throw py::index_error("k: no such state");
            const T* from = dense("state", value, {stream.layers(), stream.batch(), stream.hidden()});
            const index size = stream.batch() * stream.hidden();
            for (index l = 0; l < stream.layers(); l++) std::copy_n(from + l * size, size, stream.state(l, k));
          },
          py::arg("k"), exact("value"));
  m.def("make_stream", make_stream<T>, py::arg("cell"), exact("weights"), py::arg("batch_size"),
        py::arg("num_threads"));
}

template <class T> void bind_type(py::module_& m) {
  using py::arg;
  m.def("math", math<T>, arg("name"), exact("x"));
  m.def("forward", forward<T>, arg("cell"), exact("x"), exact("weight_ih"), exact("weight_hh").none(true),
        exact("bias_ih").none(true), exact("bias_hh").none(true), exact("unit_weights"), exact("initial").none(true),
        exact("y"), exact("states"), exact("saved").none(true), exact("final"), exact("lengths").none(true),
        exact("resets").none(true), arg("reverse"), arg("num_threads"), arg("begin") = 0);
  m.def("backward", backward<T>, arg("cell"), exact("x"), exact("weight_ih"), exact("weight_hh").none(true),
        exact("unit_weights"), exact("initial").none(true), exact("y"), exact("states"), exact("saved").none(true),
        exact("dy").none(true), exact("dfinal").none(true), exact("dx").none(true), arg("accumulate_dx"),
        exact("dinitial"), exact("dweight_ih"), exact("dweight_hh").none(true), exact("dbias_ih").none(true),
        exact("dbias_hh").none(true), exact("dunit_weights"), exact("lengths").none(true), exact("resets").none(true),
        arg("reverse"), arg("num_threads"), arg("begin") = 0, arg("resume") = false,
        arg("clip") = std::numeric_limits<T>::infinity(), exact("over_time").none(true) = py::none());
  m.def("linear_forward", linear_forward<T>, exact("x"), exact("weight"), exact("bias").none(true), exact("y"),
        exact("lengths").none(true), arg("num_threads"));
  m.def("linear_backward", linear_backward<T>, exact("x"), exact("weight"), exact("dy"), exact("dx").none(true),
        exact("dweight"), exact("dbias").none(true), exact("lengths").none(true), arg("num_threads"));
}

}  // namespace

void bind_recurrence(py::module_& m) {
  m.def("cells", cell_shapes);
  m.def(
      "fma_peak",
      [](bool double_precision, double seconds, int num_threads) {
        check_threads(num_threads);
        py::gil_scoped_release unlocked;
        return double_precision ? fma_peak<double>(seconds, num_threads) : fma_peak<float>(seconds, num_threads);
      },
      py::arg("double_precision"), py::arg("seconds"), py::arg("num_threads"));
  bind_type<float>(m);
  bind_type<double>(m);
  bind_stream<float>(m, "Stream32");
  bind_stream<double>(m, "Stream64");
}

}  // namespace rnnfast
