// What the backward driver keeps for a stage: its dz for a chunk of steps, in the forms that the products take, and the
// running sums of its weights' gradients.
#pragma once

#include "gradient.h"
#include "normalize.h"
#include "plan.h"

namespace rnnfast {

// The caller's gradients, shaped as the parameters; null where there is none.
template <class T> struct Gradients {
  T *ih = nullptr, *hh = nullptr, *bias_ih = nullptr, *bias_hh = nullptr, *hr = nullptr;
  T *norm_ih_weight = nullptr, *norm_ih_bias = nullptr, *norm_hh_weight = nullptr, *norm_hh_bias = nullptr;
  std::array<T*, most_unit_weights> of_units{};
};

// The rows of a chunk of steps, last step first. In dz, the rows that a thread works on lie together, step after step,
// the first thread's before the second's: were they in turns, a core that fetches a few lines ahead would take its
// neighbour's (measured with two threads, RNN at 32 × (64, 128): the recurrence 1.2 x as fast, and 1.8 x where the
// cores have no cache in common). Behind them lie those of the step after the chunk, and a row that stays zero. In sums
// over rows each step's come in the order of the batch, whoever made them.
class ChunkRows {
 public:
  // `numbers`: rows of one step that a product sums together, as an element.
  ChunkRows(index most_rows, index batch, index numbers) : batch_(batch), most_rows_(most_rows), numbers_(numbers) {
    steps_.reserve(static_cast<std::size_t>(most_rows));
  }

  // Places in dz.
  index capacity() const { return most_rows_ + batch_ + 1; }
  index zero_row() const { return capacity() - 1; }
  index of_step_after(index r) const { return most_rows_ + r; }
  // The first one of a thread whose rows of the batch begin with r.
  index first_of(index r) const {
    index rows = 0;
    for (const Step& step : steps_) rows += std::min(r, step.live);
    return rows;
  }

  // The next chunk: its rows at step s, from its last step on.
  void begin() { steps_.clear(), rows_ = 0, length_ = 0; }
  void add_step(index s, index live) {
    steps_.push_back({s, live, rows_, length_});
    rows_ += live, length_ += ceil_div(live, numbers_) * numbers_;
  }
  index rows() const { return rows_; }
  index most_rows() const { return most_rows_; }

  // Places in sums over rows, and in products that sum some rows of a step as one element, each step filled up to whole
  // ones.
  index turn_of(index s, index r) const { return at(s).before + r; }
  index order_of(index s, index r) const { return at(s).before_in_order + r; }
  index length() const { return length_; }  // in that order

  // Calls f(s, r) for the turns `some`: row r of step s.
  template <class F> void for_each_row(Range some, F f) const {
    for (const Step& step : steps_)
      for (index q = std::max(some.begin, step.before); q < std::min(some.end, step.before + step.live); q++)
        f(step.s, q - step.before);
  }
  // The same for rows `some` of the batch.
  template <class F> void for_each_row_of(Range some, F f) const {
    for (const Step& step : steps_)
      for (index r = some.begin; r < std::min(some.end, step.live); r++) f(step.s, r);
  }
  // Calls f(turn, turn or none) for each pair of rows that a product of pairs sums together: two of one step.
  template <class F> void for_each_pair(F f) const {
    for (const Step& step : steps_)
      for (index r = 0; r < step.live; r += 2) f(step.before + r, r + 1 < step.live ? step.before + r + 1 : none);
  }

 private:
  struct Step {
    index s, live, before, before_in_order;  // rows of the chunk before its own
  };
  const Step& at(index s) const { return steps_[static_cast<std::size_t>(steps_.front().s - s)]; }

