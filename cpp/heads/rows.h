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

  // The blocks from `first` on that are some 10 ms of work for one thread.
  Range stretch(index first) const {
    const index blocks = std::max<index>(1, (index{1} << 22) / (rows_in_block() * width_));
    return {first, std::min(count(), first + blocks)};
  }

 private:
  index rows_in_block() const { return std::max<index>(1, 1024 / width_); }

  index rows_, width_;
};

}  // namespace rnnfast
