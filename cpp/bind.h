// From NumPy arrays to views. Python has validated and allocated; what is checked again here is only what a wrong call
// would turn into a read or write out of bounds.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

#include "signals.h"
#include "views.h"

namespace rnnfast {

namespace py = pybind11;

// pybind11's array, but for what it is before it is given a value: nothing, where pybind11 makes an empty array of
// NumPy's for every argument of every call.
template <class T> class Array : public py::array_t<T, 0> {
 public:
  using py::array_t<T, 0>::array_t;
  Array() : py::array_t<T, 0>(py::handle(), py::object::stolen_t{}) {}
};
template <class T> using MaybeArray = std::optional<Array<T>>;

// An argument that is bound as this takes exact arrays only: a conversion would be a hidden copy.
inline py::arg exact(const char* name) { return py::arg(name).noconvert(); }

// As Python prints a tuple.
template <class Sizes> std::string shape_text(const Sizes& shape) {
  std::string text = "(";
  for (index n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + (shape.size() == 1 ? ",)" : ")");
}

[[noreturn]] inline void reject(const char* name, const std::string& expected, const py::array& got) {
  const std::vector<index> shape(got.shape(), got.shape() + got.ndim());
  throw py::value_error(std::string(name) + ": expected " + expected + ", got " + shape_text(shape));
}

inline index extent(const char* name, const py::array& a, py::ssize_t axis, py::ssize_t rank) {
  if (a.ndim() != rank) reject(name, "an array of " + std::to_string(rank) + " axes", a);
  return a.shape(axis);
}

inline void check_threads(int threads) {
  if (threads < 1) throw py::value_error("num_threads: expected at least 1, got " + std::to_string(threads));
}

// An index that a kernel will follow.
inline void check_entry(const char* name, std::int64_t value, index count, std::initializer_list<index> place) {
  if (value < 0 || value >= count)
    throw py::value_error(std::string(name) + ": expected 0 to " + std::to_string(count - 1) + ", got " +
                          std::to_string(value) + " at " + shape_text(place));
}

template <class T> void check_aligned(const char* name, const Array<T>& a) {
  if (reinterpret_cast<std::uintptr_t>(a.data()) % alignof(T))
    throw py::value_error(std::string(name) + ": not aligned");
}

template <class T> const T* read_pointer(const Array<T>& a) { return a.data(); }
template <class T> T* write_pointer(const Array<T>& a) { return const_cast<Array<T>&>(a).mutable_data(); }

// A C-contiguous array of just this shape.
template <class T> void check_dense(const char* name, const Array<T>& a, std::initializer_list<index> shape) {
  bool same = a.ndim() == static_cast<py::ssize_t>(shape.size());
  py::ssize_t k = 0;
  for (index n : shape) same = same && a.shape(k++) == n;
  if (!same) reject(name, shape_text(shape), a);
  if (!(a.flags() & py::array::c_style)) throw py::value_error(std::string(name) + ": expected a C-contiguous array");
  check_aligned(name, a);
}
template <class T> const T* dense(const char* name, const Array<T>& a, std::initializer_list<index> shape) {
  check_dense(name, a, shape);
  return read_pointer(a);
}
template <class T> T* dense_out(const char* name, const Array<T>& a, std::initializer_list<index> shape) {
  check_dense(name, a, shape);
  return write_pointer(a);
}
template <class T> const T* dense(const char* name, const MaybeArray<T>& a, std::initializer_list<index> shape) {
  return a ? dense(name, *a, shape) : nullptr;
}
template <class T> T* dense_out(const char* name, const MaybeArray<T>& a, std::initializer_list<index> shape) {
  return a ? dense_out(name, *a, shape) : nullptr;
}

// (T, B, width) with a contiguous last axis.
template <class T> void check_sequence(const char* name, const Array<T>& a, index steps, index batch, index width) {
  if (a.ndim() != 3 || a.shape(0) != steps || a.shape(1) != batch || a.shape(2) != width)
    reject(name, shape_text(std::initializer_list<index>{steps, batch, width}), a);
  constexpr py::ssize_t item = sizeof(T);
  if (a.size() == 0) return;  // NumPy gives an empty array whatever strides
  if (width > 1 && a.strides(2) != item) throw py::value_error(std::string(name) + ": expected a contiguous last axis");
  if ((steps > 1 && a.strides(0) % item) || (batch > 1 && a.strides(1) % item))
    throw py::value_error(std::string(name) + ": strides are no whole elements");
  check_aligned(name, a);
}
template <class T>
Sequence<const T> sequence(const char* name, const Array<T>& a, index steps, index batch, index width) {
  check_sequence(name, a, steps, batch, width);
  constexpr index item = sizeof(T);
  return {read_pointer(a), steps, batch, width, a.strides(0) / item, a.strides(1) / item};
}
template <class T>
Sequence<T> sequence_out(const char* name, const Array<T>& a, index steps, index batch, index width) {
  check_sequence(name, a, steps, batch, width);
  constexpr index item = sizeof(T);
  return {write_pointer(a), steps, batch, width, a.strides(0) / item, a.strides(1) / item};
}

// `whole`: the call has all steps of the sequences, so that none is longer.
inline Lengths lengths_view(const MaybeArray<std::int64_t>& lengths, index steps, index batch, bool whole = true) {
  const std::int64_t* data = dense("lengths", lengths, {batch});
  for (index b = 0; whole && data && b < batch; b++)
    if (data[b] < 0 || data[b] > steps)
      throw py::value_error("lengths: expected 0 to " + std::to_string(steps) + ", got " + std::to_string(data[b]) +
                            " in row " + std::to_string(b));
  return {data, steps};
}

// Python's main thread, the only one in which its handlers run. Python tells, again after a fork.
inline std::atomic<unsigned long> main_thread{0};

// Python's lock, given away for a scope. While the interpreter ends, one that is older than 3.14 unwinds every other
// thread that asks for its lock, here through frames that hold its objects: such a thread waits for the process to end.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
#if defined(__GLIBCXX__)
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
#else
    PyEval_RestoreThread(state_);
#endif
  }

 private:
  PyThreadState* state_;
};

// Runs body(signals) without the lock. Every 30 ms or so the main thread takes it and lets Python's handlers run; if
// one raises (Ctrl-C), the body ends soon and the exception goes on from here.
template <class Body> void run_unlocked(const Body& body) {
  const bool main = PyThread_get_thread_ident() == main_thread;
  Signals signals(main ? [] {
    const py::gil_scoped_acquire locked;
    return PyErr_CheckSignals() != 0;
  } : never_stop);
  {
    const Unlocked unlocked;
    body(signals);
  }
  if (signals.stopped()) throw py::error_already_set();
}

void bind_forward(py::module_& m);
void bind_backward(py::module_& m);
void bind_stream(py::module_& m);
void bind_linear(py::module_& m);
void bind_heads(py::module_& m);
void bind_softmax_head(py::module_& m);
void bind_reservoir(py::module_& m);

}  // namespace rnnfast

template <class T> struct pybind11::detail::handle_type_name<rnnfast::Array<T>> : handle_type_name<array_t<T, 0>> {};
