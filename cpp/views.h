// What the kernels see of an array: a pointer, sizes and strides, in elements. Nothing here owns memory.
#pragma once

#include <algorithm>

#include "simd.h"

namespace rnnfast {

// (steps, batch, width), the last axis contiguous and the two leading ones in any strides: batch_first, one half of a
// bidirectional output and a broadcast row are all this, without a copy.
template <class T> struct Sequence {
  T* data = nullptr;
  index steps = 0, batch = 0, width = 0;
  index step_stride = 0, row_stride = 0;

  T* at(index t, index b) const { return data + t * step_stride + b * row_stride; }
  explicit operator bool() const { return data != nullptr; }
};

// Which part of a padded batch counts. A null pointer means all of it. Where a call has a segment of longer sequences,
// lengths are those of the whole ones and `begin` is the segment's first step.
struct Lengths {
  const std::int64_t* data = nullptr;
  index steps = 0, begin = 0;

  index operator()(index b) const { return data ? std::clamp<index>(whole(b) - begin, 0, steps) : steps; }
  index whole(index b) const { return static_cast<index>(data[b]); }
};

}  // namespace rnnfast
