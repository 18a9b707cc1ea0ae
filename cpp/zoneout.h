// The shares of old states that zoneout keeps, drawn or given, into a row's values.
#pragma once

#include "heads/dropout.h"
#include "layer.h"

namespace rnnfast {

class ZoneoutShares {
 public:
  ZoneoutShares(const Zoneout& zoneout, int states) : zoneout_(zoneout), states_(states) {
    for (int k = 0; k < states; k++)
      masks_.emplace_back(zoneout.probability[static_cast<std::size_t>(k)], zoneout.seed, zoneout.call,
                          zoneout.stream + static_cast<std::uint32_t>(k));
  }

  // Of units [first, last) of row b at step t; `values`: the first state's slot, the others follow.
  template <class T> void write(index t, index b, index first, index last, index hidden, T* values) const {
    constexpr index features = DropoutMask::features, whole = DropoutMask::groups * features;
    std::uint32_t words[whole];
    for (int k = 0; k < states_; k++, values += hidden) {
      const auto& mask = masks_[static_cast<std::size_t>(k)];
      if (!zoneout_.random) {
        std::fill(values + first, values + last, static_cast<T>(zoneout_.probability[static_cast<std::size_t>(k)]));
        continue;
      }
      for (index unit = first; unit < last;) {
        const index group = unit / features, begin = group * features, end = std::min(last, begin + whole);
        mask.draw(t, b, group, words);
        for (; unit < end; unit++) values[unit] = words[unit - begin] < mask.threshold() ? T(1) : T(0);
      }
    }
  }

 private:
  Zoneout zoneout_;
  int states_;
  std::vector<DropoutMask> masks_;
};

}  // namespace rnnfast
