// A layer as forward computes it: the weights of its stages, packed once, and a step of some rows. What a whole
// sequence and a stream of single steps share, so that they agree to the bit.
#pragma once

#include "layer_norm.h"
#include "plan.h"
#include "zoneout.h"

namespace rnnfast {

// The units and threads of a step: a thread's part of the blocks of each stage, where it waits for the others, and who
// tells all of them to stop.
struct Crew {
  Signals& signals;
  int thread = 0, count = 1;
  bool by_units = false;
  Barrier* barrier = nullptr;  // after each stage, or null

  Range blocks(index all) const { return by_units ? share(all, thread, count) : Range{0, all}; }
  bool stopped() const { return barrier ? barrier->stops() : signals.stopped(); }
  void wait() const {
    if (barrier) barrier->agree_to_stop(count, signals);
  }
};

// The numbers of a stage's operand as the products take them: where they lie, or as elements of another type.
template <class T, class E> class OperandRows {
 public:
  OperandRows() = default;
  OperandRows(index rows, index numbers) : stride_(elements<E>(numbers)), at_({rows}) {
    if constexpr (!std::is_same_v<T, E>) make_room();
  }

  // scale: a row of factors for each, or null.
  const E* const* of(const T* const* from, index rows, index numbers, const T* const* scale = nullptr) {
    if constexpr (std::is_same_v<T, E>) {
      if (!scale) return from;
      make_room();
    }
    for (index r = 0; r < rows; r++) {
      E* to = data_.get() + r * stride_;
      at_[r] = to;
      if (!scale) {
        to_elements<E>(from[r], numbers, to);
      } else if constexpr (std::is_same_v<T, E>) {
        for (index k = 0; k < numbers; k++) to[k] = from[r][k] * scale[r][k];
      } else {
        for (index k = 0; k < numbers; k++) scaled_[k] = from[r][k] * scale[r][k];
        to_elements<E>(scaled_.get(), numbers, to);
      }
    }
    return at_.get();
  }
  // Room for scaled rows; called where memory may be taken.
  void make_room(bool scales = false) {
    if (data_.size() == 0) data_ = Buffer<E>({at_.size(), std::max<index>(stride_, 1)});
    if (scales) scaled_ = Buffer<T>({std::max<index>(stride_, 1) * Arithmetic<E>::numbers});
  }

 private:
  index stride_ = 0;
  Buffer<const E*> at_;
  Buffer<E> data_;
  Buffer<T> scaled_;
};

template <class T, class E> class PackedStage {
 public:
  PackedStage(const Stage<T>& stage, const Layer<T>& layer, const Plan& plan, index rows)
      : stage_(stage), norms_(layer.weights.norms), unit_weights_(layer.weights.of_units), layout_(layer.layout),
        packed_(stage.sums, stage.input, stage.recurrent, stage.units, plan.width),
        bias_({stage.accumulators(), stage.vectors(), N}) {
    const index groups = stage.recurrent.groups, group = stage.vectors() / groups, most = unit_vectors(plan, rows);
    for (index g = 0; g < stage.vectors(); g += group)
      for_each_block(group, most, plan.parts_of_units(groups),
                     [&](Range block) { blocks_.push_back({g + block.begin, g + block.end}); });
    reads_operand_ = !stage.recurrent_feed().gates.empty();
    for (const auto& [begin, end] : blocks_) most_vectors_ = std::max(most_vectors_, end - begin);
    if (stage.normal != none) norm_ = LayerNorm<T>(stage, norms_, layout_);
  }

  const Stage<T>& stage() const { return stage_; }
  bool reads_operand() const { return reads_operand_; }
  index blocks() const { return static_cast<index>(blocks_.size()); }
  index vector_of(index j) const { return blocks_[static_cast<std::size_t>(j)].begin; }
  index vectors_of(index j) const { return blocks_[static_cast<std::size_t>(j)].end - vector_of(j); }
  index most_vectors() const { return most_vectors_; }
  // Numbers from row to row of the block's pre-activations: [accumulator][vector][lane].
  index z_stride(index j) const { return stage_.accumulators() * vectors_of(j) * N; }
  // What its products write: the same, or each part of each gate apart, of all blocks row by row.
  index made_stride(index j) const { return norm_ ? norm_.row_size() : z_stride(j); }
  // Where it begins among so many rows that are made ahead, and how many numbers each has.
  index made_at(index j, index rows) const {
    return norm_ ? norm_.block_at(vector_of(j)) : vector_of(j) * stage_.accumulators() * N * rows;
  }
  index ahead_size() const { return norm_ ? norm_.row_size() : stage_.accumulators() * stage_.vectors() * N; }
  // Numbers that rows need in the two buffers of run().
  index z_size(index rows) const { return rows * stage_.accumulators() * most_vectors_ * N; }
  index sums_size(index rows) const { return norm_.moments_size(rows) + rows * norm_.row_size(); }
  // Multiply-adds of some rows and a block.
  double work(index j, index rows) const {
    return static_cast<double>(rows) * static_cast<double>(vectors_of(j) * packed_.elements_a_vector());
  }

  // Those vectors `own` that are block j's.
  void pack(index j, Range own, bool for_others) {
    const auto [v, end] = blocks_[static_cast<std::size_t>(j)];
    const index vectors = end - v, units = stage_.units;
    own = {std::max(own.begin, v), std::min(own.end, end)};
    if (own.begin >= own.end) return;
    packed_.pack(v, vectors, own, for_others);
    if (norm_) norm_.pack(own);
    for (index a = 0; a < stage_.accumulators(); a++) {
      const auto [x, h] = stage_.phase->accumulators[static_cast<std::size_t>(a)];
      for (index lane = (own.begin - v) * N; lane < (own.end - v) * N; lane++) {
        const index unit = v * N + lane;
        T sum = 0;
        if (unit < units && x >= 0 && stage_.bias_ih) sum = stage_.bias_ih[x * units + unit];
        if (unit < units && h >= 0 && stage_.bias_hh) sum += stage_.bias_hh[h * units + unit];
        if (unit < units && norm_ && x >= 0 && norms_.ih_bias) sum += norms_.ih_bias[x * units + unit];
        if (unit < units && norm_ && h >= 0 && norms_.hh_bias) sum += norms_.hh_bias[h * units + unit];
        bias_[v * stage_.accumulators() * N + a * vectors * N + lane] = sum;
      }
    }
  }

  // z = b + W x of a block, for some rows of x.
  void start(index j, const E* const* x, index rows, T* made) const {
    packed_.multiply_into(x, nullptr, rows, vector_of(j), vectors_of(j), Make::input, begin_of(j), made,
                          made_stride(j));
  }

  // The cell of `rows` rows of the desk from `first` on, for the crew's part of the blocks. `ahead`: gives what a
  // block's products write, with W x in it, or null.
  template <class Ahead> void run(StepRows<T>& desk, index first, index rows, const Crew& crew, const E* const* x,
                                  const E* const* operand, bool saves, T* z, T* sums, bool from_last,
                                  Ahead ahead) const {
    T* const* values = saves ? desk.values() + first : nullptr;
    const T* parts = norm_ ? sum_parts(rows, crew, x, operand, values, sums, ahead(0)) : nullptr;
    const Range own_blocks = crew.blocks(blocks());
    for (index i = own_blocks.begin; i < own_blocks.end; i++) {
      const index j = from_last ? own_blocks.end - 1 - (i - own_blocks.begin) : i;
      if (crew.signals.stop(work(j, rows))) return;
      T* of_block = z;
      if (norm_) {
        norm_.combine(parts, sums, rows, blocks_[static_cast<std::size_t>(j)], bias_of(j), values, desk.next(), z);
      } else {
        T* made = ahead(j);
        if (made) of_block = made;
        multiply(j, rows, x, operand, made != nullptr, of_block, from_last);
      }
      take_own_inputs(desk, first, rows, j, of_block);
      run_cell(desk, first, rows, j, saves, of_block);
    }
  }

 private:
  static constexpr index N = Vec<T>::lanes;

  const T* bias_of(index j) const { return bias_.get() + vector_of(j) * stage_.accumulators() * N; }
  const T* begin_of(index j) const { return norm_ ? norm_.zeros() : bias_of(j); }

  // The products of a block; W x is there already, or not.
  void multiply(index j, index rows, const E* const* x, const E* const* operand, bool is_ahead, T* made,
                bool from_last) const {
    packed_.multiply_into(is_ahead ? nullptr : x, operand, rows, vector_of(j), vectors_of(j),
                          is_ahead ? Make::recurrent : Make::all, begin_of(j), made, made_stride(j), from_last);
  }

  index unit_vectors(const Plan& plan, index rows) const {
    const index row_bytes = stage_.accumulators() * N * static_cast<index>(sizeof(T));
    return plan.unit_vectors(packed_, bytes_in_cache / (std::clamp<index>(rows, 1, rows_in_cache) * row_bytes),
                             stage_.vectors());
  }

  // Pre-activations that are numbers of x themselves.
  void take_own_inputs(StepRows<T>& desk, index first, index rows, index j, T* z) const {
    const index unit = vector_of(j) * N, vectors = vectors_of(j), valid = std::min(vectors * N, stage_.units - unit);
    for (index a = 0; a < stage_.accumulators(); a++) {
      if (stage_.phase->accumulators[static_cast<std::size_t>(a)].x != own) continue;
      for (index r = 0; r < rows; r++)
        std::copy_n(desk.x()[first + r] + unit, valid, z + r * z_stride(j) + a * vectors * N);
    }
  }

  // Statistics are of whole rows: all blocks are summed before the first one is normalised. Gives the rows of parts,
  // which lie where W x is ahead, or in `sums` behind the moments.
  const T* sum_parts(index rows, const Crew& crew, const E* const* x, const E* const* operand, T* const* values,
                     T* sums, T* ahead) const {
    T* parts = ahead ? ahead : sums + norm_.moments_size(rows);
    for (index j = 0; j < blocks(); j++) {
      if (crew.signals.stop(work(j, rows))) return parts;
      multiply(j, rows, x, operand, ahead != nullptr, parts + norm_.block_at(vector_of(j)), false);
    }
    norm_.find_moments(parts, rows, blocks_, values, sums);
    return parts;
  }

  void run_cell(StepRows<T>& desk, index first, index rows, index j, bool saves, const T* z) const {
    ForwardBlock<T> block{};
    block.rows = rows, block.vectors = vectors_of(j), block.unit = vector_of(j) * N, block.hidden = stage_.units;
    block.z = z, block.z_stride = z_stride(j), block.unit_weights = unit_weights_.data() + stage_.unit_weight;
    for (int k = 0; k < desk.states(); k++)
      block.before[k] = desk.before(k) + first, block.after[k] = desk.after(k) + first;
    if (stage_.output != none) {
      block.after[0] = desk.output(stage_.output, layout_.hidden, first + rows) + first;
      block.before[0] = block.after[0];  // h is of another width; no cell that is projected reads it but by a product
    }
    if (saves) block.saved = desk.values() + first;
    block.zoned = stage_.zoned, block.next = desk.next();
    if (stage_.output != none) block.next.states[0] = block.next.saved;
    stage_.phase->forward(block);
  }

  Stage<T> stage_;
  Norms<T> norms_;
  std::array<const T*, most_unit_weights> unit_weights_;
  SavedLayout layout_;
  PackedRows<E> packed_;
  LayerNorm<T> norm_;
  Buffer<T> bias_;
  std::vector<Range> blocks_;
  index most_vectors_ = 1;
  bool reads_operand_;
};

// What a thread works on: its rows, their operands, and room for pre-activations.
template <class T, class E> struct Desk {
  StepRows<T> rows;
  OperandRows<T, E> x, operand;
  Buffer<const T*> scale;  // of the rows: factors of h, or empty
  Buffer<T> z, sums;       // and layer norm's parts of them
  bool from_last = false;  // the way in which the next pass takes the weights
};

template <class T, class E> class PackedLayer {
 public:
  // Nothing is packed yet: that is shared among threads, block by block.
  PackedLayer(const Layer<T>& layer, const Plan& plan, index rows)
      : hidden_(layer.hidden()), output_(layer.weights.output), input_(layer.weights.input),
        needs_values_(layer.needs_values()), shares_(layer.zoneout, layer.cell.states), layout_(layer.layout),
        states_(layer.cell.states) {
    for (const Stage<T>& stage : layer.stages()) stages_.emplace_back(stage, layer, plan, rows);
  }

  index stages() const { return static_cast<index>(stages_.size()); }
  const PackedStage<T, E>& operator[](index k) const { return stages_[static_cast<std::size_t>(k)]; }

  void pack(const Crew& crew) {
    for (PackedStage<T, E>& stage : stages_) {
      // Where threads share out units, those of their own blocks.
      const Range own = share(stage.stage().vectors(), crew.thread, crew.count);
      for (index j = 0; j < stage.blocks() && !crew.signals.stop(stage.work(j, 1)); j++)
        stage.pack(j, own, crew.count > 1 && !crew.by_units);
    }
    publish();
  }

  // Room for so many rows, which are dropped as `scale` says if there is one.
  Desk<T, E> make_desk(index rows, index x_rows, bool scaled) const {
    Desk<T, E> desk;
    desk.rows = StepRows<T>(rows, states_);
    desk.x = OperandRows<T, E>(x_rows, input_);
    desk.operand = OperandRows<T, E>(rows, std::max(hidden_, output_));
    if (scaled) desk.scale = Buffer<const T*>({rows}), desk.operand.make_room(true);
    const index together = std::min(rows, rows_in_cache);
    index z = 0, sums = 0;
    for (const PackedStage<T, E>& stage : stages_) {
      z = std::max(z, stage.z_size(together));
      sums = std::max(sums, stage.sums_size(together));
    }
    desk.z = Buffer<T>({z});
    if (sums) desk.sums = Buffer<T>({sums});
    return desk;
  }

  // One step of the desk's first `rows` rows: stage after stage, each on the crew's part of its blocks. Every pass over
  // the weights goes the other way than the one before, so that it begins with those that are still in a cache.
  // ahead(stage, j): z of all rows with W x in it, or null.
  template <class Ahead> void step(Desk<T, E>& desk, index rows, const Crew& crew, bool keeps, Ahead ahead) const {
    const bool saves = keeps || needs_values_;
    const E* const* x = ahead(0, 0) ? nullptr : desk.x.of(desk.rows.x(), rows, input_);
    bool from_last = desk.from_last;
    for (index k = 0; k < stages(); k++) {
      const PackedStage<T, E>& stage = (*this)[k];
      const Stage<T>& what = stage.stage();
      const E* const* operand = nullptr;
      if (stage.reads_operand()) {
        const bool of_h = what.operand == none;
        const T* const* from = of_h ? desk.rows.before(0) : desk.rows.operand(what.operand, hidden_, rows);
        operand = desk.operand.of(from, rows, of_h ? output_ : hidden_,
                                  what.scaled && desk.scale.size() ? desk.scale.get() : nullptr);
      }
      from_last = desk.from_last;
      for (index r = 0; r < rows && !crew.signals.stopped(); from_last = !from_last) {
        const index some = even_part(rows - r, rows_in_cache);
        stage.run(desk.rows, r, some, crew, x ? x + r : nullptr, operand ? operand + r : nullptr, saves, desk.z.get(),
                  desk.sums.get(), from_last, [&](index j) -> T* {
                    T* z = ahead(k, j);
                    return z ? z + r * stage.made_stride(j) : nullptr;
                  });
        r += some;
      }
      crew.wait();
    }
    desk.from_last = from_last;
  }

  // Zoneout's shares of a row's states, before its step; of the units that the crew has in the stage that makes them.
  bool has_shares() const { return layout_.keep != none; }
  void draw_shares(index t, index b, const Crew& crew, T* values) const {
    for (const PackedStage<T, E>& packed : stages_) {
      const Stage<T>& stage = packed.stage();
      const Range blocks = crew.blocks(packed.blocks());
      if (blocks.begin == blocks.end) continue;
      const index first = packed.vector_of(blocks.begin) * Vec<T>::lanes;
      const index end = (packed.vector_of(blocks.end - 1) + packed.vectors_of(blocks.end - 1)) * Vec<T>::lanes;
      for (int k = stage.zoned.first; k < (stage.projection ? 1 : states_); k++)
        shares_.write(k, t, b, {first, std::min(end, stage.units)}, values + stage.zoned.keep_of(k));
    }
  }

 private:
  index hidden_, output_, input_;
  bool needs_values_;
  ZoneoutShares shares_;
  SavedLayout layout_;
  int states_;
  std::vector<PackedStage<T, E>> stages_;
};

}  // namespace rnnfast
