// The backward pass of a recurrent layer to Python: arrays to views, one driver call.
#include "backward.h"
#include "bind_layer.h"

namespace rnnfast {
namespace {

template <class T> Gradients<T> gradients_view(const Layer<T>& layer, const py::dict& gradients) {
  const Weights<T>& w = layer.weights;
  const index rows = layer.cell.gates * w.hidden;
  NamedArrays<T> arrays("gradients", gradients);
  Gradients<T> to;
  to.ih = arrays.out("weight_ih", {rows, w.input}), to.hh = arrays.out("weight_hh", {rows, w.output / w.heads});
  to.bias_ih = arrays.out("bias_ih", {rows}), to.bias_hh = arrays.out("bias_hh", {rows});
  to.hr = arrays.out("weight_hr", {w.output, w.hidden});
  to.norm_ih_weight = arrays.out("ln_ih_weight", {rows}), to.norm_ih_bias = arrays.out("ln_ih_bias", {rows});
  to.norm_hh_weight = arrays.out("ln_hh_weight", {rows}), to.norm_hh_bias = arrays.out("ln_hh_bias", {rows});
  const Arrays<T> of_units = arrays.list("unit_weights", unit_weights_of(layer.cell));
  for (std::size_t k = 0; k < of_units.size(); k++) to.of_units[k] = dense_out("unit_weights", of_units[k], {w.hidden});
  arrays.check_all_asked();
  if (!to.ih || !to.hh != !w.hh || !to.hr != !w.hr || !to.norm_ih_weight != !w.norms || !to.norm_hh_weight != !w.norms)
    throw py::value_error("gradients: expected an array for each of the weights");
  return to;
}

template <class T>
void backward(const std::string& cell, const Array<T>& x, const py::dict& weights, const MaybeArrays<T>& initial,
              const Array<T>& y, const Arrays<T>& states, const MaybeArray<T>& saved, const MaybeArray<T>& dy,
              const MaybeArrays<T>& dfinal, const MaybeArray<T>& dx, bool accumulate_dx, const Arrays<T>& dinitial,
              const py::dict& gradients, const MaybeArray<std::int64_t>& lengths, const MaybeResets& resets,
              bool reverse, int num_threads, index begin, bool resume, bool goes_on, T clip,
              const MaybeArrays<T>& over_time, index heads, const std::optional<ZoneoutArguments>& zoneout,
              const MaybeArray<T>& operand_scale, bool bfloat16, MaybeCalls beside, std::shared_ptr<Kept> kept) {
  check_threads(num_threads);
  Layer<T> layer = layer_view<T>(cell, x, weights, initial, y, states, saved, lengths, resets, reverse,
                                 {begin, heads, zoneout, operand_scale});
  const index steps = layer.x.steps, batch = layer.x.batch, input = layer.weights.input;
  if (layer.layout.size() && !layer.saved)
    throw py::value_error("saved: expected the values that forward kept, got None");
  if (layer.cell.states > 1 && !layer.keeps_states)
    throw py::value_error("states: expected those that forward kept, got none");
  Adjoints<T> adjoints;
  if (dy) adjoints.dy = sequence("dy", *dy, steps, batch, layer.width(0));
  if (dx) adjoints.dx = sequence_out("dx", *dx, steps, batch, input);
  adjoints.accumulate_dx = accumulate_dx;
  if (dfinal) check_count("dfinal", *dfinal, layer.cell.states);
  check_count("dinitial", dinitial, layer.cell.states);
  if (over_time) check_count("over_time", *over_time, layer.cell.states);
  for (int k = 0; k < layer.cell.states; k++) {
    const index width = layer.width(k);
    if (dfinal) adjoints.dfinal[k] = dense("dfinal", (*dfinal)[k], {batch, width});
    adjoints.dinitial[k] = dense_out("dinitial", dinitial[k], {batch, width});
    if (over_time) adjoints.over_time[k] = sequence_out("over_time", (*over_time)[k], steps, batch, width);
  }
  adjoints.gradients = gradients_view(layer, gradients);
  if (goes_on && !kept) throw py::value_error("kept: expected an object where sums go on, got None");
  adjoints.resume = resume, adjoints.goes_on = goes_on;
  adjoints.clip = clip;
  if (beside)
    (*beside)->keep(x, weights, initial, y, states, saved, dy, dfinal, dx, dinitial, gradients, lengths, resets,
                    over_time, operand_scale);
  with_elements<T>(bfloat16, [&](auto element) {
    drive<Backward<T, decltype(element)>>(beside, num_threads, layer, adjoints, kept);
  });
}

template <class T> void bind_type(py::module_& m) {
  using py::arg;
  m.def("backward", backward<T>, arg("cell"), exact("x"), arg("weights"), exact("initial").none(true), exact("y"),
        exact("states"), exact("saved").none(true), exact("dy").none(true), exact("dfinal").none(true),
        exact("dx").none(true), arg("accumulate_dx"), exact("dinitial"), arg("gradients"), exact("lengths").none(true),
        exact("resets").none(true), arg("reverse"), arg("num_threads"), arg("begin") = 0, arg("resume") = false,
        arg("goes_on") = false, arg("clip") = std::numeric_limits<T>::infinity(),
        exact("over_time").none(true) = py::none(), arg("heads") = 1, arg("zoneout") = py::none(),
        exact("operand_scale").none(true) = py::none(), arg("bfloat16") = false, arg("beside") = py::none(),
        arg("kept") = py::none());
}

}  // namespace

void bind_backward(py::module_& m) {
  bind_type<float>(m);
  bind_type<double>(m);
}

}  // namespace rnnfast
