// Scratch memory of a call: aligned to a cache line, not initialised, freed with its owner.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <new>

#include "simd.h"

namespace rnnfast {

constexpr std::size_t cache_line = 64;

// The product of sizes, or bad_alloc (MemoryError in Python) where it exceeds the address space.
inline index checked_product(std::initializer_list<index> sizes) {
  index product = 1;
  for (index n : sizes)
    if (__builtin_mul_overflow(product, n, &product)) throw std::bad_alloc();
  return product;
}

template <class T> class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::initializer_list<index> sizes) : size_(checked_product(sizes)) {
    const index bytes = checked_product({std::max<index>(size_, 1), static_cast<index>(sizeof(T))});
    data_.reset(static_cast<T*>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{cache_line})));
  }

  T* get() const { return data_.get(); }
  index size() const { return size_; }
  T& operator[](index k) const { return data_.get()[k]; }
  void fill(T value) { std::fill_n(data_.get(), size_, value); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{cache_line}); }
  };
  index size_ = 0;
  std::unique_ptr<T[], Free> data_;
};

}  // namespace rnnfast
