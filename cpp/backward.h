// The backward driver, mirror image of the forward one. In chunks of steps, last step first:
//   dh = dy + Rᵀ dz of the step after      dz, dstates = cell'(dh, …)        the recurrence, stage after stage
//   dx = Wᵀ dz      dW += dz xᵀ      dR += dz oᵀ      db += dz               large products over the rows of the chunk
// so that dz is read while it is still in a cache and never kept for all steps.
#pragma once

#include "backward_stage.h"
#include "kept.h"
#include "together.h"

namespace rnnfast {

template <class T> struct Adjoints {
  Sequence<const T> dy{};                            // or null: zeros
  std::array<const T*, most_states> dfinal{};        // (B, ·) or null: zeros
  std::array<T*, most_states> dinitial{};            // (B, ·), written
  Sequence<T> dx{};                                  // written, or null: not wanted
  bool accumulate_dx = false;                        // added to what dx holds
  Gradients<T> gradients{};                          // added to, at the very end
  bool resume = false;                               // what they hold are sums so far, which go on
  bool goes_on = false;                              // and in a later call: they are kept, not handed over
  T clip = std::numeric_limits<T>::infinity();       // of each element of dh, at each step
  std::array<Sequence<T>, most_states> over_time{};  // written, or null: the whole gradient of each state
};

template <class T, class E> class Backward : public Driver {
 public:
  // `kept`: where packed weights and sums that go on come from and go to, or null.
  Backward(Layer<T> layer_of_call, Adjoints<T> adjoints, std::shared_ptr<Kept> kept, int threads,
           Beside beside = Beside::nothing, const Driver* before = nullptr)
      : Driver(beside, before), layer_(std::move(layer_of_call)), adjoints_(std::move(adjoints)),
        kept_(std::move(kept)), plan_(make_plan(layer_, threads, Beside::nothing, Pass::backward)),
        kept_for_(kept_for(layer_, plan_, static_cast<bool>(adjoints_.dx))), batch_(layer_.timeline.batch()),
        rows_a_chunk_(rows_of_chunk()), chunk_(rows_a_chunk_ + batch_, batch_, numbers),
        scans_(plan_.scans && !layer_.timeline.has_resets()), step_(layer_.timeline.steps()) {
    const Layer<T>& layer = layer_;
    if (beside == Beside::directions && before && adjoints_.accumulate_dx && adjoints_.dx) keep_dx_apart();
    const std::vector<Stage<T>> stages = layer.stages();
    stages_.reserve(stages.size());
    if (kept_) packed_ = kept_->backward_weights.take<Packed>(kept_for_);
    if (kept_ && kept_->sums.is_there()) {
      if (adjoints_.resume) sums_ = kept_->sums.take<Sums>(kept_for(layer));
      if (!sums_) throw std::invalid_argument("kept: expected the sums of this layer, got another's, or no `resume`");
    }
    is_packed_ = packed_ != nullptr, has_sums_ = sums_ != nullptr;
    for (std::size_t p = 0; p < stages.size(); p++)
      stages_.emplace_back(stages[p], layer, chunk_, plan_, static_cast<bool>(adjoints_.dx),
                           packed_ ? std::move((*packed_)[p]) : Buffer<E>(), sums_ ? &(*sums_)[p] : nullptr);
    if (kept_ && !packed_) packed_ = std::make_shared<Packed>(stages.size());
    if (kept_ && !sums_) sums_ = std::make_shared<Sums>(stages.size());
    for (int k = 0; k < layer.cell.states + layer.cell.carried; k++) dstate_[k] = Buffer<T>({batch_, padded(k)});
    if (layer.weights.projects()) doutput_ = Buffer<T>({batch_, layer.vectors() * N});
    for (int k = 0; k < plan_.threads; k++) workers_.emplace_back(*this);
  }

  ~Backward() override {
    if (kept_ && is_packed_) {
      for (std::size_t p = 0; p < stages_.size(); p++) (*packed_)[p] = stages_[p].take_weights();
      kept_->backward_weights.give(kept_for_, packed_);
    }
    if (kept_ && keeps_sums_) {
      for (std::size_t p = 0; p < stages_.size(); p++) (*sums_)[p] = stages_[p].take_sums();
      kept_->sums.give(kept_for(layer_), sums_);
    }
  }

  // Nothing of the caller's gradients changes before all else is done.
  void work(Signals& signals, int thread, int count) override {
    Worker& worker = workers_[static_cast<std::size_t>(thread)];
    for (BackwardStage<T, E>& stage : stages_) {
      if (!is_packed_) stage.pack(thread, count, signals);
      stage.start(thread, count, signals);
    }
    start_dstates(share(batch_, thread, count), signals);
    publish();
    barrier_.wait(count, [&] {
      is_packed_ = is_packed_ || !signals.stopped();
      begin_chunk();
    });
    if (adjoints_.resume && !has_sums_) exchange(thread, count, TakeUp{});
    const index steps = layer_.timeline.steps();
    while (begin_ < step_) {
      if (in_layers()) wait_for(steps - begin_);
      run_chunk(worker, thread, count, signals);
      barrier_.wait(count, [&] { signals.stopped() ? skip_rest() : begin_chunk(); });
      tell(steps - step_, thread);
    }
    initial_gradient(worker, share(batch_, thread, count), signals);
    const bool stops = barrier_.agree_to_stop(count, signals);
    tell(Progress::all, thread);
    if (stops) return;
    if (kept_ && adjoints_.goes_on) {
      if (thread == 0) keeps_sums_ = has_sums_ || steps > 0;  // else none has begun
    } else {
      adjoints_.resume ? exchange(thread, count, HandOver{}) : exchange(thread, count, AddSum{});
    }
    if (own_dx_.size()) add_dx(share(batch_, thread, count));
  }

  int threads() const override { return plan_.threads; }

 private:
  static constexpr index N = Vec<T>::lanes;
  static constexpr index numbers = Arithmetic<E>::numbers;
  static constexpr double work_of_equations = 20;  // of a unit, in multiply-adds, about
  // Of each stage, while no call has them.
  using Packed = std::vector<Buffer<E>>;
  using Sums = std::vector<StageSums<T>>;

  struct Worker {
    explicit Worker(const Backward& b) : Worker(b, std::max(b.batch_, rows_together)) {}
    Worker(const Backward& b, index most_rows)
        : rows(most_rows, b.layer_.cell.states), turn({most_rows}), order({most_rows}), dz({b.batch_}),
          operands({most_rows + 1}) {
      index columns = 1;
      for (const BackwardStage<T, E>& stage : b.stages_) columns = std::max(columns, stage.to_operand.columns());
      dh = Buffer<T>({rows_in_cache, columns, N});
      if (b.adjoints_.dx) dx = Buffer<T>({b.dx_rows(), b.stages_.front().to_input.columns(), N});
      for (int k = 0; k < b.layer_.cell.states + b.layer_.cell.carried; k++) dstate[k] = Buffer<T*>({most_rows});
      for (int k = 0; k < b.layer_.cell.states; k++)
        if (b.adjoints_.over_time[k]) whole[k] = Buffer<T*>({most_rows});
      if (b.adjoints_.dy) dy = Buffer<const T*>({most_rows});
      if (b.layer_.operand_scale) scale = Buffer<const T*>({most_rows});
      if (b.doutput_.size()) doutput = Buffer<T*>({most_rows});
      dx_rows = Buffer<T*>({b.chunk_.most_rows()});
    }
    StepRows<T> rows;
    index first = 0;            // of their rows in dz, which follow one another
    Buffer<index> turn, order;  // their places in sums over the chunk
    Buffer<const E*> dz;        // of the stage after
    Buffer<const T*> operands;
    std::array<Buffer<T*>, most_states + most_carried> dstate;
    std::array<Buffer<T*>, most_states> whole;
    Buffer<const T*> dy, scale;
    Buffer<T*> doutput, dx_rows;
    Buffer<T> dh, dx;
  };

  // A thread's rows at a step, from `first` of the batch on, their places in the worker's lists, and how many of them
  // had a step after it, whose dz begin with row `after`; or those of several steps of a scan, the first of which is s.
  struct Now {
    index s, steps, first;
    Range places;
    index running, after;

    index rows() const { return places.end - places.begin; }
  };

  // About so many rows of some steps are multiplied together: they stay in a cache, and are enough for the sums of dW,
  // which are read and written once. Threads that share out rows meet twice a chunk, so it has as many for each of them
  // where a row is short (measured with two threads, RNN at 128 × (32, 64): 1.08 x as fast, and 1.24 x where the cores
  // have no cache in common).
  index rows_of_chunk() const {
    constexpr index rows_of_thread = 256, most_bytes = 512 * 1024;
    const index row_bytes = layer_.accumulators() * layer_.vectors() * N * static_cast<index>(sizeof(T));
    const index threads = plan_.by_rows ? plan_.threads : 1, steps = layer_.timeline.steps();
    const index most = std::clamp(most_bytes / std::max<index>(row_bytes, 1), rows_of_thread, rows_of_thread * threads);
    const index rows = in_layers() ? std::max(rows_together, steps_a_stride(steps) * batch_) : steps * batch_;
    return std::clamp<index>(rows, 1, most);
  }

  // The other direction writes dx meanwhile: this one's is added when that is done.
  void keep_dx_apart() {
    const Sequence<T>& dx = adjoints_.dx;
    own_dx_ = Buffer<T>({dx.steps, dx.batch, dx.width});
    sum_of_dx_ =
        std::exchange(adjoints_.dx, {own_dx_.get(), dx.steps, dx.batch, dx.width, dx.batch * dx.width, dx.width});
  }
  void add_dx(Range rows) const {
    wait_for(Progress::all);
    const Timeline& timeline = layer_.timeline;
    for (index t = 0; t < timeline.steps(); t++)
      for (index r = rows.begin; r < std::min(rows.end, timeline.live(t)); r++)
        add_numbers(adjoints_.dx.at(t, timeline.batch_row(r)), sum_of_dx_.at(t, timeline.batch_row(r)));
  }
  void add_numbers(const T* from, T* to) const {
    for (index f = 0; f < layer_.weights.input; f++) to[f] += from[f];
  }

  index padded(int k) const { return ceil_div(k < layer_.cell.states ? layer_.width(k) : layer_.hidden(), N) * N; }
  T* dstate_at(int k, index r) const { return dstate_[static_cast<std::size_t>(k)].get() + r * padded(k); }
  const BackwardStage<T, E>& reads_h() const { return stages_.front(); }

  void start_dstates(Range rows, Signals& signals) {
    for (index r = rows.begin; r < rows.end; r++)
      for (int k = 0; k < layer_.cell.states + layer_.cell.carried; k++) {
        if (signals.stop(work_of_memory * static_cast<double>(padded(k)))) return;
        std::fill_n(dstate_at(k, r), padded(k), T(0));
        if (k < layer_.cell.states && adjoints_.dfinal[k])
          std::copy_n(adjoints_.dfinal[k] + layer_.timeline.batch_row(r) * layer_.width(k), layer_.width(k),
                      dstate_at(k, r));
      }
  }

  // What is to be done next: the steps [begin_, step_), whose rows make a chunk, last step first.
  void begin_chunk() {
    step_ = begin_;
    if (step_ == 0) return;
    chunk_.begin();
    while (begin_ > 0 && chunk_.rows() < rows_a_chunk_) begin_--, chunk_.add_step(begin_, layer_.timeline.live(begin_));
  }
  void skip_rest() { step_ = begin_; }

  // Rows are shared out anew for each chunk: where lengths differ, the last steps are those of a few long rows.
  void run_chunk(Worker& worker, int thread, int count, Signals& signals) {
    const Range rows =
        plan_.by_rows ? layer_.timeline.share_rows(thread, count, begin_, step_, numbers) : Range{0, batch_};
    const auto live = [&](index s) {
      return std::max<index>(std::min(rows.end, layer_.timeline.live(s)) - rows.begin, 0);
    };
    Range places{0, 0};
    index row = chunk_.first_of(rows.begin), row_after = chunk_.of_step_after(rows.begin);
    for (index s = step_; s > begin_;) {
      // Steps of few rows come one after the other. Their operands are packed together; and those of a scan are one
      // step, whose rows find the gradients that the rows before them have left.
      index running = s < layer_.timeline.steps() ? live(s) : 0, end = 0;
      worker.first = row;
      const index after = s;
      do {
        s--;
        places = point(worker, s, {rows.begin, rows.begin + live(s)}, places, end);
        end = places.end;
        if (!scans_) step(worker, {s, 1, rows.begin, places, running, row_after}, thread, count, signals);
        running = places.end - places.begin, row_after = row, row += running;
      } while (s > begin_ && end + live(s - 1) <= rows_together);
      if (scans_) step(worker, {s, after - s, rows.begin, {0, end}, 0, none}, thread, count, signals);
      pack(worker, end, thread, count, signals);
    }
    if (reads_h().reads_operand()) {
      const index vectors = reads_h().what.vectors();
      reads_h().keep_for_step_before(chunk_, row_after, {rows.begin, rows.begin + live(begin_)},
                                     plan_.by_rows ? Range{0, vectors} : share(vectors, thread, count));
    }
    publish();
    barrier_.wait(count);
    const bool begins = step_ == layer_.timeline.steps() && !adjoints_.resume;
    if (adjoints_.dx) input_gradient(worker, rows, share(chunk_.rows(), thread, count), signals);
    for (BackwardStage<T, E>& stage : stages_)
      stage.add_weights(chunk_, share(stage.what.vectors(), thread, count), begins, signals);
  }

  // Points at `rows` of step s and what belongs to them, from place `at` on, and gives their places. `after`: those of
  // the step after.
  Range point(Worker& worker, index s, Range rows, Range after, index at) {
    const Timeline& timeline = layer_.timeline;
    const index count = rows.end - rows.begin;
    const bool retreats = count && count == after.end - after.begin && s > 0 && !timeline.has_resets();
    retreats ? worker.rows.retreat(layer_, count, after.begin, at)
             : worker.rows.set(layer_, s, rows.begin, rows.end, at);
    const index turn = chunk_.turn_of(s, rows.begin), order = chunk_.order_of(s, rows.begin);
    for (index i = 0; i < count; i++) worker.turn[at + i] = turn + i, worker.order[at + i] = order + i;
    if (at != after.begin || count > after.end - after.begin)
      for (index i = 0; i < count; i++) point_to_dstates(worker, rows.begin + i, at + i);
    const auto place = [&](const auto& of, auto& pointers) {
      if (!of) return;
      for (index i = 0; i < count; i++)
        pointers[at + i] = retreats ? pointers[after.begin + i] + timeline.time_before() * of.step_stride
                                    : of.at(timeline.time(s, rows.begin + i), timeline.batch_row(rows.begin + i));
    };
    place(adjoints_.dy, worker.dy);
    for (int k = 0; k < layer_.cell.states; k++) place(adjoints_.over_time[k], worker.whole[k]);
    if (layer_.operand_scale)
      for (index i = 0; i < count; i++)
        worker.scale[at + i] = layer_.operand_scale + timeline.batch_row(rows.begin + i) * layer_.weights.output;
    return {at, at + count};
  }

  void point_to_dstates(Worker& worker, index r, index i) const {
    for (int k = 0; k < layer_.cell.states + layer_.cell.carried; k++) worker.dstate[k][i] = dstate_at(k, r);
    if (doutput_.size()) worker.doutput[i] = doutput_.get() + r * layer_.vectors() * N;
  }

  void step(Worker& worker, const Now& now, int thread, int count, Signals& signals) {
    worker.rows.expect(layer_, now.s < now.steps ? 0 : now.steps * layer_.timeline.time_before(),
                       adjoints_.dy.step_stride);
    for (index p = static_cast<index>(stages_.size()); p-- > 0;) {
      const bool last = p + 1 == static_cast<index>(stages_.size());
      const BackwardStage<T, E>& reader = last ? reads_h() : stages_[p + 1];
      const Range blocks =
          plan_.by_rows ? reader.to_operand.all_blocks() : share(reader.to_operand.blocks(), thread, count);
      if (last) {
        point_to_dz_after(worker, now);
      } else {
        for (index i = 0; i < now.rows(); i++) worker.dz[i] = reader.product_row(worker.first + now.places.begin + i);
      }
      run_stage(worker, now, stages_[p], reader, last, blocks, signals);
      if (plan_.waits) barrier_.wait(count);
    }
  }

  // The operands of the first `rows` rows, for the products over the chunk.
  void pack(Worker& worker, index rows, int thread, int count, Signals& signals) {
    const Range own = plan_.by_rows ? Range{0, rows} : share_of_rows(worker, rows, thread, count);
    const T* const* scale = worker.scale.size() ? worker.scale.get() : nullptr;
    const ChunkPlaces at{worker.first, worker.turn.get(), worker.order.get()};
    for (BackwardStage<T, E>& stage : stages_) {
      stage.pack_operands(layer_, worker.rows, scale, chunk_, at, own, worker.operands.get(), count > 1, signals);
      stage.hand_over(at, own, share(stage.what.vectors(), thread, count));
    }
  }
  // A thread's part of them, begun where an element of products over rows begins.
  Range share_of_rows(const Worker& worker, index rows, int thread, int count) const {
    Range part = share(rows, thread, count);
    while (part.begin < rows && worker.order[part.begin] % numbers) part.begin++;
    while (part.end < rows && worker.order[part.end] % numbers) part.end++;
    return part;
  }

  // Points at the dz of step s + 1 of the rows that ran then. A state that was reset before that step passes nothing
  // back: its row points at zeros.
  void point_to_dz_after(Worker& worker, const Now& now) const {
    for (index i = 0; i < now.running; i++)
      worker.dz[i] = reads_h().product_row(is_fresh(now.s + 1, now.first + i) ? chunk_.zero_row() : now.after + i);
  }
  bool is_fresh(index s, index r) const {
    return layer_.timeline.has_resets() && layer_.timeline.origin(s, r) == Origin::fresh;
  }

  void run_stage(Worker& worker, const Now& now, const BackwardStage<T, E>& stage, const BackwardStage<T, E>& reader,
                 bool last, Range blocks, Signals& signals) {
    const PackedColumns<E>& to_operand = reader.to_operand;
    const index stride = to_operand.columns_of(blocks) * N;
    const index with_dz = last ? now.running : now.rows();
    for (index i = 0; i < now.rows();) {
      const index rows = even_part(now.rows() - i, rows_in_cache), made = std::clamp<index>(with_dz - i, 0, rows);
      if (signals.stop(work_of_equations * static_cast<double>(rows * stride))) return;
      T* dh = reader.reads_operand() ? worker.dh.get() : nullptr;
      if (dh) {
        to_operand.multiply_into(worker.dz.get() + i, made, reader.product_jump(), blocks, false, dh, stride, signals);
        std::fill_n(dh + made * stride, (rows - made) * stride, T(0));
        if (layer_.operand_scale && reader.what.scaled) scale_dh(now.first + i, made, to_operand, blocks, dh, stride);
      }
      const Range vectors{to_operand.column_of(blocks.begin), to_operand.column_of(blocks.end)};
      if (last) forget_reset(now, i, rows, vectors, 0, 1);
      if (stage.what.ends_cell) forget_reset(now, i, rows, vectors, 1, layer_.cell.states);
      const index place = now.places.begin + i;
      run_block(worker, stage, vectors, place, rows, dh, stride);
      stage.finish_rows(layer_, worker.rows.values() + place, worker.rows.next(), worker.first + place, rows, vectors);
      i += rows;
    }
  }

  // Recurrent dropout: the operand of rows [first, first + rows) was scale ∘ h.
  void scale_dh(index first, index rows, const PackedColumns<E>& to_operand, Range blocks, T* dh, index stride) const {
    const index unit = to_operand.column_of(blocks.begin) * N, count = std::min(stride, layer_.weights.output - unit);
    for (index q = 0; q < rows; q++) {
      const T* scale = layer_.operand_scale + layer_.timeline.batch_row(first + q) * layer_.weights.output + unit;
      for (index k = 0; k < count; k++) dh[q * stride + k] *= scale[k];
    }
  }

  // States [first, last) of some units that were reset before the step after got nothing from it.
  void forget_reset(const Now& now, index i, index rows, Range vectors, int first, int last) const {
    if (!layer_.timeline.has_resets()) return;
    for (index q = i; q < std::min(i + rows, now.running); q++)
      if (is_fresh(now.s + 1, now.first + q))
        for (int k = first; k < last; k++)
          std::fill(dstate_at(k, now.first + q) + vectors.begin * N, dstate_at(k, now.first + q) + vectors.end * N,
                    T(0));
  }

  // `rows` rows from place i on.
  void run_block(Worker& worker, const BackwardStage<T, E>& stage, Range vectors, index i, index rows, const T* dh,
                 index stride) {
    BackwardBlock<T> block{};
    block.rows = rows, block.vectors = vectors.end - vectors.begin;
    block.unit = vectors.begin * N, block.hidden = stage.what.units;
    block.dh = dh, block.dh_stride = stride;
    if (stage.what.last) {
      block.direct = worker.dstate[0].get() + i;
      if (adjoints_.dy) block.dy = worker.dy.get() + i;
      block.clip = adjoints_.clip;
    }
    StepRows<T>& p = worker.rows;
    for (int k = 0; k < layer_.cell.states; k++) {
      block.before[k] = p.before(k) + i, block.after[k] = p.after(k) + i;
      if (adjoints_.over_time[k] && (k > 0 || stage.what.last)) block.whole[k] = worker.whole[k].get() + i;
    }
    if (stage.what.output != none)
      block.after[0] = block.before[0] = p.output(stage.what.output, layer_.layout.hidden, i + rows) + i;
    for (int k = 0; k < layer_.cell.states + layer_.cell.carried; k++)
      block.dstate[k] = worker.dstate[static_cast<std::size_t>(k)].get() + i;
    if (stage.what.output != none) block.dstate[0] = worker.doutput.get() + i;
    if (layer_.saved) block.saved = p.values() + i;
    block.dz = stage.dz(0, worker.first + i), block.dz_rows = chunk_.capacity();
    block.unit_weights = layer_.weights.of_units.data() + stage.what.unit_weight;
    block.zoned = stage.what.zoned, block.next = p.next();
    if (stage.what.output != none) block.next.states[0] = block.next.saved;
    stage.what.phase->backward(block);
  }

  // dx of the thread's own rows of the batch, whose dz it has just made; where units are split, of a share of the
  // chunk.
  void input_gradient(Worker& worker, Range own, Range part, Signals& signals) {
    const index stride = stages_.front().to_input.columns() * N;
    T* z = worker.dx.get();
    const index first = plan_.by_rows ? chunk_.first_of(own.begin) : part.begin;
    index count = 0;
    const auto take = [&](index s, index r) {
      worker.dx_rows[count++] = adjoints_.dx.at(layer_.timeline.time(s, r), layer_.timeline.batch_row(r));
    };
    plan_.by_rows ? chunk_.for_each_row_of(own, take) : chunk_.for_each_row(part, take);
    for (index i = 0; i < count && !signals.stopped();) {
      const index n = even_part(count - i, dx_rows());
      for (index p = 0; p < static_cast<index>(stages_.size()); p++)
        stages_[p].add_input_gradient(first + i, n, p > 0, z, stride, signals);
      for (index r = 0; r < n; r++) write_dx(z + r * stride, worker.dx_rows[i + r]);
      i += n;
    }
  }

  void write_dx(const T* from, T* to) const {
    if (adjoints_.accumulate_dx && !own_dx_.size()) return add_numbers(from, to);
    for (index f = 0; f < layer_.weights.input; f += N)  // a row is short, so that no call of a library pays
      Vec<T>::load(from + f).store_first(to + f, static_cast<int>(std::min(layer_.weights.input - f, N)));
  }

  // Rows of dx that are made together: as many as stay in the level-2 cache, but enough to fill tiles.
  index dx_rows() const {
    constexpr index least = 12, most = 96, bytes = 128 * 1024;
    const index columns = std::max<index>(stages_.front().to_input.columns(), 1);
    return std::clamp(bytes / (columns * N * static_cast<index>(sizeof(T))), least, most);
  }

  template <class Meet> void exchange(int thread, int count, Meet meet) const {
    if (layer_.timeline.steps() == 0) return;  // no sum has begun
    for (const BackwardStage<T, E>& stage : stages_) stage.exchange(adjoints_.gradients, layer_, thread, count, meet);
  }

  // The gradient of the initial state, and zeros of dx past the lengths.
  void initial_gradient(Worker& worker, Range rows, Signals& signals) {
    const Timeline& timeline = layer_.timeline;
    const double row_work =
        work_of_memory * static_cast<double>(layer_.cell.states * layer_.hidden() + adjoints_.dx.width);
    for (index r = rows.begin; r < rows.end && !signals.stop(row_work); r++) {
      const index b = timeline.batch_row(r);
      const bool given = starts_as_given(r);
      for (int k = 0; k < layer_.cell.states; k++) {
        T* to = adjoints_.dinitial[k] + b * layer_.width(k);
        given ? std::copy_n(dstate_at(k, r), layer_.width(k), to) : std::fill_n(to, layer_.width(k), T(0));
      }
      if (adjoints_.dx && !adjoints_.accumulate_dx)
        for (index t = timeline.length(r); t < adjoints_.dx.steps; t++)
          std::fill_n(adjoints_.dx.at(t, b), adjoints_.dx.width, T(0));
    }
    // Rows sorted by length: those that ran come first.
    const PackedColumns<E>& to_operand = reads_h().to_operand;
    const index last = std::min(rows.end, timeline.live(0)), stride = to_operand.columns() * N;
    T* dh = worker.dh.get();
    for (index first = rows.begin; first < last && !signals.stopped();) {
      const index n = even_part(last - first, rows_in_cache);
      for (index i = 0; i < n; i++) worker.dz[i] = reads_h().product_row(chunk_.of_step_after(first + i));
      to_operand.multiply_into(worker.dz.get(), n, reads_h().product_jump(), to_operand.all_blocks(), false, dh, stride,
                               signals);
      if (layer_.operand_scale) scale_dh(first, n, to_operand, to_operand.all_blocks(), dh, stride);
      for (index i = 0; i < n; i++) {
        if (!starts_as_given(first + i)) continue;
        T* to = adjoints_.dinitial[0] + timeline.batch_row(first + i) * layer_.width(0);
        for (index k = 0; k < layer_.width(0); k++) to[k] = dh[i * stride + k] + dstate_at(0, first + i)[k];
      }
      first += n;
    }
  }

  // Whether a row's first step starts from the initial state that was given, or the row has no step at all.
  bool starts_as_given(index r) const {
    return r >= layer_.timeline.live(0) || layer_.timeline.origin(0, r) == Origin::given;
  }

  Layer<T> layer_;
  Adjoints<T> adjoints_;
  std::shared_ptr<Kept> kept_;
  Plan plan_;
  KeptFor kept_for_;
  std::shared_ptr<Packed> packed_;
  std::shared_ptr<Sums> sums_;
  bool is_packed_ = false;                      // all weights of all stages
  bool has_sums_ = false, keeps_sums_ = false;  // those that go on: from the call before, for the next one
  index batch_, rows_a_chunk_;
  ChunkRows chunk_;
  bool scans_;  // several steps are one
  std::vector<BackwardStage<T, E>> stages_;
  std::array<Buffer<T>, most_states + most_carried> dstate_;
  Buffer<T> own_dx_;            // of the second direction, while the first one writes the caller's
  Sequence<T> sum_of_dx_;       // and that
  Buffer<T> doutput_;           // where a cell that is projected leaves what it says of h
  index step_, begin_ = step_;  // of the chunk: steps at or after step_ are done
  std::vector<Worker> workers_;
  Barrier barrier_;
};

}  // namespace rnnfast
