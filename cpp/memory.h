// Scratch memory of a call: whole cache lines, which no other thread's scratch shares, not initialised, given back with
// its owner.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#include "simd.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rnnfast {

// The product of sizes, or bad_alloc (MemoryError in Python) where it exceeds the address space.
inline index checked_product(std::initializer_list<index> sizes) {
  index product = 1;
  for (index n : sizes)
    if (__builtin_mul_overflow(product, n, &product)) throw std::bad_alloc();
  return product;
}

// Large scratch blocks that were freed, kept for the next call: the system would clear every page of a new one, which
// costs a call several per cent of its time, and more among other libraries in one process. What is kept is
// bounded, and the blocks that were given back last are kept; small blocks never come here. Nobody ever waits: a child
// that was forked while another thread held the lock would wait for ever.
class Spare {
 public:
  static constexpr std::size_t least = 64 * 1024, most_kept = std::size_t{256} << 20;
  static constexpr std::size_t most_waste = most_kept / 8;  // of a block, beyond what was asked for

  // A block of at least `bytes`, and how large it is.
  static std::pair<void*, std::size_t> take(std::size_t bytes) {
    bytes = (bytes + cache_line - 1) / cache_line * cache_line;
    if (bytes >= least) {
      bytes = (bytes + grain(bytes) - 1) / grain(bytes) * grain(bytes);
      Spare& spare = instance();
      const std::unique_lock<std::mutex> lock(spare.mutex_, std::try_to_lock);
      const auto found = lock ? spare.blocks_.lower_bound(bytes) : Blocks::iterator{};
      if (lock && found != spare.blocks_.end() && found->first - bytes <= std::min(bytes, most_waste)) {
        return spare.remove(found);
      }
    }
    if (bytes < least) return {take_small(bytes), bytes};
    if (bytes < large_page) return {::operator new(bytes, std::align_val_t{cache_line}), bytes};
    void* block = ::operator new(bytes, std::align_val_t{large_page});
    ask_for_large_pages(block, bytes / large_page * large_page);  // the rest would fill one for nothing
    return {block, bytes};
  }

  static void give(void* block, std::size_t bytes) noexcept {
    if (bytes < least) return give_small(block);
    try {
      Spare& spare = instance();
      const std::unique_lock<std::mutex> lock(spare.mutex_, std::try_to_lock);
      if (lock && bytes <= most_kept) {
        spare.blocks_.emplace(bytes, Block{block, spare.given_++});
        spare.kept_ += bytes;
        while (spare.kept_ > most_kept) free(spare.remove(spare.oldest()));
        return;
      }
    } catch (const std::bad_alloc&) {
      // no memory to remember it by: free it
    }
    free({block, bytes});
  }

 private:
  static constexpr std::size_t large_page = std::size_t{2} << 20;

  // Sizes are multiples of a sixteenth to an eighth of themselves, so that a block may take the place of one that needs
  // nearly as much.
  static std::size_t grain(std::size_t bytes) {
    std::size_t grain = 1;
    while (grain * 16 <= bytes) grain *= 2;
    return grain;
  }

  // A call has some eighty small blocks, and allocators are quick unless they are asked for whole lines: this asks for
  // one line more, and notes before the first whole one where the block begins.
  static void* take_small(std::size_t bytes) {
    char* begin = static_cast<char*>(::operator new(bytes + cache_line));
    const auto address = reinterpret_cast<std::uintptr_t>(begin) + sizeof(begin);
    char* block = begin + sizeof(begin) + (cache_line - address % cache_line) % cache_line;
    std::memcpy(block - sizeof(begin), &begin, sizeof(begin));
    return block;
  }
  static void give_small(void* block) noexcept {
    char* begin;
    std::memcpy(&begin, static_cast<char*>(block) - sizeof(begin), sizeof(begin));
    ::operator delete(begin);
  }

  struct Block {
    void* data;
    std::uint64_t given;  // how many were given back before it
  };
  using Blocks = std::multimap<std::size_t, Block>;  // by size

  std::pair<void*, std::size_t> remove(Blocks::iterator found) {
    const std::pair<void*, std::size_t> block{found->second.data, found->first};
    kept_ -= found->first;
    blocks_.erase(found);
    return block;
  }

  Blocks::iterator oldest() {
    return std::min_element(blocks_.begin(), blocks_.end(),
                            [](const auto& a, const auto& b) { return a.second.given < b.second.given; });
  }

  static void free(std::pair<void*, std::size_t> block) noexcept {
    ::operator delete(block.first, std::align_val_t{block.second < large_page ? cache_line : large_page});
  }

  // Weights and tapes are read from end to end, a page after the other: with large pages fewer addresses are looked up.
  // A wish: refusing it is no error.
  static void ask_for_large_pages([[maybe_unused]] void* block, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
    madvise(block, bytes, MADV_HUGEPAGE);
#endif
  }

  static Spare& instance() {
    static Spare* spare = new Spare;  // never destroyed: a daemon thread may still compute when the process ends
    return *spare;
  }

  std::mutex mutex_;
  Blocks blocks_;
  std::size_t kept_ = 0;
  std::uint64_t given_ = 0;
};

template <class T> class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::initializer_list<index> sizes) : size_(checked_product(sizes)) {
    const index bytes = checked_product({std::max<index>(size_, 1), static_cast<index>(sizeof(T))});
    const auto [block, capacity] = Spare::take(static_cast<std::size_t>(bytes));
    data_ = {static_cast<T*>(block), GiveBack{capacity}};
  }

  T* get() const { return data_.get(); }
  index size() const { return size_; }
  T& operator[](index k) const { return data_.get()[k]; }
  void fill(T value) { std::fill_n(data_.get(), size_, value); }

 private:
  struct GiveBack {
    std::size_t bytes = 0;
    void operator()(T* p) const noexcept { Spare::give(p, bytes); }
  };
  index size_ = 0;
  std::unique_ptr<T[], GiveBack> data_;
};

}  // namespace rnnfast
