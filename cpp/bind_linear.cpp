// The linear layer, the elementary functions and measured limits of the machine to Python.
#include "bind_layer.h"
#include "dense.h"
#include "peak.h"

namespace rnnfast {
namespace {

template <class T> void linear_forward(const Array<T>& x, const Array<T>& weight, const MaybeArray<T>& bias,
                                       const Array<T>& y, const MaybeArray<std::int64_t>& lengths, int num_threads) {
  check_threads(num_threads);
  const index steps = extent("x", x, 0, 3), batch = x.shape(1), input = x.shape(2);
  const index output = extent("weight", weight, 0, 2);
  const auto from = sequence("x", x, steps, batch, input);
  const auto to = sequence_out("y", y, steps, batch, output);
  const T *w = dense("weight", weight, {output, input}), *b = dense("bias", bias, {output});
  const Lengths live = lengths_view(lengths, steps, batch);
  run_unlocked([&](Signals& signals) { LinearForward<T>(from, w, b, to, live, num_threads).run(signals); });
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
  run_unlocked([&](Signals& signals) {
    LinearBackward<T>(x_view, w, dy_view, dx_view, dw, db, live, num_threads).run(signals);
  });
}

template <class T> Array<T> math(const std::string& name, const Array<T>& x) {
  const index n = extent("x", x, 0, 1);
  Array<T> y(n);
  apply_math(name, dense("x", x, {n}), y.mutable_data(), n);
  return y;
}

template <class T> void bind_type(py::module_& m) {
  using py::arg;
  m.def("math", math<T>, arg("name"), exact("x"));
  m.def("linear_forward", linear_forward<T>, exact("x"), exact("weight"), exact("bias").none(true), exact("y"),
        exact("lengths").none(true), arg("num_threads"));
  m.def("linear_backward", linear_backward<T>, exact("x"), exact("weight"), exact("dy"), exact("dx").none(true),
        exact("dweight"), exact("dbias").none(true), exact("lengths").none(true), arg("num_threads"));
}

}  // namespace

void bind_linear(py::module_& m) {
  m.def(
      "fma_peak",
      [](bool double_precision, double seconds, int num_threads) {
        check_threads(num_threads);
        py::gil_scoped_release unlocked;
        return double_precision ? fma_peak<double>(seconds, num_threads) : fma_peak<float>(seconds, num_threads);
      },
      py::arg("double_precision"), py::arg("seconds"), py::arg("num_threads"));
  m.def("line_round_trip", [] {
    const py::gil_scoped_release unlocked;
    return line_round_trip(5000);
  });
  bind_type<float>(m);
  bind_type<double>(m);
}

}  // namespace rnnfast
