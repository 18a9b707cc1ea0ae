// Threads of one call. Every kernel gives the same bits for any number of them: threads share outputs, never one sum.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>

#include "crowd.h"
#include "signals.h"
#include "simd.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace rnnfast {

// Calls body(thread, count) once in each worker of a region. `count` is what the runtime gave, which may be fewer than
// `threads`. The body must neither throw nor allocate. One thread opens no region at all.
template <class Body> void team([[maybe_unused]] int threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      FlushSubnormals flush;
      body(omp_get_thread_num(), omp_get_num_threads());
    }
    return;
  }
#endif
  FlushSubnormals flush;
  body(0, 1);
}

// The same for the work of a call, in one thread while others crowd the cores.
template <class Body> void parallel(int threads, const Body& body) {
  const bool watches = threads > 1 && watches_crowd.load(std::memory_order_relaxed);
  const Nanoseconds opened = watches ? time_now() : 0;
  const bool alone = watches && !crowd.has_room(opened), tells = watches && !alone;
  std::atomic<Nanoseconds> computed{0};
  team(alone ? 1 : threads, [&](int thread, int count) {
    const Nanoseconds begun = tells ? time_of_thread() : 0;
    body(thread, count);
    if (tells) computed.fetch_add(time_of_thread() - begun, std::memory_order_relaxed);
  });
  if (tells) crowd.note(opened, time_now(), computed.load(std::memory_order_relaxed));
}

// Waits until another worker has told a value that will do: spins for a few microseconds, then sleeps. On a busy
// machine the one waited for may need the core, and who only yields is soon given it again. (Measured with 2 threads on
// 2 cores: to spin ten times as long gains nothing on a quiet machine and takes up to 1.8 x the time beside one busy
// process; to yield for ever takes half the time beside one and up to 14 x beside two.)
template <class V, class Enough> void wait_until(const std::atomic<V>& told, const Enough& enough) {
  constexpr int most_spins = 2000;
  V now = told.load(std::memory_order_acquire);
  for (int spins = 0; !enough(now); spins++, now = told.load(std::memory_order_acquire)) {
    if (spins < most_spins) {
#if defined(__SSE2__)
      _mm_pause();
#endif
    } else {
#ifdef __cpp_lib_atomic_wait
      told.wait(now, std::memory_order_acquire);
#else
      std::this_thread::yield();
#endif
    }
  }
}

template <class V> void tell(std::atomic<V>& told, V value) {
  told.store(value, std::memory_order_release);
#ifdef __cpp_lib_atomic_wait
  // The library wakes nobody if it sees nobody asleep, and must not look before the new value can be seen: while a
  // store waits for its line, which takes long from a core that shares no cache, a later load may be done. One who
  // falls asleep in between would sleep for ever; a benchmark has met that.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  told.notify_all();
#endif
}

// Where the workers of a region wait for each other.
class Barrier {
 public:
  void wait(int count) {
    wait(count, [] {});
  }
  // The last one to come runs `alone` before anyone goes on.
  template <class Alone> void wait(int count, const Alone& alone) {
    if (count == 1) {
      alone();
      return;
    }
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
      alone();
      arrived_.store(0, std::memory_order_relaxed);
      tell(round_, round + 1);
    } else {
      wait_until(round_, [round](unsigned now) { return now != round; });
    }
  }
  // Workers that wait for each other leave together: each sees the same answer, here and until all wait again.
  bool agree_to_stop(int count, const Signals& signals) {
    wait(count, [&] { stops_ = signals.stopped(); });
    return stops_;
  }
  bool stops() const { return stops_; }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
  bool stops_ = false;
};

struct Range {
  index begin = 0, end = 0;
};

// A thread's part of [0, n): contiguous, nearly equal, begun at a multiple of `block`.
inline Range share(index n, int thread, int count, index block = 1) {
  const index blocks = (n + block - 1) / block;
  return {std::min(n, blocks * thread / count * block), std::min(n, blocks * (thread + 1) / count * block)};
}

// Calls f with each block of [0, n), even ones of at most `most`, and as many in each of `parts` even parts: who shares
// the blocks out has shared out the things.
template <class F> void for_each_block(index n, index most, int parts, F f) {
  const index of_part = (n + parts - 1) / parts;
  const int count = parts * static_cast<int>((of_part + most - 1) / most);
  for (int k = 0; k < count; k++)
    if (const Range block = share(n, k, count); block.begin < block.end) f(block);
}

// All threads or one, for work of so many simple steps: a region costs some microseconds. Nothing between the two,
// since a runtime that is asked for a smaller team ends threads and has to start them again for the next call.
inline int worthwhile_threads(int threads, index work) { return work < (index{1} << 14) ? 1 : threads; }

}  // namespace rnnfast
