// The weights of a stage as its products read them, packed once a call.
#pragma once

#include <vector>

#include "cell.h"
#include "memory.h"
#include "pack.h"
#include "threads.h"

namespace rnnfast {

// A weight matrix of the caller: a row for each gate and unit. With `groups` of units (heads), the units of group g
// meet numbers [g · columns, (g + 1) · columns) of the operand only; a group begins at a whole vector.
template <class T> struct Matrix {
  const T* data = nullptr;
  index columns = 0;
  index groups = 1;
};

// The accumulators that one of the two products adds to, which stand side by side.
struct Feed {
  index first = 0;
  std::vector<index> gates;  // whose rows of the weights

  index count() const { return static_cast<index>(gates.size()); }
};

inline Feed feed_of(const std::vector<Accumulator>& accumulators, int Accumulator::* product) {
  Feed feed;
  for (index a = 0; a < static_cast<index>(accumulators.size()); a++) {
    if (accumulators[a].*product < 0) continue;
    if (feed.gates.empty()) feed.first = a;
    feed.gates.push_back(accumulators[a].*product);
  }
  return feed;
}

// Which part of z = b + W x + R o is made: all at once, or x's part ahead of the recurrent one.
enum class Make { all, input, recurrent };

// The weights for z = b + W x + R o: columns are units, block by block of them. Accumulators that sum the same operands
// form a section, whose panels have W's rows and below them R's, so that a tile sums both without a stop.
template <class E> class PackedRows {
  using T = SumOf<E>;

 public:
  PackedRows(const std::vector<Accumulator>& accumulators, Matrix<T> input, Matrix<T> recurrent, index units,
             index width)
      : input_(input), recurrent_(recurrent), units_(units), width_(width), input_length_(elements<E>(input.columns)),
        recurrent_length_(elements<E>(recurrent.columns)) {
    for (index a = 0; a < static_cast<index>(accumulators.size()); a++) {
      const auto [x, h] = accumulators[static_cast<std::size_t>(a)];
      const Kind kind{x >= 0, h >= 0};
      if (sections_.empty() || sections_.back().kind != kind) sections_.push_back({kind, a, per_vector_, {}, {}, 0});
      Section& section = sections_.back();
      section.x.push_back(x), section.h.push_back(h);
      section.length = kind.x * input_length_ + kind.h * recurrent_length_;
      per_vector_ += section.length * N;
    }
    data_ = Buffer<E>({ceil_div(units, N), std::max<index>(per_vector_, 1)});
  }

  index elements_a_vector() const { return per_vector_; }  // of units

  // How many vectors a section has for each vector of units: what a block's panels are cut from.
  template <class F> void for_each_section(F f) const {
    for (const Section& section : sections_) f(section.count());
  }

  // Packs vectors `own` of a block of `vectors` vectors of units that begins at vector v.
  void pack(index v, index vectors, Range own, bool for_others = false) {
    for (const Section& section : sections_) {
      E* to = block(section, v, vectors);
      for_each_column<E>(section.count() * vectors, width_, section.length, [&](index c, index offset, index stride) {
        const index of_units = v + c % vectors, unit = of_units * N, valid = units_ - unit;
        if (of_units < own.begin || of_units >= own.end) return;
        const auto accumulator = static_cast<std::size_t>(c / vectors);
        E* at = to + offset;
        if (section.kind.x) {
          pack_transposed<E>(row_of(input_, section.x[accumulator], unit), input_.columns, valid, input_.columns, at,
                             stride, for_others);
          at += input_length_ * stride;
        }
        if (section.kind.h)
          pack_transposed<E>(row_of(recurrent_, section.h[accumulator], unit), recurrent_.columns, valid,
                             recurrent_.columns, at, stride, for_others);
      });
    }
  }

  // z of these rows and a block of units, from b or, the recurrent part alone, from what is there.
  // z: [row][accumulator][vector][lane].
  void multiply_into(const E* const* x, const E* const* operand, index row_count, index v, index vectors, Make make,
                     const T* bias, T* z, index z_stride, bool from_last = false) const {
    for (std::size_t k = 0; k < sections_.size(); k++) {
      const Section& section = sections_[from_last ? sections_.size() - 1 - k : k];
      const bool begins = make != Make::recurrent;
      Parts<E> parts;
      if (section.kind.x && make != Make::recurrent) parts.add(x, Walk{input_length_});
      if (section.kind.h && make != Make::input)
        parts.add(operand, Walk{recurrent_length_, 1, 1, 0, group_of(v) * recurrent_length_});
      if (!begins && parts.count == 0) continue;
      const index at = section.first * vectors * N;
      const From<T> from = begins ? From<T>{bias + at, 0} : From<T>{z + at, z_stride};
      multiply(parts, row_count,
               Panels<E>{block(section, v, vectors), section.count() * vectors, width_, section.length}, from, z + at,
               z_stride, begins || !section.kind.x ? 0 : input_length_, from_last);
    }
  }

  index group_of(index v) const { return recurrent_.groups == 1 ? 0 : v * N / (units_ / recurrent_.groups); }

 private:
  static constexpr index N = Vec<T>::lanes;
  struct Kind {
    bool x, h;
    bool operator!=(const Kind& other) const { return x != other.x || h != other.h; }
  };
  struct Section {
    Kind kind;
    index first;              // accumulator
    index before;             // elements a vector of units, of the sections before
    std::vector<index> x, h;  // gates
    index length;
    index count() const { return static_cast<index>(x.size()); }
  };

  const T* row_of(const Matrix<T>& matrix, index gate, index unit) const {
    return matrix.data + (gate * units_ + unit) * matrix.columns;
  }
  E* block(const Section& section, index v, index vectors) const {
    return data_.get() + v * per_vector_ + vectors * section.before;
  }

  Matrix<T> input_, recurrent_;
  index units_, width_, input_length_, recurrent_length_, per_vector_ = 0;
  std::vector<Section> sections_;
  Buffer<E> data_;
};

// The same matrix for dv = Wᵀ dz: columns are the features of the operand, k runs over dz as the backward driver lays
// it out: vector of units, accumulator, lane.
template <class E> class PackedColumns {
  using T = SumOf<E>;

 public:
  PackedColumns() = default;
  // In blocks of two panels, as many in each of `parts` parts of a group.
  PackedColumns(Feed feed, Matrix<T> matrix, index units, index width, int parts = 1)
      : feed_(std::move(feed)), matrix_(matrix), units_(units), width_(width),
        group_vectors_(ceil_div(units / matrix.groups, N)), whole_vectors_(units / matrix.groups / N),
        rest_length_(elements<E>(units / matrix.groups % N)), zeros_({2 * width, N}) {
    zeros_.fill(T(0));
    const index group_columns = ceil_div(matrix.columns, N);
    for (index g = 0; g < matrix.groups; g++)
      for_each_block(group_columns, 2 * width, parts, [&](Range block) {
        blocks_.push_back({g * group_columns + block.begin, block.end - block.begin, g});
      });
  }

  // How many elements it has, and where they are to lie.
  index size() const { return checked_product({columns(), N, length()}); }
  void place(E* data) { data_ = data; }

  index columns() const { return blocks_.empty() ? 0 : blocks_.back().column + blocks_.back().columns; }
  index blocks() const { return static_cast<index>(blocks_.size()); }
  Range all_blocks() const { return {0, blocks()}; }
  index column_of(index j) const { return j < blocks() ? at(j).column : columns(); }
  index columns_of(index j) const { return at(j).columns; }
  index columns_of(Range blocks) const { return column_of(blocks.end) - column_of(blocks.begin); }

  // As so many multiply-adds: every number is read from another row.
  double work_of_packing(index j) const {
    return 8.0 * static_cast<double>(at(j).columns * N) * static_cast<double>(length());
  }

  void pack(index j, bool for_others = false) {
    const Block& block = at(j);
    const index feature = (block.column - at_group(block.group)) * N;
    const auto row_of = [&](index v, index a, index lane) -> const T* {
      const index unit = (block.group * group_vectors_ + v) * N + lane;
      return unit < units_
                 ? matrix_.data + (feed_.gates[static_cast<std::size_t>(a)] * units_ + unit) * matrix_.columns + feature
                 : nullptr;
    };
    const index gates = feed_.count(), rest_begins = whole_vectors_ * gates * N;
    const index rest = rest_length_ * Arithmetic<E>::numbers;
    const auto row = [&](index k) {
      return k < rest_begins ? row_of(k / N / gates, k / N % gates, k % N)
                             : row_of(whole_vectors_, (k - rest_begins) / rest, (k - rest_begins) % rest);
    };
    pack_rows<E>(row, matrix_.columns - feature, block.columns, width_, length(), 0, length(), data_of(j), for_others);
  }

  // dv of these rows of dz = their product with `blocks`, side by side from dv on, or added to what dv is. A row's
  // vectors of units lie `jump` elements apart. Some units at a time, so that their part of dz stays in a cache while
  // the weights pass by.
  void multiply_into(const E* const* rows, index row_count, index jump, Range blocks, bool add, T* dv, index dv_stride,
                     Signals& signals) const {
    if (feed_.gates.empty()) {
      if (!add)
        for (index r = 0; r < row_count; r++) std::fill_n(dv + r * dv_stride, columns_of(blocks) * N, T(0));
      return;
    }
    const index unit_length = feed_.count() * N / Arithmetic<E>::numbers, first = column_of(blocks.begin);
    for (index begin = blocks.begin, end; begin < blocks.end; begin = end) {
      const index group = at(begin).group;
      for (end = begin; end < blocks.end && at(end).group == group;) end++;
      for (index u = 0; u < group_vectors_;) {
        const index count = even_part(group_vectors_ - u, units_at_once());
        if (signals.stop(static_cast<double>(row_count * count * unit_length) * static_cast<double>(dv_stride))) return;
        const index whole = std::min(count, whole_vectors_ - u), lanes = N / Arithmetic<E>::numbers;
        const index offset = (group * group_vectors_ + u) * jump + feed_.first * lanes;
        Parts<E> parts(rows, Walk{unit_length, 1, whole, jump, offset});
        if (whole < count) parts.add(rows, Walk{rest_length_, 1, feed_.count(), lanes, offset + whole * jump});
        for (index j = begin; j < end; j++) {
          T* to = dv + (at(j).column - first) * N;
          multiply(parts, row_count, Panels<E>{data_of(j), at(j).columns, width_, length()},
                   u || add ? From<T>{to, dv_stride} : From<T>{zeros_.get(), 0}, to, dv_stride, u * unit_length);
        }
        u += count;
      }
    }
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  static constexpr index length_in_cache = 1024;
  struct Block {
    index column, columns, group;
  };
  const Block& at(index j) const { return blocks_[static_cast<std::size_t>(j)]; }
  index at_group(index g) const { return g * ceil_div(matrix_.columns, N); }
  // As many vectors of units as make a panel that stays in the level-2 cache beside the next one. Shorter ones stay in
  // the level-1 cache, but sums are loaded and stored more often (measured with one thread, LSTM, in pieces of 256 for
  // the level-1 cache: backward 0.93 to 0.99 of the speed).
  index units_at_once() const { return std::max<index>(1, length_in_cache / (feed_.count() * N)); }
  index length() const { return feed_.count() * (whole_vectors_ * N / Arithmetic<E>::numbers + rest_length_); }
  E* data_of(index j) const { return data_ + at(j).column * N * length(); }

  Feed feed_;
  Matrix<T> matrix_;
  index units_ = 0, width_ = 0, group_vectors_ = 0;
  index whole_vectors_ = 0, rest_length_ = 0;  // of a group: and elements of the units after them
  std::vector<Block> blocks_;
  Buffer<T> zeros_;
  E* data_ = nullptr;
};

}  // namespace rnnfast
