// One compiled module an instruction-set level: the same functions under another name. Binds only.
#include "bind.h"

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

}  // namespace
}  // namespace rnnfast

PYBIND11_MODULE(RNNFAST_MODULE, m) {
  m.def("openmp", rnnfast::has_openmp);
  m.def("build_info", rnnfast::build_info);
  rnnfast::bind_recurrence(m);
  rnnfast::bind_heads(m);
}
