// The reservoir of an echo state network to Python: packed once, then scanned by each call.
#include <limits>
#include <memory>

#include "bind.h"
#include "reservoir_scan.h"

namespace rnnfast {
namespace {

using Integers = Array<std::int64_t>;
using MaybeResets = MaybeArray<bool>;
template <class T> using ReadoutArrays = std::optional<std::tuple<Array<T>, Array<T>>>;  // weight, bias

[[noreturn]] void reject_csr(const char* name, const std::string& expected, std::int64_t got, index place) {
  throw py::value_error(std::string(name) + ": expected " + expected + ", got " + std::to_string(got) + " at " +
                        std::to_string(place));
}

// Everything that a wrong matrix could make a kernel read is checked here.
template <class T>
Csr<T> csr_view(const Integers& indptr, const Integers& indices, const Array<T>& data, index hidden) {
  const index terms = extent("data", data, 0, 1);
  const Csr<T> w{hidden, dense("indptr", indptr, {hidden + 1}), dense("indices", indices, {terms}),
                 dense("data", data, {terms})};
  if (hidden > std::numeric_limits<std::int32_t>::max() - 1024)
    throw py::value_error("indptr: too many units for 32-bit indices");
  if (w.starts[0] != 0) reject_csr("indptr", "0 at first", w.starts[0], 0);
  for (index i = 0; i < hidden; i++)
    if (w.starts[i + 1] < w.starts[i] || w.starts[i + 1] > terms)
      reject_csr("indptr", "values that ascend to " + std::to_string(terms), w.starts[i + 1], i + 1);
  if (w.starts[hidden] != terms) reject_csr("indptr", std::to_string(terms) + " at last", w.starts[hidden], hidden);
  for (index i = 0; i < hidden; i++)
    for (index j = w.starts[i]; j < w.starts[i + 1]; j++)
      if (w.columns[j] < 0 || w.columns[j] >= hidden || (j > w.starts[i] && w.columns[j] <= w.columns[j - 1]))
        reject_csr("indices", "columns from 0 to " + std::to_string(hidden - 1) + " that ascend in each row",
                   w.columns[j], j);
  return w;
}

template <class T> std::unique_ptr<Reservoir<T>> make_reservoir(const Array<T>& weight_ih,
                                                                const MaybeArray<T>& weight_fb, const Array<T>& bias,
                                                                const Array<T>& data, const Integers& indices,
                                                                const Integers& indptr, T leak) {
  const index hidden = extent("weight_ih", weight_ih, 0, 2), input = weight_ih.shape(1);
  const index outputs = weight_fb ? extent("weight_fb", *weight_fb, 1, 2) : 0;
  const T* in = dense("weight_ih", weight_ih, {hidden, input});
  const T* fb = dense("weight_fb", weight_fb, {hidden, outputs});
  const T* b = dense("bias", bias, {hidden});
  const Csr<T> w = csr_view(indptr, indices, data, hidden);
  py::gil_scoped_release unlocked;
  return std::make_unique<Reservoir<T>>(input, outputs, in, fb, b, w, leak);
}

// Without x, y tells the steps and the rows.
template <class T> void scan(const Reservoir<T>& reservoir, const MaybeArray<T>& x, const MaybeArray<T>& teacher,
                             const ReadoutArrays<T>& readout, const MaybeArray<T>& initial,
                             const MaybeArray<T>& initial_output, const MaybeArray<T>& states, const MaybeArray<T>& y,
                             const Array<T>& final, const MaybeArray<T>& final_output,
                             const MaybeArray<std::int64_t>& lengths, const MaybeResets& resets, int num_threads) {
  check_threads(num_threads);
  if (!x && !y) throw py::value_error("x, y: expected one of them at least, got None");
  const index steps = x ? extent("x", *x, 0, 3) : extent("y", *y, 0, 3);
  const index batch = x ? x->shape(1) : y->shape(1), hidden = reservoir.hidden(), input = reservoir.input();
  ReservoirCall<T> call;
  index outputs = reservoir.outputs();
  if (readout) {
    const auto& [weight, bias] = *readout;
    call.readout.outputs = outputs = extent("readout", weight, 0, 2);
    call.readout.features = weight.shape(1);
    if (call.readout.features != hidden && call.readout.features != hidden + input)
      reject("readout", "(O, H) or (O, H + I)", weight);
    call.readout.weight = dense("readout", weight, {outputs, call.readout.features});
    call.readout.bias = dense("readout", bias, {outputs});
    if (!y) throw py::value_error("y: expected an array for the readout, got None");
  }
  if (reservoir.outputs() && !teacher && reservoir.outputs() != call.readout.outputs)
    throw py::value_error("readout: expected one with the outputs that are fed back");
  if (teacher && readout) throw py::value_error("teacher, readout: expected one of them at most");
  if (!x && input != call.readout.outputs)
    throw py::value_error("readout: expected one with as many outputs as inputs");
  if (x) call.x = sequence("x", *x, steps, batch, input);
  if (teacher) call.teacher = sequence("teacher", *teacher, steps, batch, outputs);
  if (y) call.y = sequence_out("y", *y, steps, batch, outputs);
  if (states) call.states = sequence_out("states", *states, steps, batch, hidden);
  call.initial = dense("initial", initial, {batch, hidden});
  call.initial_output = dense("initial_output", initial_output, {batch, outputs});
  call.final = dense_out("final", final, {batch, hidden});
  call.final_output = dense_out("final_output", final_output, {batch, outputs});
  if (resets && (resets->ndim() != 2 || resets->shape(0) != steps || resets->shape(1) != batch))
    reject("resets", shape_text(std::initializer_list<index>{steps, batch}), *resets);
  const Resets cuts = resets ? Resets{resets->data(), resets->strides(0), resets->strides(1)} : Resets{};
  const Lengths valid = lengths_view(lengths, steps, batch);
  run_unlocked([&](Signals& signals) {
    ReservoirScan<T>(reservoir, call, Timeline(steps, batch, valid, cuts, false), resets.has_value(), num_threads)
        .run(signals);
  });
}

// y = W x + b, of a reservoir without inputs.
template <class T> void product(const Reservoir<T>& reservoir, const Array<T>& x, const Array<T>& y) {
  const index hidden = reservoir.hidden(), size = Slots<T>::state_size(hidden);
  if (reservoir.head()) throw py::value_error("weight_ih, weight_fb: expected none");
  const T* from = dense("x", x, {hidden});
  T* to = dense_out("y", y, {hidden});
  py::gil_scoped_release unlocked;
  const FlushSubnormals flush;
  Buffer<T> in({size}), out({size});
  in.fill(T(0));
  std::copy_n(from, hidden, in.get());
  reservoir.sums_of_row(0, reservoir.slots().bundles(), nullptr, nullptr, in.get(), out.get());
  std::copy_n(out.get(), hidden, to);
}

template <class T> void bind_type(py::module_& m, const char* name) {
  using py::arg;
  py::class_<Reservoir<T>>(m, name, py::module_local())
      .def("product", &product<T>, exact("x"), exact("y"))
      .def("scan", &scan<T>, exact("x").none(true), exact("teacher").none(true), exact("readout").none(true),
           exact("initial").none(true), exact("initial_output").none(true), exact("states").none(true),
           exact("y").none(true), exact("final"), exact("final_output").none(true), exact("lengths").none(true),
           exact("resets").none(true), arg("num_threads"));
  m.def("make_reservoir", make_reservoir<T>, exact("weight_ih"), exact("weight_fb").none(true), exact("bias"),
        exact("data"), exact("indices"), exact("indptr"), arg("leak"));
}

}  // namespace

void bind_reservoir(py::module_& m) {
  bind_type<float>(m, "Reservoir32");
  bind_type<double>(m, "Reservoir64");
}

}  // namespace rnnfast
