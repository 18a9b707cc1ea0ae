// What a call leaves for those that follow with the same weights, as the pieces of a long sequence do: the weights,
// packed, and sums that go on.
#pragma once

#include <memory>
#include <tuple>
#include <typeinfo>

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

// A thing that one call has at a time. It is given back where nothing may fail, so give() allocates nothing.
class KeptThing {
 public:
  bool is_there() const { return thing_ != nullptr; }
  // What was given for the same, or null.
  template <class P> std::shared_ptr<P> take(const KeptFor& what) {
    const std::shared_ptr<void> thing = std::move(thing_);  // for another it would only take room
    return thing && *kind_ == typeid(P) && what == for_ ? std::static_pointer_cast<P>(thing) : nullptr;
  }
  template <class P> void give(const KeptFor& what, std::shared_ptr<P> thing) noexcept {
    for_ = what, kind_ = &typeid(P), thing_ = std::move(thing);
  }

 private:
  KeptFor for_{};
  const std::type_info* kind_ = nullptr;
  std::shared_ptr<void> thing_;
};

// Of one layer and direction.
struct Kept {
  KeptThing forward_weights, backward_weights, sums;
};

}  // namespace rnnfast
