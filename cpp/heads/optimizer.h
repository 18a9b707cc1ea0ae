// Optimiser steps on flat buffers of n parameters: one pass over memory, which is what they cost.
//
// Plain loops that the compiler vectorises: additions, products, divisions and square roots are rounded one by one, so
// any vector width and the last elements give the same bits. (Eigen's psqrt is an estimate with one Newton step.)
#pragma once

#include <cmath>

#include "../memory.h"
#include "../threads.h"
#include "reduce.h"

namespace rnnfast {

// What both optimisers take for the gradient: clamp(grads, ± bound) · scale.
template <class T> struct Clipping {
  T scale, bound;

  T operator()(T g) const { return clamp(g, bound) * scale; }
};

// v = momentum v + g, p = p - lr v; velocity may be null, then v = g.
template <class T> void sgd_update(T* __restrict p, const T* __restrict grads, T* __restrict velocity, index n, T lr,
                                   T momentum, Clipping<T> clip) {
  if (!velocity) {
    for (index k = 0; k < n; k++) p[k] -= lr * clip(grads[k]);
    return;
  }
  for (index k = 0; k < n; k++) {
    const T v = momentum * velocity[k] + clip(grads[k]);
    velocity[k] = v;
    p[k] -= lr * v;
  }
}

// Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019): the factors of a step.
template <class T> struct AdamFactors {
  T keep;             // 1 - lr weight_decay
  T beta1, fresh1;    // β₁, 1 - β₁
  T beta2, fresh2;    // β₂, 1 - β₂
  T step_size;        // lr / (1 - β₁ᵗ)
  T root_scale, eps;  // 1 / √(1 - β₂ᵗ)
};

// Those of step t = 1, 2, …, computed in double and rounded once.
template <class T>
AdamFactors<T> adam_factors(double lr, double beta1, double beta2, double eps, double weight_decay, std::int64_t t) {
  const double correction1 = 1 - std::pow(beta1, static_cast<double>(t));
  const double correction2 = 1 - std::pow(beta2, static_cast<double>(t));
  return {static_cast<T>(1 - lr * weight_decay),
          static_cast<T>(beta1),
          static_cast<T>(1 - beta1),
          static_cast<T>(beta2),
          static_cast<T>(1 - beta2),
          static_cast<T>(lr / correction1),
          static_cast<T>(1 / std::sqrt(correction2)),
          static_cast<T>(eps)};
}

template <class T> void adam_update(T* __restrict p, const T* __restrict grads, T* __restrict m, T* __restrict v,
                                    index n, AdamFactors<T> f, Clipping<T> clip) {
  for (index k = 0; k < n; k++) {
    const T g = clip(grads[k]);
    const T first = f.beta1 * m[k] + f.fresh1 * g;
    const T second = f.beta2 * v[k] + f.fresh2 * (g * g);
    m[k] = first;
    v[k] = second;
    p[k] = f.keep * p[k] - f.step_size * (first / (std::sqrt(second) * f.root_scale + f.eps));
  }
}

// update(begin, n) for each thread's part of the buffers. Always run to the end: half a step would be a state that no
// caller could repair, and even a billion parameters take less than a second or two.
template <class Update> void run_update(index n, int threads, const Update& update) {
  parallel(worthwhile_threads(threads, n), [&](int thread, int count) {
    const Range own = share(n, thread, count, cache_line);
    update(own.begin, own.end - own.begin);
  });
}

}  // namespace rnnfast
