// One compiled module an instruction-set level: the same functions under another name. Binds only.
#include "bind.h"
#include "memory.h"
#include "threads.h"

namespace rnnfast {
namespace {

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

py::dict build_info() {
  const auto version = [](int major, int minor, int patch) {
    return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
  };
  py::dict info;
  info["compiler"] = __VERSION__;
  info["eigen"] = version(EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION);
  info["pybind11"] = version(PYBIND11_VERSION_MAJOR, PYBIND11_VERSION_MINOR, PYBIND11_VERSION_MICRO);
  info["isa"] = RNNFAST_ISA_NAME;
  return info;
}

// Whether calls have one thread while others crowd the cores; whether they did before.
bool watch_crowd(bool on) { return watches_crowd.exchange(on && tells_time_of_threads); }

// For each region (opened, closed, computed), one after the other: whether there was room for its threads. Those
// without room count for nothing.
std::vector<bool> crowd_of(const std::vector<std::array<Nanoseconds, 3>>& regions) {
  Crowd seen;
  std::vector<bool> room;
  for (const auto& [opened, closed, computed] : regions) {
    room.push_back(seen.has_room(opened));
    if (room.back()) seen.note(opened, closed, computed);
  }
  return room;
}

// An array of bytes, not initialised, whose memory goes back to the spare blocks when nothing refers to it any more.
py::array_t<std::uint8_t> empty_bytes(index count) {
  if (count < 0) throw py::value_error("count: expected at least 0, got " + std::to_string(count));
  auto owner = std::make_unique<Buffer<std::uint8_t>>(Buffer<std::uint8_t>({count}));
  std::uint8_t* data = owner->get();
  const py::capsule base(owner.get(), [](void* p) { delete static_cast<Buffer<std::uint8_t>*>(p); });
  owner.release();
  return py::array_t<std::uint8_t>({count}, {index{1}}, data, base);
}

}  // namespace
}  // namespace rnnfast

PYBIND11_MODULE(RNNFAST_MODULE, m) {
  m.def("openmp", rnnfast::has_openmp);
  m.def("build_info", rnnfast::build_info);
  m.def("set_main_thread", [](unsigned long ident) { rnnfast::main_thread = ident; }, rnnfast::py::arg("ident"));
  m.def("watch_crowd", rnnfast::watch_crowd, rnnfast::py::arg("on"));
  m.def("crowd_of", rnnfast::crowd_of, rnnfast::py::arg("regions"));
  m.def("empty_bytes", rnnfast::empty_bytes, rnnfast::py::arg("count"));
  rnnfast::bind_forward(m);
  rnnfast::bind_backward(m);
  rnnfast::bind_stream(m);
  rnnfast::bind_linear(m);
  rnnfast::bind_heads(m);
  rnnfast::bind_softmax_head(m);
  rnnfast::bind_reservoir(m);
}
