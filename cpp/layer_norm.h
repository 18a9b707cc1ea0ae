// Layer norm of a stage in forward: from what its products have summed, each part of each gate apart, to
//   z = b + γ_x x̂_x + γ_h x̂_h        of each accumulator (the βs are in b)
#pragma once

#include "layer.h"
#include "normalize.h"

namespace rnnfast {

template <class T> class LayerNorm {
 public:
  LayerNorm() = default;  // of a stage that has none
  LayerNorm(const Stage<T>& stage, const Norms<T>& norms, const SavedLayout& layout)
      : norms_(norms), layout_(layout), units_(stage.units), vectors_(stage.vectors()),
        parts_(static_cast<index>(stage.sums.size())), slot_(stage.normal),
        gains_({stage.accumulators(), vectors_, 2, N}), zeros_({parts_, vectors_, N}) {
    zeros_.fill(T(0));
    const auto part = [&](int x, int h) {
      for (index q = 0; q < parts_; q++)
        if (stage.sums[static_cast<std::size_t>(q)].x == x && stage.sums[static_cast<std::size_t>(q)].h == h) return q;
      return index{none};
    };
    for (const auto& [x, h] : stage.phase->accumulators)
      gates_.push_back({x, h, x >= 0 ? part(x, none) : none, h >= 0 ? part(none, h) : none});
  }

  explicit operator bool() const { return parts_ > 0; }

  // A row as the products write it, [block of units][part][vector][lane], from sums that begin with zeros.
  index row_size() const { return parts_ * vectors_ * N; }
  index block_at(index vector) const { return parts_ * vector * N; }
  // Numbers for the means of all parts of so many rows, and behind them the scales.
  index moments_size(index rows) const { return 2 * moments(rows); }
  const T* zeros() const { return zeros_.get(); }

  // Of a block of vectors: the gains of x's part and of the operand's side by side.
  void pack(Range block) {
    for (std::size_t a = 0; a < gates_.size(); a++)
      for (index unit = block.begin * N; unit < block.end * N; unit++) {
        const Gate& gate = gates_[a];
        T* gains = gains_at(static_cast<index>(a), unit / N) + unit % N;
        gains[0] = unit < units_ && gate.x >= 0 ? norms_.ih_weight[gate.x * units_ + unit] : T(0);
        gains[N] = unit < units_ && gate.h >= 0 ? norms_.hh_weight[gate.h * units_ + unit] : T(0);
      }
  }

  // Means and scales, once all blocks are summed, of N parts at a time, a lane each; the scales among a row's values
  // too, where these are kept.
  void find_moments(const T* sums, index rows, const std::vector<Range>& blocks, T* const* values, T* means) const {
    T* scales = means + moments(rows);
    const V units(units_);
    Part part[N];
    index r = 0, q = 0;
    for (index first = 0; first < rows * parts_; first += N) {
      const index count = std::min(N, rows * parts_ - first);
      for (index k = 0; k < count; k++) {
        part[k] = {sums + r * row_size(), q};
        if (++q == parts_) r++, q = 0;
      }
      const V mean =
          sums_of(part, count, blocks, [](V sum, const T* a, index, auto n) { return sum + V::load_first(a, n); }) /
          units;
      mean.store(means + first);
      const V variance = sums_of(part, count, blocks,
                                 [&](V sum, const T* a, index k, auto n) {
                                   const V d = first_lanes(V::load(a) - V(means[first + k]), n);
                                   return fma(d, d, sum);
                                 }) /
                         units;
      variance.store(scales + first);
      for (index k = first; k < first + N; k++) scales[k] = T(1) / std::sqrt(scales[k] + static_cast<T>(norm_epsilon));
    }
    for (index row = 0; values && row < rows; row++)
      std::copy_n(scales + row * parts_, parts_,
                  values[row] + layout_.values * layout_.hidden + slot_ - layout_.normal);
  }

  // z of a block, [row][accumulator][vector][lane]; x̂ goes among a row's values, where these are kept.
  void combine(const T* sums, const T* means, index rows, Range block, const T* bias, T* const* values,
               const NextStep& next, T* z) const {
    const T* scales = means + moments(rows);
    const index vectors = block.end - block.begin, unit = block.begin * N;
    for (index r = 0; r < rows; r++, sums += row_size(), means += parts_, scales += parts_)
      for (std::size_t a = 0; a < gates_.size(); a++, z += vectors * N) {
        const Gate& gate = gates_[a];
        const T *gains = gains_at(static_cast<index>(a), block.begin), *b = bias + static_cast<index>(a) * vectors * N;
        for_each_vector_of<T>(lanes_of(block), [&, to = z](index u, auto n) {
          V sum = V::load(b + u);
          const auto add = [&](index q, const T* gain) {
            const V normal = (V::load(part_of(sums, block, q) + u) - V(means[q])) * V(scales[q]);
            if (values) {
              T* kept = values[r] + (slot_ + q) * layout_.hidden + unit + u;
              normal.store_first(kept, n), bring(kept, next.saved);
            }
            sum = fma(V::load(gain + 2 * u), normal, sum);
          };
          if (gate.x >= 0) add(gate.x_part, gains);
          if (gate.h >= 0) add(gate.h_part, gains + N);
          sum.store(to + u);
        });
      }
  }

 private:
  using V = Vec<T>;
  static constexpr index N = V::lanes;

  struct Part {
    const T* row;
    index q;
  };
  struct Gate {
    int x, h;              // as in Accumulator
    index x_part, h_part;  // and which of the sums they are
  };

  // Over the vectors of each part: sum = term(sum, numbers, k, lanes); then over their lanes, lane k for the k-th part.
  template <class Term>
  V sums_of(const Part* part, index count, const std::vector<Range>& blocks, const Term& term) const {
    V sums[N];
    for (index k = 0; k < N; k++) {
      V sum(T(0));
      if (k < count)
        for (const Range& block : blocks) {
          const T* at = part_of(part[k].row, block, part[k].q);
          for_each_vector_of<T>(lanes_of(block), [&](index u, auto n) { sum = term(sum, at + u, k, n); });
        }
      sums[k] = sum;
    }
    return sums_of_lanes(sums);
  }

  // Room for the means of so many rows, or for their scales: whole vectors.
  index moments(index rows) const { return ceil_div(rows * parts_, N) * N; }
  index lanes_of(Range block) const { return std::min(units_, block.end * N) - block.begin * N; }
  template <class S> S* part_of(S* row, Range block, index q) const {
    return row + block_at(block.begin) + q * (block.end - block.begin) * N;
  }
  T* gains_at(index a, index vector) const { return gains_.get() + (a * vectors_ + vector) * 2 * N; }

  Norms<T> norms_;
  SavedLayout layout_;
  index units_ = 0, vectors_ = 0, parts_ = 0;
  int slot_ = none;
  std::vector<Gate> gates_;  // one for each accumulator
  Buffer<T> gains_, zeros_;  // gains: [accumulator][vector][of x, of the operand][lane]
};

}  // namespace rnnfast
