// What a call leaves for those that follow with the same weights, as the pieces of a long sequence do: the weights,
// packed, and sums that go on.
#pragma once

#include <any>
#include <memory>
#include <tuple>

#include "plan.h"

namespace rnnfast {

// What kept things depend on: the weights, whose numbers nobody changes meanwhile (known by the caller's array of those
// of x: every layer has one of its own), their sizes, the key of the masks, and, where weights are packed, the plan.
using KeptFor =
    std::tuple<std::tuple<const void*, index, index, index>, std::tuple<bool, bool, std::uint64_t, std::uint64_t>,
               std::tuple<index, index, int, bool, bool>>;
template <class T> KeptFor kept_for(const Layer<T>& layer, const Plan& plan = {}, bool wants_dx = false) {
  const Weights<T>& w = layer.weights;
  const Zoneout& zoneout = layer.zoneout;
  return {{w.ih, w.input, w.hidden, w.output},
          {static_cast<bool>(zoneout), zoneout.random, zoneout.seed, zoneout.call},
          {plan.rows, plan.width, plan.threads, plan.by_rows, wants_dx}};
}

// A thing that one call has at a time.
class KeptThing {
 public:
  bool is_there() const { return thing_.has_value(); }
  // What was given for the same, or null.
  template <class P> std::shared_ptr<P> take(const KeptFor& what) {
    std::shared_ptr<P> found;
    if (auto* thing = std::any_cast<std::shared_ptr<P>>(&thing_); thing && what == for_) found = std::move(*thing);
    thing_.reset();  // for another it would only take room
    return found;
  }
  template <class P> void give(const KeptFor& what, std::shared_ptr<P> thing) {
    for_ = what, thing_ = std::move(thing);
  }

 private:
  KeptFor for_{};
  std::any thing_;
};

// Of one layer and direction.
struct Kept {
  KeptThing forward_weights, backward_weights, sums;
};

}  // namespace rnnfast
