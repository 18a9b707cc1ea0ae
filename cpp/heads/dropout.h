// Dropout with inverted scaling (Srivastava et al., 2014). Whether an element stays is a function of (seed, call,
// layer, t, row, feature) alone, so a backward pass draws the mask of the forward pass again instead of storing it.
#pragma once

#include <algorithm>

#include "../philox.h"
#include "../threads.h"
#include "../views.h"

namespace rnnfast {

class DropoutMask {
 public:
  static constexpr int counters = 8, features = 4 * counters;  // drawn together

  // 0 ≤ probability < 1, of being dropped.
  DropoutMask(double probability, std::uint64_t seed, std::uint64_t call, std::uint32_t layer)
      : threshold_(static_cast<std::uint32_t>(probability * 0x1p32)) {
    PhiloxWords<1> own = {{low(call), high(call), layer, 0}};
    philox(own, {{low(seed), high(seed)}});
    key_ = {{own.word[0], own.word[1]}};
  }

  // A word each for the features 32 group … 32 group + 31 of (t, row); a feature stays if its word is ≥ threshold().
  PhiloxWords<counters> draw(index t, index row, index group) const {
    PhiloxWords<counters> words;
    for (int i = 0; i < counters; i++) {
      words.word[i] = static_cast<std::uint32_t>(counters * group + i);
      words.word[counters + i] = static_cast<std::uint32_t>(row);
      words.word[2 * counters + i] = low(static_cast<std::uint64_t>(t));
      words.word[3 * counters + i] = high(static_cast<std::uint64_t>(t));
    }
    philox(words, key_);
    return words;
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
  constexpr index whole = DropoutMask::features;
  const std::uint32_t threshold = mask.threshold();
  for (index first = 0; first < width; first += whole) {
    const auto words = mask.draw(t, row, first / whole);
    T factor[whole];
    for (index k = 0; k < whole; k++) factor[k] = words.word[k] >= threshold ? scale : T(0);
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
