// A stack of layers one step a call, to Python.
#include "bind_layer.h"
#include "stream.h"

namespace rnnfast {
namespace {

template <class T> std::unique_ptr<AnyStream<T>> make_stream(const std::vector<std::string>& names,
                                                             const std::vector<py::dict>& parameters, index batch,
                                                             int num_threads, index heads,
                                                             const std::optional<ZoneoutArguments>& zoneout,
                                                             bool bfloat16, const Array<T>&) {
  check_threads(num_threads);
  if (parameters.empty()) throw py::value_error("weights: expected at least one layer, got none");
  if (batch < 1) throw py::value_error("batch_size: expected at least 1, got " + std::to_string(batch));
  std::vector<Weights<T>> layers;
  std::vector<Buffer<T>> dense_heads(parameters.size());
  check_count("cells", names, static_cast<int>(parameters.size()));
  std::vector<const CellKernels<T>*> cells;
  for (const py::dict& of_layer : parameters) {
    const CellKernels<T>& found = find_cell<T>(names[layers.size()]);
    cells.push_back(&found);
    NamedArrays<T> arrays("weights", of_layer);
    const index hidden = arrays.rows("weight_ih") / found.gates;
    const index output = arrays.rows("weight_hr") ? arrays.rows("weight_hr") : hidden;
    const py::array first = py::array::ensure(of_layer["weight_ih"]);
    const index input = layers.empty() ? extent("weight_ih", first, 1, 2) : layers.back().output;
    layers.push_back(weights_view(found, input, hidden, output, heads, arrays));
    if (hidden != layers.front().hidden || output != layers.front().output || found.states != cells.front()->states)
      throw py::value_error("weights: expected layers of the same size and number of states");
    fill_heads(layers.back(), found.gates, dense_heads[layers.size() - 1]);
  }
  const Zoneout shares = zoneout_view(zoneout, cells.front()->states);
  std::unique_ptr<AnyStream<T>> stream;
  with_elements<T>(bfloat16, [&](auto element) {
    stream = std::make_unique<Stream<T, decltype(element)>>(cells, layers, shares, batch, num_threads);
  });
  return stream;
}

// x as the kernels take it: itself, or a copy where its layout or byte order is another.
template <class T> Array<T> stream_input(const AnyStream<T>& stream, const py::object& x) {
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
template <class T> Array<T> stream_step(AnyStream<T>& stream, const py::object& x) {
  const Array<T> from = stream_input(stream, x);
  Array<T> y({stream.batch(), stream.output()});
  const T* in = from.data();
  T* out = y.mutable_data();
  if (stream.large()) {
    run_unlocked([&](Signals& signals) { stream.step(in, out, signals); });
  } else {
    Signals signals(never_stop);
    stream.step(in, out, signals);
  }
  return y;
}

template <class T> void bind_type(py::module_& m, const char* name) {
  using S = AnyStream<T>;
  const auto check_state = [](const S& stream, int k) {
    if (k < 0 || k >= stream.states()) throw py::index_error("k: no such state");
  };
  py::class_<S>(m, name, py::module_local())
      .def("step", &stream_step<T>, py::arg("x"))
      .def(
          "get_state",
          [check_state](S& stream, int k) {
            check_state(stream, k);
            Array<T> out({stream.layers(), stream.batch(), stream.width(k)});
            const index size = stream.batch() * stream.width(k);
            for (index l = 0; l < stream.layers(); l++)
              std::copy_n(stream.state(l, k), size, out.mutable_data() + l * size);
            return out;
          },
          py::arg("k"))
      .def(
          "set_state",
          [check_state](S& stream, int k, const Array<T>& value) {
            check_state(stream, k);
            const T* from = dense("state", value, {stream.layers(), stream.batch(), stream.width(k)});
            const index size = stream.batch() * stream.width(k);
            for (index l = 0; l < stream.layers(); l++) std::copy_n(from + l * size, size, stream.state(l, k));
          },
          py::arg("k"), exact("value"));
  m.def("make_stream", make_stream<T>, py::arg("cells"), py::arg("weights"), py::arg("batch_size"),
        py::arg("num_threads"), py::arg("heads"), py::arg("zoneout").none(true), py::arg("bfloat16"), exact("like"));
}

}  // namespace

void bind_stream(py::module_& m) {
  bind_type<float>(m, "Stream32");
  bind_type<double>(m, "Stream64");
}

}  // namespace rnnfast
