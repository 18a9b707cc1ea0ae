// Dropout with inverted scaling (Srivastava et al., 2014). Whether an element stays is a function of (seed, call,
// layer, t, row, feature) alone, so a backward pass draws the mask of the forward pass again instead of storing it.
#pragma once

#include <algorithm>
#include <cstring>

#include "../philox.h"
#include "../threads.h"
#include "../views.h"

namespace rnnfast {

class DropoutMask {
 public:
  static constexpr index counters = 8, features = 4 * counters;             // of a group, drawn together
  static constexpr index groups = philox_chains * philox_lanes / counters;  // whose draws run side by side
  static_assert(groups * counters == philox_chains * philox_lanes, "whole groups");

  // 0 ≤ probability < 1, of being dropped.
  DropoutMask(double probability, std::uint64_t seed, std::uint64_t call, std::uint32_t layer)
      : threshold_(static_cast<std::uint32_t>(probability * 0x1p32)) {
    PhiloxCounters<1> own{};
    own.word[0][0][0] = low(call), own.word[1][0][0] = high(call), own.word[2][0][0] = layer;
    philox(own, {{low(seed), high(seed)}});
    key_ = {{own.words(0, 0)[0], own.words(1, 0)[0]}};
  }

  // A word for each of the features of `groups` groups of (t, row), of which the first is `group`: for feature
  // 32 g + 8 w + i word w of counter 8 g + i. A feature stays if its word is ≥ threshold().
  void draw(index t, index row, index group, std::uint32_t* words) const {
    constexpr index n = philox_chains, lanes = philox_lanes;
    PhiloxCounters<n> c;
    for (index v = 0; v < n; v++) {
      for (index lane = 0; lane < lanes; lane++)
        c.word[0][v][lane] = static_cast<std::uint64_t>(counters * group + v * lanes + lane);
      c.word[1][v] = PhiloxWide{} + static_cast<std::uint64_t>(row);
      c.word[2][v] = PhiloxWide{} + static_cast<std::uint64_t>(t);
      c.word[3][v] = PhiloxWide{} + high(static_cast<std::uint64_t>(t));
    }
    philox(c, key_);
    for (index v = 0; v < n; v++)
      for (index w = 0; w < 4; w++) {
        const PhiloxNarrow drawn = c.words(static_cast<int>(w), static_cast<int>(v));
        const index counter = v * lanes;
        std::memcpy(words + counter / counters * features + w * counters + counter % counters, &drawn, sizeof drawn);
      }
  }
  std::uint32_t threshold() const { return threshold_; }

 private:
  static std::uint32_t low(std::uint64_t x) { return static_cast<std::uint32_t>(x); }
  static std::uint32_t high(std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); }

  std::uint32_t threshold_;  // the probability in units of 2^-32
  PhiloxKey key_;
};

// y = x · (scale where the mask keeps it, else 0), for one row.
template <class T>
void dropout_row(const DropoutMask& mask, T scale, index t, index row, const T* x, T* y, index width) {
  constexpr index whole = DropoutMask::groups * DropoutMask::features;
  const std::uint32_t threshold = mask.threshold();
  for (index first = 0; first < width; first += whole) {
    std::uint32_t words[whole];
    mask.draw(t, row, first / DropoutMask::features, words);
    T factor[whole];
    for (index k = 0; k < whole; k++) factor[k] = words[k] >= threshold ? scale : T(0);
    const index count = std::min(whole, width - first);
    for (index k = 0; k < count; k++) y[first + k] = x[first + k] * factor[k];
  }
}

// The rows n = t B + b; zero past a length. A segment of longer sequences draws the masks that these have there.
template <class T> void dropout_rows(const DropoutMask& mask, T scale, const Sequence<const T>& x, const Sequence<T>& y,
                                     Lengths lengths, Range rows) {
  for (index n = rows.begin; n < rows.end; n++) {
    const index t = n / x.batch, b = n % x.batch;
    if (t >= lengths(b))
      std::fill_n(y.at(t, b), y.width, T(0));
    else if (mask.threshold() == 0)
      std::copy_n(x.at(t, b), x.width, y.at(t, b));
    else
      dropout_row(mask, scale, lengths.begin + t, b, x.at(t, b), y.at(t, b), x.width);
  }
}

}  // namespace rnnfast