  index batch_, most_rows_, numbers_, rows_ = 0, length_ = 0;
  std::vector<Step> steps_;
};

// What the rows of a list, which follow one another in dz from `first` on, have as places in sums over the chunk.
struct ChunkPlaces {
  index first;
  const index *turn, *order;
};
// The end of the places that follow one another from `begin` on.
inline index run_end(const index* places, index begin, index end) {
  index i = begin + 1;
  while (i < end && places[i] == places[i - 1] + 1) i++;
  return i;
}

// The running sums of the gradients of a stage's parameters.
template <class T> struct StageSums {
  Buffer<T> weights;
  BiasGradient<T> biases;
  UnitWeightGradient<T> of_units, gains;
};

template <class T, class E> class BackwardStage {
 public:
  // `packed`: the weights as pack() has left them before, or nothing; `sums`: those that go on, or null.
  BackwardStage(const Stage<T>& stage, const Layer<T>& layer, const ChunkRows& chunk, const Plan& plan, bool wants_dx,
                Buffer<E> packed, StageSums<T>* sums)
      : what(stage), to_operand(stage.recurrent_feed(), stage.recurrent, stage.units, plan.width,
                                plan.parts_of_units(stage.recurrent.groups)),
        by_rows_(plan.by_rows), sums_(static_cast<index>(stage.sums.size())), capacity_(chunk.capacity()),
        most_rows_(chunk.most_rows()), input_feed_(stage.input_feed()), recurrent_feed_(stage.recurrent_feed()),
        input_biases_(feed_of(stage.phase->accumulators, &Accumulator::x)),
        recurrent_biases_(feed_of(stage.phase->accumulators, &Accumulator::h)),
        dz_({stage.vectors(), capacity_, stage.accumulators(), N}),
        dinput_(input_feed_, sums_, stage.units, stage.input, most_rows_),
        drecurrent_(recurrent_feed_, sums_, stage.units, stage.recurrent, most_rows_),
        so_far_(sums ? std::move(*sums) : new_sums(stage)) {
    if (wants_dx) to_input = PackedColumns<E>(input_feed_, stage.input, stage.units, panel_width(0));
    // In one block each, like the weights that forward has packed: what one call gave back, the next one takes.
    weights_ = packed.size() ? std::move(packed) : Buffer<E>({to_operand.size() + to_input.size()});
    to_operand.place(weights_.get()), to_input.place(weights_.get() + to_operand.size());
    dinput_.place(so_far_.weights.get()), drecurrent_.place(so_far_.weights.get() + dinput_.sums());
    if (by_rows_ && plan.threads > 1) {
      handed_ = Buffer<T>({stage.vectors(), most_rows_, stage.accumulators(), N});
      if (normed()) handed_parts_ = Buffer<T>({stage.vectors(), most_rows_, sums_, N});
    }
    if (normed()) {
      parts_ = Buffer<T>({stage.vectors(), capacity_, sums_, N});
      norm_rows_.resize(stage.sums.size());
    }
    if constexpr (!same) {
      elements_ = Buffer<E>({stage.vectors(), capacity_, sums_ * N / numbers});
      pairs_ = Buffer<E>({stage.vectors(), capacity_, sums_, N});
    }
    if (layer.operand_scale && stage.scaled && reads_operand())
      scaled_ = Buffer<T>({capacity_, stage.recurrent.columns * stage.recurrent.groups});
    unit_rows_.resize(stage.phase->unit_weights.size());
    for (auto& rows : unit_rows_) rows = Buffer<const T*>({chunk.most_rows()});
    for (auto& rows : norm_rows_) rows = Buffer<const T*>({chunk.most_rows()});
  }

  Stage<T> what;
  PackedColumns<E> to_operand, to_input;

  bool reads_operand() const { return !recurrent_feed_.gates.empty(); }

  // This thread's part of the packed weights.
  void pack(int thread, int count, Signals& signals) {
    for (PackedColumns<E>* weights : {&to_operand, &to_input}) {
      if (weights == &to_operand && !reads_operand()) continue;
      const bool for_others = count > 1 && (by_rows_ || weights == &to_input);
      const Range blocks = share(weights->blocks(), thread, count);
      for (index j = blocks.begin; j < blocks.end && !signals.stop(weights->work_of_packing(j)); j++)
        weights->pack(j, for_others);
    }
  }
  // What a later stage may be made of.
  Buffer<E> take_weights() { return std::move(weights_); }
  StageSums<T> take_sums() { return std::move(so_far_); }

  // Zeros where this thread's rows begin with them.
  void start(int thread, int count, Signals& signals) {
    const Range vectors = share(what.vectors(), thread, count);
    for (index v = vectors.begin; v < vectors.end; v++) {
      if (signals.stop(work_of_memory * static_cast<double>(rows_to_clear(v) * sums_ * N))) return;
      clear_rows(v, dz_);
      if (normed()) clear_rows(v, parts_);
      if constexpr (!same) clear_rows(v, elements_);
    }
  }

  // ---- the rows of a chunk -----------------------------------------------------------------------------------------
  // Some rows of `now`, which have these places in the chunk, as operands of the products over it. `scale`: recurrent
  // dropout's factors of each, or null; `pointers`: room for one more of them than rows; `for_others`: other threads
  // multiply them too.
  void pack_operands(const Layer<T>& layer, const StepRows<T>& now, const T* const* scale, const ChunkRows& chunk,
                     const ChunkPlaces& at, Range rows, const T** pointers, bool for_others, Signals& signals) {
    const index hidden = layer.layout.hidden;
    const auto operand = [&](index i) -> const T* {
      return what.operand == none ? now.before(0)[i] : now.values()[i] + what.operand * hidden;
    };
    const auto pack = [&](WeightGradient<E>& gradient, auto row) {
      for (index begin = rows.begin, end; begin < rows.end; begin = end) {
        end = run_end(at.order, begin, rows.end);
        const index count = end - begin;
        for (index i = 0; i < count; i++) pointers[i] = row(begin + i);
        pointers[count] = nullptr;  // fills up a pair
        gradient.pack(pointers, at.order[begin] / numbers, ceil_div(count, numbers), chunk.length() / numbers,
                      for_others, signals);
      }
    };
    if (!input_feed_.gates.empty()) pack(dinput_, [&](index i) { return now.x()[i]; });
    if (scaled_.size()) {
      for (index i = rows.begin; i < rows.end; i++) scale_row(operand(i), scale[i], scaled_row(at.first + i));
      pack(drecurrent_, [&](index i) { return scaled_row(at.first + i); });
    } else if (reads_operand()) {
      pack(drecurrent_, operand);
    }
    const Zoned zoned = layer.layout.zoned_by_cell();
    for (index i = rows.begin; i < rows.end; i++) {
      const index q = at.turn[i];
      const T* values = now.values()[i];
      for (std::size_t k = 0; k < unit_rows_.size(); k++) {
        const UnitWeight& weight = what.phase->unit_weights[k];
        // A state after the step is meant as the cell made it, before zoneout.
        const T* made = zoned.keeps(weight.state) ? values + zoned.fresh_of(weight.state) : now.after(weight.state)[i];
        unit_rows_[k][q] = weight.after ? made : now.before(weight.state)[i];
      }
      for (std::size_t k = 0; k < norm_rows_.size(); k++)
        norm_rows_[k][q] = values + (what.normal + static_cast<int>(k)) * hidden;
    }
  }

  // ---- dz ----------------------------------------------------------------------------------------------------------
  T* dz(index v, index row) const { return dz_.get() + (v * capacity_ + row) * what.accumulators() * N; }
  // What a product reads of a row, and how far apart its vectors of units are.
  const E* product_row(index row) const {
    if constexpr (same) {
      return (normed() ? parts_ : dz_).get() + row * sums_ * N;
    } else {
      return elements_.get() + row * sums_ * N / numbers;
    }
  }
  index product_jump() const { return capacity_ * sums_ * N / numbers; }

  // After the cell: of `count` rows from `first` on, and some vectors of units, what the products read.
  void finish_rows(const Layer<T>& layer, T* const* values, const NextStep& next, index first, index count,
                   Range vectors) const {
    if (normed())
      for (index r = 0; r < count; r++) normalize_row_backward(layer, values[r], next, first + r);
    if constexpr (!same) {
      const Buffer<T>& from = normed() ? parts_ : dz_;
      for (index v = vectors.begin; v < vectors.end; v++) {
        const index at = (v * capacity_ + first) * sums_ * N;
        to_elements<E>(from.get() + at, count * sums_ * N, elements_.get() + at / numbers);
      }
    }
  }

  // Where threads share out rows, each leaves its own for those that sum them, in turn. `own`: the vectors of units
  // that this thread sums itself.
  void hand_over(const ChunkPlaces& at, Range rows, Range own) const {
    if (handed_.size() == 0) return;
    hand_over(dz_, handed_, at, rows, own);
    if (normed()) hand_over(parts_, handed_parts_, at, rows, own);
  }

  // Some vectors of rows of the chunk's first step, from place `row` on, for the chunk that follows.
  void keep_for_step_before(const ChunkRows& chunk, index row, Range rows, Range vectors) const {
    const index width = sums_ * N / numbers, count = rows.end - rows.begin;
    for (index v = vectors.begin; v < vectors.end && count > 0; v++) {
      E* of_vector = const_cast<E*>(product_row(0)) + v * product_jump();
      std::copy_n(of_vector + row * width, count * width, of_vector + chunk.of_step_after(rows.begin) * width);
    }
  }

  // ---- products over the chunk -------------------------------------------------------------------------------------
  // dx of `rows` rows of dz from `first` on, or added to what z is.
  void add_input_gradient(index first, index rows, bool add, T* z, index stride, Signals& signals) const {
    std::array<const E*, 96> dz_rows;
    for (index i = 0; i < rows; i++) dz_rows[static_cast<std::size_t>(i)] = product_row(first + i);
    to_input.multiply_into(dz_rows.data(), rows, product_jump(), to_input.all_blocks(), add, z, stride, signals);
    for (index a = 0; a < what.accumulators(); a++) {
      if (what.phase->accumulators[static_cast<std::size_t>(a)].x != own) continue;
      for (index i = 0; i < rows; i++)
        for (index unit = 0; unit < what.units; unit++)
          z[i * stride + unit] += dz(unit / N, first + i)[a * N + unit % N];
    }
  }

  // The sums of this thread's vectors of units, which may begin with this chunk.
  void add_weights(const ChunkRows& chunk, Range own, bool begins, Signals& signals) const {
    const index rows = chunk.rows();
    const DzView<T> dz = in_turn(dz_, handed_), parts = normed() ? in_turn(parts_, handed_parts_) : dz;
    if constexpr (same) {
      add_products(parts, rows, own, begins, signals);
    } else {
      for (index v = own.begin; v < own.end; v++) make_pairs(chunk, parts, v);
      add_products(DzView<E>{pairs_.get(), capacity_, sums_}, chunk.length() / numbers, own, begins, signals);
    }
    if (own.begin == own.end || signals.stop(static_cast<double>(rows * sums_ * (own.end - own.begin) * N))) return;
    so_far_.biases.add(dz, rows, own);
    // Some rows at a time, all that there is of them: each lies far from the next one.
    constexpr index together = 32;
    for (index begin = 0; begin < rows; begin += together) {
      const Range some{begin, std::min(begin + together, rows)};
      for (std::size_t k = 0; k < unit_rows_.size(); k++)
        so_far_.of_units.add(static_cast<index>(k), dz, unit_rows_[k].get(), some, own);
      for (std::size_t q = 0; q < norm_rows_.size(); q++)
        so_far_.gains.add(static_cast<index>(q), dz, norm_rows_[q].get(), some, own);
    }
  }

  template <class Meet>
  void exchange(const Gradients<T>& to, const Layer<T>& layer, int thread, int count, Meet meet) const {
    const Range own = share(what.vectors(), thread, count);
    dinput_.exchange(to.ih, own, meet);
    if (what.projection) {
      drecurrent_.exchange(to.hr, own, meet);
    } else {
      drecurrent_.exchange(to.hh, own, meet, layer.weights.output / layer.weights.heads);
    }
    if (thread > 0) return;
    for (T* bias : {to.bias_ih, to.norm_ih_bias})
      if (bias && !what.projection) so_far_.biases.exchange(input_biases_, bias, meet);
    for (T* bias : {to.bias_hh, to.norm_hh_bias})
      if (bias && !what.projection) so_far_.biases.exchange(recurrent_biases_, bias, meet);
    for (index k = 0; k < so_far_.of_units.count(); k++)
      so_far_.of_units.exchange(k, to.of_units[static_cast<std::size_t>(what.unit_weight + k)], meet);
    for (index q = 0; q < so_far_.gains.count(); q++) {
      const auto [x_gate, h_gate] = what.sums[static_cast<std::size_t>(q)];
      so_far_.gains.exchange(
          q, x_gate >= 0 ? to.norm_ih_weight + x_gate * what.units : to.norm_hh_weight + h_gate * what.units, meet);
    }
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  static constexpr bool same = std::is_same_v<T, E>;
  static constexpr index numbers = Arithmetic<E>::numbers;

  StageSums<T> new_sums(const Stage<T>& stage) const {
    std::vector<UnitWeight> gains;
    if (normed())
      for (const Accumulator& part : stage.sums) gains.push_back({accumulator_of(part), 0, false});
    return {Buffer<T>({dinput_.sums() + drecurrent_.sums()}),
            {stage.accumulators(), stage.units},
            {stage.phase->unit_weights, stage.units},
            {std::move(gains), stage.units}};
  }

  bool normed() const { return what.normal != none; }
  // Rows as sums take them: where one thread has all of them, they lie so.
  DzView<T> in_turn(const Buffer<T>& rows, const Buffer<T>& handed) const {
    return handed.size() ? view(handed, most_rows_) : view(rows, capacity_);
  }
  DzView<T> view(const Buffer<T>& rows, index rows_a_vector) const {
    return {rows.get(), rows_a_vector, rows.size() / (what.vectors() * rows_a_vector * N)};
  }
  void hand_over(const Buffer<T>& rows_of, const Buffer<T>& handed, const ChunkPlaces& at, Range rows,
                 Range own) const {
    const DzView<T> from = view(rows_of, capacity_), to = view(handed, most_rows_);
    for (index begin = rows.begin, end; begin < rows.end; begin = end) {
      end = run_end(at.turn, begin, rows.end);
      for (index v = 0; v < what.vectors(); v++) {
        const bool for_others = v < own.begin || v >= own.end;
        const T* row = from.at(v, at.first + begin);
        T* handed_row = const_cast<T*>(to.at(v, at.turn[begin]));
        for (index k = 0; k < (end - begin) * from.row_stride(); k += N) {
          const Vec<T> dz = Vec<T>::load(row + k);
          for_others ? dz.store_for_others(handed_row + k) : dz.store(handed_row + k);
        }
      }
    }
  }
  T* scaled_row(index row) const { return scaled_.get() + row * what.recurrent.columns * what.recurrent.groups; }

  // Recurrent dropout: the operand as the product read it.
  void scale_row(const T* from, const T* scale, T* to) const {
    for (index k = 0; k < what.recurrent.columns * what.recurrent.groups; k++) to[k] = from[k] * scale[k];
  }

  // The accumulator that a part of a gate goes into.
  int accumulator_of(const Accumulator& part) const {
    int a = 0;
    for (const Accumulator& all : what.phase->accumulators) {
      if (part.x >= 0 ? all.x == part.x : all.h == part.h) return a;
      a++;
    }
    return none;
  }

  void normalize_row_backward(const Layer<T>& layer, const T* values, const NextStep& next, index row) const {
    const SavedLayout& layout = layer.layout;
    for (index q = 0; q < sums_; q++) {
      const Accumulator& part = what.sums[static_cast<std::size_t>(q)];
      const index a = accumulator_of(part), slot = what.normal + q;
      const T* gain = part.x >= 0 ? layer.weights.norms.ih_weight + part.x * what.units
                                  : layer.weights.norms.hh_weight + part.h * what.units;
      normalize_backward(dz(0, row) + a * N, capacity_ * what.accumulators() * N, values + slot * layout.hidden,
                         next.saved, gain, values[layout.values * layout.hidden + slot - layout.normal], what.units,
                         parts_.get() + (row * sums_ + q) * N, capacity_ * sums_ * N);
    }
  }

  // The last row, at which a reset state points; of a vector past the last unit, whose lanes no cell writes, all rows.
  index rows_to_clear(index v) const { return (v + 1) * N > what.units ? capacity_ : 1; }
  template <class A> void clear_rows(index v, const Buffer<A>& rows) const {
    const index width = rows.size() / (what.vectors() * capacity_), count = rows_to_clear(v);
    std::fill_n(rows.get() + ((v + 1) * capacity_ - count) * width, count * width, A{});
  }

  void add_products(const DzView<E>& dz, index rows, Range own, bool begins, Signals& signals) const {
    if (!input_feed_.gates.empty()) dinput_.add(dz, rows, own, begins, signals);
    if (reads_operand()) drecurrent_.add(dz, rows, own, begins, signals);
  }

  void make_pairs(const ChunkRows& chunk, const DzView<T>& parts, index v) const {
    const T* zeros = (normed() ? parts_ : dz_).get() + chunk.zero_row() * sums_ * N;
    E* to = pairs_.get() + v * capacity_ * sums_ * N;
    chunk.for_each_pair([&](index even, index odd) {
      const T *a = parts.at(v, even), *b = odd == none ? zeros : parts.at(v, odd);
      for (index k = 0; k < sums_ * N; k++) *to++ = make_pair(a[k], b[k]);
    });
  }

  bool by_rows_;
  index sums_, capacity_, most_rows_;
  Feed input_feed_, recurrent_feed_;
  Feed input_biases_, recurrent_biases_;  // the accumulators that a bias enters
  Buffer<T> dz_, parts_;                  // [vector][row][accumulator, or part of a gate][lane]
  Buffer<T> handed_, handed_parts_;       // the same in turn, where that is not how they lie
  Buffer<E> elements_, pairs_;            // pairs of lanes, and of rows: [vector][row or pair of rows][part][lane]
  Buffer<T> scaled_;
  Buffer<E> weights_;
  WeightGradient<E> dinput_, drecurrent_;
  StageSums<T> so_far_;
  std::vector<Buffer<const T*>> unit_rows_, norm_rows_;
};

}  // namespace rnnfast
