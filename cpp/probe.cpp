// Which instruction-set levels this processor and its operating system execute. Compiled for the oldest processor of
// its kind and free of every shared header, so that importing it is safe anywhere.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#endif

namespace {

#if defined(__x86_64__)

enum Register { eax, ebx, ecx, edx };

// One bit of one register that CPUID leaves for (leaf, subleaf); the name is that of the compiler's flag.
struct Feature {
  std::uint32_t leaf, subleaf;
  Register reg;
  int bit;
  const char* name;
};

// What -march=x86-64-v2, -v3 and -v4 allow beyond the level before, by the x86-64 psABI.
const std::vector<Feature> v2_features = {
    {1, 0, ecx, 0, "sse3"},    {1, 0, ecx, 9, "ssse3"},   {1, 0, ecx, 13, "cx16"},         {1, 0, ecx, 19, "sse4.1"},
    {1, 0, ecx, 20, "sse4.2"}, {1, 0, ecx, 23, "popcnt"}, {0x80000001, 0, ecx, 0, "sahf"},
};
const std::vector<Feature> v3_features = {
    {1, 0, ecx, 12, "fma"}, {1, 0, ecx, 22, "movbe"}, {1, 0, ecx, 27, "osxsave"},
    {1, 0, ecx, 28, "avx"}, {1, 0, ecx, 29, "f16c"},  {7, 0, ebx, 3, "bmi"},
    {7, 0, ebx, 5, "avx2"}, {7, 0, ebx, 8, "bmi2"},   {0x80000001, 0, ecx, 5, "lzcnt"},
};
const std::vector<Feature> v4_features = {
    {7, 0, ebx, 16, "avx512f"},  {7, 0, ebx, 17, "avx512dq"}, {7, 0, ebx, 28, "avx512cd"},
    {7, 0, ebx, 30, "avx512bw"}, {7, 0, ebx, 31, "avx512vl"},
};
const std::vector<Feature> bf16_features = {{7, 1, eax, 5, "avx512bf16"}};

// The registers whose contents the operating system keeps across a task switch: bits of XCR0.
constexpr std::uint64_t avx_state = 0x06;     // XMM, YMM
constexpr std::uint64_t avx512_state = 0xe6;  // and the opmasks, the upper halves of ZMM0-15, ZMM16-31

bool has(const Feature& feature) {
  unsigned registers[4] = {};
  // The count of subleaves of leaf 7 is in eax; past it a processor may answer with another leaf's bits.
  if (feature.subleaf > 0) {
    if (!__get_cpuid_count(feature.leaf, 0, &registers[eax], &registers[ebx], &registers[ecx], &registers[edx]) ||
        registers[eax] < feature.subleaf)
      return false;
  }
  if (!__get_cpuid_count(feature.leaf, feature.subleaf, &registers[eax], &registers[ebx], &registers[ecx],
                         &registers[edx]))
    return false;
  return registers[feature.reg] >> feature.bit & 1;
}

bool has_all(const std::vector<Feature>& features) {
  for (const Feature& feature : features)
    if (!has(feature)) return false;
  return true;
}

// Only for processors with osxsave: elsewhere the instruction itself is illegal.
bool system_keeps(std::uint64_t state) {
  std::uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & state) == state;
}

std::vector<std::string> supported() {
  std::vector<std::string> levels;
  if (!has_all(v2_features)) return levels;
  levels.push_back("v2");
  if (!has_all(v3_features) || !system_keeps(avx_state)) return levels;
  levels.push_back("v3");
  if (!has_all(v4_features) || !system_keeps(avx512_state)) return levels;
  levels.push_back("v4");
  if (has_all(bf16_features)) levels.push_back("v4bf16");
  return levels;
}

#else

std::vector<std::string> supported() { return {"generic"}; }

#endif

}  // namespace

PYBIND11_MODULE(_probe, m) {
  m.def("supported", &supported, "The levels that this processor and its operating system execute, worst first.");
}
