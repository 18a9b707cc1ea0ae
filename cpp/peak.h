// What the arithmetic units can do, measured: the yardstick of every benchmark.
#pragma once

#include <chrono>

#include "threads.h"

namespace rnnfast {

// Independent chains: more than latency times units on any processor so far, and no more than the registers hold.
constexpr int fma_chains = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 24 : 12;

// Fused multiply-adds on registers alone; gives a number that the compiler can't foresee, so that none is left out.
template <class T> T fma_rounds(std::int64_t rounds) {
  using V = Vec<T>;
  V sum[fma_chains];
  for (int c = 0; c < fma_chains; c++) sum[c] = V(T(c));
  const V a(T(1) - std::numeric_limits<T>::epsilon()), b(T(1e-9));
  for (std::int64_t k = 0; k < rounds; k++) {
#pragma GCC unroll 24
    for (int c = 0; c < fma_chains; c++) sum[c] = fma(a, sum[c], b);
  }
  for (int c = 1; c < fma_chains; c++) sum[0] = sum[0] + sum[c];
  T out[V::lanes];
  sum[0].store(out);
  return out[0];
}

// Floating-point operations a second (two for a fused multiply-add) of all threads together.
template <class T> double fma_peak(double seconds, int threads) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); };
  const auto run = [&](std::int64_t rounds) {
    const auto from = Clock::now();
    team(threads, [&](int, int) {
      volatile T kept = fma_rounds<T>(rounds);
      (void)kept;
    });
    return since(from);
  };
  // A first run that was interrupted looks long enough; only one that was meant to last as long counts.
  std::int64_t rounds = 1 << 14;
  double took = std::min(run(rounds), seconds / 2);
  while (took < seconds) {
    const double factor = std::clamp(seconds / std::max(took, 1e-9), 1.5, 16.0);
    rounds = static_cast<std::int64_t>(static_cast<double>(rounds) * factor) + 1;
    took = run(rounds);
  }
  return 2.0 * static_cast<double>(rounds) * fma_chains * Vec<T>::lanes * threads / took;
}

// Seconds that a cache line takes from one thread's core to another's and back; NaN where there is one thread only.
inline double line_round_trip(int turns) {
  alignas(64) std::atomic<int> there{0};
  alignas(64) std::atomic<int> back{0};
  double took = std::numeric_limits<double>::quiet_NaN();
  team(2, [&](int thread, int count) {
    if (count == 1) return;
    using Clock = std::chrono::steady_clock;
    Clock::time_point start;
    for (int k = 0; k <= turns; k++) {
      if (k == 1) start = Clock::now();  // the other thread has come
      if (thread == 0) there.store(k + 1, std::memory_order_release);
      const std::atomic<int>& awaited = thread == 0 ? back : there;
      for (int spins = 0; awaited.load(std::memory_order_acquire) <= k; spins++)
        if (spins > 10000) std::this_thread::yield();  // the other one may need this core
      if (thread == 1) back.store(k + 1, std::memory_order_release);
    }
    if (thread == 0) took = std::chrono::duration<double>(Clock::now() - start).count() / turns;
  });
  return took;
}

}  // namespace rnnfast
