// The order in which a layer walks a padded batch: steps s = 0, 1, … of rows r sorted by length, longest first, so that
// the rows still running are always the first ones and no step is spent on padding. A reversed direction starts each
// row at its own end.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "threads.h"
#include "views.h"

namespace rnnfast {

// resets[t, b]: the state is the cell's initial one when step t begins.
struct Resets {
  const bool* data = nullptr;
  index step_stride = 0, row_stride = 0;

  bool operator()(index t, index b) const { return data && data[t * step_stride + b * row_stride]; }
};

// Where the state that a step starts from comes from.
enum class Origin { given, fresh, step_before };

class Timeline {
 public:
  Timeline(index steps, index batch, Lengths lengths, Resets resets, bool reverse)
      : resets_(resets), reverse_(reverse), begin_(lengths.begin), order_(batch), length_(batch), live_(steps + 1, 0) {
    std::iota(order_.begin(), order_.end(), index{0});
    // By the whole lengths: a sequence's rows keep their order, and so each sum over them, however it is cut in time.
    if (lengths.data)
      std::stable_sort(order_.begin(), order_.end(),
                       [&](index a, index b) { return lengths.whole(a) > lengths.whole(b); });
    for (index r = 0; r < batch; r++) length_[r] = lengths(order_[r]);
    for (index n : length_) live_[n]++;
    for (index s = steps; s-- > 0;) live_[s] += live_[s + 1];
    // live_[s] counts rows of length >= s so far; a row runs at step s when its length is more than s.
    std::rotate(live_.begin(), live_.begin() + 1, live_.end());
    live_[steps] = 0;
    steps_ = batch ? length_[0] : 0;
  }

  index begin() const { return begin_; }  // the time of the call's first step
  bool has_resets() const { return resets_.data != nullptr; }
  index steps() const { return steps_; }  // of the longest row
  index batch() const { return static_cast<index>(order_.size()); }
  index live(index s) const { return live_[s]; }        // rows r < live(s) run at step s
  index batch_row(index r) const { return order_[r]; }  // the caller's row
  index length(index r) const { return length_[r]; }
  index time(index s, index r) const { return reverse_ ? length_[r] - 1 - s : s; }
  index time_before() const { return reverse_ ? 1 : -1; }  // t + this is the step before
  index time_after() const { return -time_before(); }

  // A thread's rows of the steps [first, last), begun at a multiple of `block`: as many steps for each as for the
  // others, to half a row.
  Range share_rows(int thread, int count, index first, index last, index block = 1) const {
    const auto run = [&](index r) { return std::clamp<index>(length_[r] - first, 0, last - first); };
    index total = 0;
    for (index r = 0; r < batch(); r++) total += run(r);
    const auto boundary = [&](int part) {
      index r = 0;
      for (index steps = 0; r < batch() && (2 * steps + run(r)) * count < 2 * total * part; r++) steps += run(r);
      return std::min(batch(), (r + block - 1) / block * block);
    };
    return {boundary(thread), thread + 1 == count ? batch() : boundary(thread + 1)};
  }

  Origin origin(index s, index r) const {
    const index t = time(s, r), b = order_[r];
    if (reverse_) return s == 0 ? Origin::given : resets_(t + 1, b) ? Origin::fresh : Origin::step_before;
    return resets_(t, b) ? Origin::fresh : s == 0 ? Origin::given : Origin::step_before;
  }

 private:
  Resets resets_;
  bool reverse_;
  index begin_;
  index steps_ = 0;
  std::vector<index> order_, length_, live_;
};

}  // namespace rnnfast
