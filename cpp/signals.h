// How a call that works for long is told to stop (Ctrl-C, say), in the midst of its parallel region.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

namespace rnnfast {

// What a number that is written to memory for the first time counts, in multiply-adds: the system clears its page.
constexpr double work_of_memory = 8;

inline bool never_stop() { return false; }

// Every worker says before each piece of work how large it is, and leaves when it is told to stop. Now and then the
// thread that made the call asks, while the others work on.
class Signals {
 public:
  using Ask = bool (*)();
  // `ask`: whether to stop; called in the thread that makes this.
  explicit Signals(Ask ask) : ask_(ask) {}

  // Before a piece of so many multiply-adds, some milliseconds at most. True: all that the call has written is void.
  bool stop(double work) {
    if (std::this_thread::get_id() == caller_ && (since_ += work) > work_a_look && !stopped()) look();
    return stopped();
  }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr double work_a_look = 4e6;  // at the clock; 0.1 ms or so
  static constexpr std::chrono::milliseconds time_a_question{30};

  void look() {
    since_ = 0;
    const Clock::time_point now = Clock::now();
    if (now - asked_ < time_a_question) return;
    asked_ = now;
    if (ask_()) stopped_.store(true, std::memory_order_relaxed);
  }

  // What the caller writes all the time, and what all read, lie in cache lines of their own.
  alignas(64) double since_ = 0;
  Clock::time_point asked_ = Clock::now();
  alignas(64) Ask ask_;
  std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<bool> stopped_{false};
};

}  // namespace rnnfast
