// The forward pass of a recurrent layer to Python: arrays to views, one driver call.
#include "bind_layer.h"
#include "forward.h"

namespace rnnfast {
namespace {

template <class T>
void forward(const std::string& cell, const Array<T>& x, const py::dict& weights, const MaybeArrays<T>& initial,
             const Array<T>& y, const Arrays<T>& states, const MaybeArray<T>& saved, const Arrays<T>& final,
             const MaybeArray<std::int64_t>& lengths, const MaybeResets& resets, bool reverse, int num_threads,
             index begin, index heads, const std::optional<ZoneoutArguments>& zoneout,
             const MaybeArray<T>& operand_scale, bool bfloat16, MaybeCalls beside, std::shared_ptr<Kept> kept,
             const MaybeArray<T>& known) {
  check_threads(num_threads);
  Layer<T> layer = layer_view<T>(cell, x, weights, initial, y, states, saved, lengths, resets, reverse,
                                 {begin, heads, zoneout, operand_scale});
  check_count("final", final, layer.cell.states);
  const index batch = layer.timeline.batch();
  // More rows fill tiles at every step, with an h that is in a cache (measured, T = 4,096, LSTM: one row's training
  // with segments took 1.43 of the time without, 1.23 with h known; 4 rows' 1.31 and 1.32, 8 rows' 1.34 and 1.38).
  if (known) {
    const Sequence<const T> h = sequence("known", *known, x.shape(0), batch, layer.weights.output);
    if (batch < rows_worth_splitting) layer.known = h;
  }
  std::array<T*, most_states> to{};
  for (int k = 0; k < layer.cell.states; k++) to[k] = dense_out("final", final[k], {batch, layer.width(k)});
  if (beside) (*beside)->keep(x, weights, initial, y, states, saved, final, lengths, resets, operand_scale, known);
  with_elements<T>(bfloat16,
                   [&](auto element) { drive<Forward<T, decltype(element)>>(beside, num_threads, layer, to, kept); });
}

template <class T> void bind_type(py::module_& m) {
  using py::arg;
  m.def("forward", forward<T>, arg("cell"), exact("x"), arg("weights"), exact("initial").none(true), exact("y"),
        exact("states"), exact("saved").none(true), exact("final"), exact("lengths").none(true),
        exact("resets").none(true), arg("reverse"), arg("num_threads"), arg("begin") = 0, arg("heads") = 1,
        arg("zoneout") = py::none(), exact("operand_scale").none(true) = py::none(), arg("bfloat16") = false,
        arg("beside") = py::none(), arg("kept") = py::none(), exact("known").none(true) = py::none());
}

py::dict cell_shapes() {
  py::dict shapes;
  for (const CellKernels<float>& cell : cells<float>()) {
    py::dict shape;
    shape["gates"] = cell.gates;
    shape["states"] = cell.states;
    shape["saved"] = cell.saved;
    shape["unit_weights"] = unit_weights_of(cell);
    shape["recurrent"] = reads_h(cell);
    shape["initial"] = std::vector<float>(cell.initial.begin(), cell.initial.begin() + cell.states);
    shapes[cell.name] = shape;
  }
  return shapes;
}

// The numbers that forward keeps of a step and row for backward. `projected`: the width of a projected h, or 0.
index saved_size(const std::string& cell, index hidden, index projected, bool zoneout, bool norms) {
  return saved_layout(find_cell<float>(cell), hidden, projected, zoneout, norms).size();
}

// A layer that has sizes and no arrays.
template <class T> Layer<T> sizes_of_layer(const std::string& cell, index steps, index batch, index input, index hidden,
                                           index output, bool norms) {
  static const T asked_for_and_never_read = 0;
  Weights<T> weights;
  weights.input = input, weights.hidden = hidden, weights.output = output;
  if (norms) weights.norms.ih_weight = &asked_for_and_never_read;
  return {find_cell<T>(cell), weights, Timeline(steps, batch, {nullptr, steps}, {}, false), {}, {}};
}

// Whether so many directions, or layers, of these sizes would be run side by side.
bool runs_side_by_side(const std::string& name, index steps, index batch, index input, index hidden, index output,
                       bool norms, bool double_precision, bool layers, int count, int num_threads) {
  check_threads(num_threads);
  const auto decide = [&](auto zero) {
    return side_by_side(sizes_of_layer<decltype(zero)>(name, steps, batch, input, hidden, output, norms),
                        layers ? Beside::layers : Beside::directions, count, num_threads);
  };
  return double_precision ? decide(0.0) : decide(0.0f);
}

// How a call with these sizes would be laid out.
py::dict plan_of(const std::string& name, index steps, index batch, index input, index hidden, index output, bool norms,
                 bool double_precision, int num_threads, bool of_layers) {
  check_threads(num_threads);
  const auto describe_plan = [&](auto zero) {
    using T = decltype(zero);
    const Layer<T> layer = sizes_of_layer<T>(name, steps, batch, input, hidden, output, norms);
    const Plan plan = make_plan(layer, num_threads, of_layers ? Beside::layers : Beside::nothing);
    py::dict shown;
    shown["threads"] = plan.threads;
    shown["split"] = plan.threads == 1 ? "none" : plan.by_rows ? "rows" : "units";
    shown["barrier"] = plan.waits && plan.threads > 1;
    shown["rows"] = plan.rows;
    shown["panel_width"] = plan.width;
    const index together = plan.scans ? plan.rows * plan.steps_ahead : plan.rows;
    shown["tile_rows"] = even_part(std::clamp<index>(together, 1, rows_in_cache), rows_of_tile(plan.width));
    shown["steps_ahead"] = plan.steps_ahead;
    shown["lanes"] = Vec<T>::lanes;
    return shown;
  };
  return double_precision ? describe_plan(0.0) : describe_plan(0.0f);
}

}  // namespace

void bind_forward(py::module_& m) {
  m.def("cells", cell_shapes);
  m.def("saved_size", saved_size, py::arg("cell"), py::arg("hidden"), py::arg("projected"), py::arg("zoneout"),
        py::arg("norms"));
  m.def("plan", plan_of, py::arg("cell"), py::arg("steps"), py::arg("batch"), py::arg("input"), py::arg("hidden"),
        py::arg("output"), py::arg("norms"), py::arg("double_precision"), py::arg("num_threads"), py::arg("of_layers"));
  m.def("side_by_side", runs_side_by_side, py::arg("cell"), py::arg("steps"), py::arg("batch"), py::arg("input"),
        py::arg("hidden"), py::arg("output"), py::arg("norms"), py::arg("double_precision"), py::arg("layers"),
        py::arg("count"), py::arg("num_threads"));
  py::class_<Kept, std::shared_ptr<Kept>>(m, "Kept", py::module_local());
  m.def("make_kept", [] { return std::make_shared<Kept>(); });
  py::class_<Calls>(m, "Calls", py::module_local()).def("run", &Calls::run, py::arg("num_threads"));
  m.def(
      "make_calls", [](bool layers, int count) { return std::make_unique<Calls>(layers, count); }, py::arg("layers"),
      py::arg("count"));
  bind_type<float>(m);
  bind_type<double>(m);
}

}  // namespace rnnfast
