// Drivers side by side in one region, each with a team of its own: the two directions of a layer, or the layers of a
// stack, each some steps behind the one that it reads.
#pragma once

#include <limits>
#include <memory>
#include <vector>

#include "threads.h"

namespace rnnfast {

// How many steps a driver has finished, in the order in which it takes them.
class Progress {
 public:
  static constexpr index all = std::numeric_limits<index>::max();  // and whatever else it does

  void tell(index steps) { rnnfast::tell(steps_, steps); }
  void wait(index steps) const {
    wait_until(steps_, [steps](index done) { return done >= steps; });
  }

 private:
  alignas(cache_line) std::atomic<index> steps_{0};
};

enum class Beside { nothing, directions, layers };

// Steps of rows that a layer takes before it tells the layer that reads them: enough of them to fill tiles, and few
// beside all, since for so long the other one waits.
inline index steps_a_stride(index steps) { return std::clamp<index>(steps / 16, 4, 64); }

class Driver {
 public:
  // `before`: a driver of the same kind that writes what this one reads, or writes first what both write.
  explicit Driver(Beside beside = Beside::nothing, const Driver* before = nullptr) : beside_(beside), before_(before) {}
  virtual ~Driver() = default;
  virtual int threads() const = 0;  // that its team has at most
  // The part of one thread of `count` in its team.
  virtual void work(Signals& signals, int thread, int count) = 0;

 protected:
  bool in_layers() const { return beside_ == Beside::layers; }
  void wait_for(index steps) const {
    if (before_) before_->progress_.wait(steps);
  }
  void tell(index steps, int thread) {
    if (thread == 0 && beside_ != Beside::nothing) progress_.tell(steps);
  }

 private:
  Beside beside_;
  const Driver* before_;
  Progress progress_;
};

// The threads of each of `count` teams.
inline int team_of(int threads, int count) { return std::max(threads / count, 1); }

class Together {
 public:
  // Of `count` drivers. Those of layers are added in the order in which each reads the one before it.
  Together(Beside beside, int count) : beside_(beside), count_(count) {}

  int threads_of_each(int threads) const { return team_of(threads, count_); }
  Beside beside() const { return beside_; }
  const Driver* last() const { return drivers_.empty() ? nullptr : drivers_.back().get(); }
  void add(std::unique_ptr<Driver> driver) { drivers_.push_back(std::move(driver)); }

  // The first thread, which asks for signals, has the driver that ends last.
  void run(Signals& signals, int threads) {
    const int drivers = static_cast<int>(drivers_.size());
    int most = 0;
    for (const std::unique_ptr<Driver>& driver : drivers_) most += driver->threads();
    parallel(std::min(threads, most), [&](int thread, int count) {
      for (int k = 0; k < drivers; k++) {
        Driver& driver = *drivers_[static_cast<std::size_t>(k)];
        const int from_last = drivers - 1 - k;
        // The runtime may give fewer threads. Whoever has several drivers takes them in their order, so that nobody
        // waits for one that comes later.
        if (count < drivers) {
          if (from_last % count == thread) driver.work(signals, 0, 1);
          continue;
        }
        const Range team = share(count, from_last, drivers);
        const int size = std::min(static_cast<int>(team.end - team.begin), driver.threads());
        const int place = thread - static_cast<int>(team.begin);
        if (place >= 0 && place < size) driver.work(signals, place, size);
      }
    });
  }

 private:
  Beside beside_;
  int count_;
  std::vector<std::unique_ptr<Driver>> drivers_;
};

}  // namespace rnnfast
