// Whether other processes leave the cores to the threads of a region.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>

namespace rnnfast {

using Nanoseconds = std::int64_t;

inline Nanoseconds time_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// How long this thread has computed. Where the system doesn't tell, no region ever seems to be crowded.
#ifdef CLOCK_THREAD_CPUTIME_ID
constexpr bool tells_time_of_threads = true;
inline Nanoseconds time_of_thread() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return Nanoseconds{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}
#else
constexpr bool tells_time_of_threads = false;
inline Nanoseconds time_of_thread() { return 0; }
#endif

// Another process that computes takes a core from a worker for some milliseconds at a time, while all others of the
// region wait: two trainings side by side, whose calls are shorter than that, took twenty times as long as on one
// thread each (measured: a GRU of 64 units with two threads on two cores). A region that was open for longer than its
// workers computed together would have ended sooner on one thread; then the calls of the next while have one. The while
// doubles each time, and shrinks by the time of regions that go well. No bit of a result depends on it.
class Crowd {
 public:
  bool has_room(Nanoseconds now) const { return now >= until_.load(std::memory_order_relaxed); }

  void note(Nanoseconds opened, Nanoseconds closed, Nanoseconds computed) {
    const Nanoseconds open = closed - opened, pause = pause_.load(std::memory_order_relaxed);
    if (open - computed < least_lost) {
      if (pause) pause_.store(std::max<Nanoseconds>(pause - open, 0), std::memory_order_relaxed);
      return;
    }
    const Nanoseconds longer = std::clamp(2 * pause, shortest, longest);
    pause_.store(longer, std::memory_order_relaxed);
    until_.store(closed + longer, std::memory_order_relaxed);
  }

 private:
  // To wake a worker takes some tens of microseconds; what is less than `least_lost` may be that.
  static constexpr Nanoseconds least_lost = 500'000, shortest = 2'000'000, longest = 500'000'000;

  std::atomic<Nanoseconds> until_{0}, pause_{0};
};

inline Crowd crowd;
inline std::atomic<bool> watches_crowd{tells_time_of_threads};

}  // namespace rnnfast
