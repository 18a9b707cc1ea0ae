// The rows of an array in blocks of some thousand elements: what a thread takes at a time, and what a sum adds up
// before it adds the blocks. Their bounds follow from the shape alone, so no result depends on the threads.
#pragma once

#include <algorithm>

#include "../threads.h"

namespace rnnfast {

class RowBlocks {
 public:
  RowBlocks(index rows, index width) : rows_(rows), width_(std::max<index>(width, 1)) {}

  index rows() const { return rows_; }
  index elements() const { return rows_ * width_; }
  index count() const { return (rows_ + rows_in_block() - 1) / rows_in_block(); }
  Range operator[](index block) const {
    return {block * rows_in_block(), std::min(rows_, (block + 1) * rows_in_block())};
  }

  // Of a block, in multiply-adds: an exponential or so each.
  double work() const { return 20.0 * static_cast<double>(rows_in_block() * width_); }

 private:
  index rows_in_block() const { return std::max<index>(1, 1024 / width_); }

  index rows_, width_;
};

}  // namespace rnnfast
