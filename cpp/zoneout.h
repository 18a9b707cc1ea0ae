// The shares of old states that zoneout keeps, drawn or given, into a row's values.
#pragma once

#include "heads/dropout.h"
#include "layer.h"

namespace rnnfast {

class ZoneoutShares {
 public:
  ZoneoutShares(const Zoneout& zoneout, int states) : zoneout_(zoneout) {
    for (int k = 0; k < states; k++)
      masks_.emplace_back(zoneout.probability[static_cast<std::size_t>(k)], zoneout.seed, zoneout.call,
                          zoneout.stream + static_cast<std::uint32_t>(k));
  }

  // Of state k, units `units` of row b at step t; `shares` is where that of unit 0 lies.
  template <class T> void write(int k, index t, index b, Range units, T* shares) const {
    constexpr index features = DropoutMask::features, whole = DropoutMask::groups * features;
    std::uint32_t words[whole];
    const auto& mask = masks_[static_cast<std::size_t>(k)];
    if (!zoneout_.random) {
      const T share = static_cast<T>(zoneout_.probability[static_cast<std::size_t>(k)]);
      std::fill(shares + units.begin, shares + units.end, share);
      return;
    }
    for (index unit = units.begin; unit < units.end;) {
      const index group = unit / features, begin = group * features, end = std::min(units.end, begin + whole);
      mask.draw(t, b, group, words);
      for (; unit < end; unit++) shares[unit] = words[unit - begin] < mask.threshold() ? T(1) : T(0);
    }
  }

 private:
  Zoneout zoneout_;
  std::vector<DropoutMask> masks_;
};

}  // namespace rnnfast
