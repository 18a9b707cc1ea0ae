// The forward driver: for every step, every row and every block of units
//   z = b + W x + R h  (products)      states, saved = cell(z, states)      (see tile.h, cell.h)
// for all cells, types, lengths, resets and directions. T is the type of the caller's arrays, E of what products take.
#pragma once

#include "kept.h"
#include "packed_layer.h"
#include "together.h"

namespace rnnfast {

template <class T, class E> class Forward : public Driver {
 public:
  // `final`: (B, ·) a state, written at the end; `kept`: where packed weights come from and go to, or null.
  Forward(Layer<T> layer_of_call, std::array<T*, most_states> final, std::shared_ptr<Kept> kept, int threads,
          Beside beside = Beside::nothing, const Driver* before = nullptr)
      : Driver(beside, before), layer_(std::move(layer_of_call)), final_(final), kept_(std::move(kept)),
        plan_(make_plan(layer_, threads, beside)), kept_for_(kept_for(layer_, plan_)),
        rows_(std::max(plan_.by_rows ? layer_.timeline.batch() : std::max<index>(plan_.rows, 1),
                       plan_.scans && plan_.steps_ahead > 1 ? rows_together : 0)) {
    Layer<T>& layer = layer_;
    if (kept_) packed_ = kept_->forward_weights.take<PackedLayer<T, E>>(kept_for_);
    is_packed_ = packed_ != nullptr;
    if (!packed_) packed_ = std::make_shared<PackedLayer<T, E>>(layer, plan_, plan_.rows);
    if (!layer.saved && layer.needs_values())
      values_ =
          Buffer<T>({plan_.by_rows ? first_values(layer.timeline.batch(), plan_.threads) : rows_, layer.layout.size()});
    for (int k = 1; k < layer.cell.states && !layer.keeps_states; k++) {
      const index stride =
          ceil_div(layer.hidden() * index{sizeof(T)}, index{cache_line}) * index{cache_line / sizeof(T)};
      carried_[k] = Buffer<T>({layer.timeline.batch(), stride});
      layer.states[k] = {carried_[k].get(), layer.timeline.steps(), layer.timeline.batch(), layer.hidden(), 0, stride};
    }
    for (int k = 0; k < plan_.threads; k++) make_worker();
  }

  ~Forward() override {
    if (kept_ && is_packed_) kept_->forward_weights.give(kept_for_, packed_);
  }

  int threads() const override { return plan_.threads; }

  void work(Signals& signals, int thread, int count) override {
    const Crew crew{signals, thread, count, !plan_.by_rows, plan_.waits ? &barrier_ : nullptr};
    if (!is_packed_) {
      packed_->pack(crew);
      barrier_.wait(count, [&] { is_packed_ = !signals.stopped(); });
    }
    run_steps(workers_[static_cast<std::size_t>(thread)], crew);
    barrier_.wait(count);
    tell(Progress::all, thread);
    finish(share(layer_.timeline.batch(), thread, count), signals);
  }

 private:
  static constexpr index N = Vec<T>::lanes;

  struct Worker {
    Desk<T, E> desk;
    Buffer<const T*> x;            // of a chunk of steps
    OperandRows<T, E> x_elements;  // of the same
    std::vector<Buffer<T>> ahead;  // of each stage: z of a chunk of steps
  };

  // Where rows are split: the first row of values of a thread that begins at row `first`. Steps that are taken together
  // have up to rows_together of them.
  index first_values(index first, int thread) const { return first + (plan_.scans ? thread * rows_together : 0); }
  bool is_ahead() const { return plan_.steps_ahead > 1 && !plan_.scans; }
  index chunk_rows() const { return rows_ * plan_.steps_ahead; }

  void make_worker() {
    Worker worker{packed_->make_desk(rows_, is_ahead() ? 0 : rows_, layer_.operand_scale != nullptr), {}, {}, {}};
    if (is_ahead()) {
      worker.x = Buffer<const T*>({chunk_rows()});
      worker.x_elements = OperandRows<T, E>(chunk_rows(), layer_.weights.input);
      for (index k = 0; k < packed_->stages(); k++)
        worker.ahead.emplace_back(Buffer<T>({chunk_rows(), (*packed_)[k].ahead_size()}));
    }
    workers_.push_back(std::move(worker));
  }

  void run_steps(Worker& worker, const Crew& crew) {
    const Timeline& timeline = layer_.timeline;
    const auto [first, last_row] =
        plan_.by_rows ? timeline.share_rows(crew.thread, crew.count, 0, timeline.steps()) : Range{0, timeline.batch()};
    const index end = timeline.steps();
    if (values_.size()) {
      const index begin = plan_.by_rows ? first_values(first, crew.thread) : 0, size = layer_.layout.size();
      const index most = std::max(last_row - first, plan_.scans ? std::min(rows_, rows_together) : 0);
      worker.desk.rows.use_values(values_.get() + begin * size, size, most);
    }
    Range pointed{0, 0};
    const index stride = steps_a_stride(end);
    for (index s = 0, told = 0; s < end;) {
      const index stop = std::min(s + plan_.steps_ahead, end);
      index row = 0;  // in the chunk
      if (in_layers()) wait_for(std::min(ceil_div(stop, stride) * stride, end));
      if (is_ahead()) input_ahead(worker, s, stop, first, last_row, crew);
      while (s < stop) {
        if (crew.stopped()) return;
        // The steps of a scan come one after the other as rows, and each finds the states that the one before has left.
        index rows = 0, begin = s;
        do {
          pointed = point(worker, s, {first, std::max(first, std::min(last_row, timeline.live(s)))}, pointed, rows);
          if (packed_->has_shares()) draw_shares(worker, s, first, pointed, crew);
          rows = pointed.end, s++;
        } while (plan_.scans && s < stop && rows + std::min(last_row, timeline.live(s)) - first <= rows_together);
        worker.desk.rows.expect(layer_, 2 * s - begin <= end ? timeline.time_after() * (s - begin) : 0);
        packed_->step(worker.desk, rows, crew, static_cast<bool>(layer_.saved),
                      [&](index k, index j) -> T* { return is_ahead() ? z_ahead(worker, k, j, row) : nullptr; });
        row += rows;
      }
      if (s - told >= stride) tell(told = s, crew.thread);
    }
  }

  // Points at `rows` of step s, from place `at` on, and gives their places. `before`: those of the step before.
  Range point(Worker& worker, index s, Range rows, Range before, index at) {
    const index count = rows.end - rows.begin;
    if (worker.desk.scale.size())
      for (index i = 0; i < count; i++)
        worker.desk.scale[at + i] =
            layer_.operand_scale + layer_.timeline.batch_row(rows.begin + i) * layer_.weights.output;
    if (count && before.end - before.begin >= count && !layer_.timeline.has_resets() && !layer_.known) {
      worker.desk.rows.advance(layer_, count, before.begin, at);
    } else {
      worker.desk.rows.set(layer_, s, rows.begin, rows.end, at);
    }
    return {at, at + count};
  }

  // b + W x for all rows of a chunk of steps, before its recurrence.
  void input_ahead(Worker& worker, index s, index stop, index first, index last_row, const Crew& crew) {
    index rows = 0;
    for (; s < stop; s++)
      for (index r = first; r < std::min(last_row, layer_.timeline.live(s)); r++)
        worker.x[rows++] = layer_.input_at(s, r);
    const E* const* x = worker.x_elements.of(worker.x.get(), rows, layer_.weights.input);
    for (index k = 0; k < packed_->stages(); k++) {
      const Range blocks = crew.blocks((*packed_)[k].blocks());
      for (index j = blocks.begin; j < blocks.end && !crew.signals.stop((*packed_)[k].work(j, rows)); j++)
        (*packed_)[k].start(j, x, rows, z_ahead(worker, k, j, 0));
    }
  }
  T* z_ahead(const Worker& worker, index k, index j, index row) const {
    return worker.ahead[static_cast<std::size_t>(k)].get() + (*packed_)[k].made_at(j, chunk_rows()) +
           row * (*packed_)[k].made_stride(j);
  }

  void draw_shares(Worker& worker, index s, index first, Range places, const Crew& crew) const {
    const Timeline& timeline = layer_.timeline;
    for (index r = first, i = places.begin; i < places.end; r++, i++)
      packed_->draw_shares(timeline.begin() + timeline.time(s, r), timeline.batch_row(r), crew,
                           worker.desk.rows.values()[i]);
  }

  // Final states, and zeros of y past the lengths; what is kept for backward is read by nobody there.
  void finish(Range rows, Signals& signals) {
    const Timeline& timeline = layer_.timeline;
    const double row_work = work_of_memory * static_cast<double>(layer_.cell.states * layer_.hidden());
    for (index r = rows.begin; r < rows.end && !signals.stop(row_work); r++) {
      const index b = timeline.batch_row(r), length = timeline.length(r);
      for (int k = 0; k < layer_.cell.states; k++) {
        const index width = layer_.width(k);
        T* to = final_[k] + b * width;
        const T* initial = layer_.initial[k] ? layer_.initial[k] + b * width : layer_.fresh[k].get();
        const T* from = length ? layer_.after(k, length - 1, r) : initial;
        std::copy_n(from, width, to);
      }
      clear_past(layer_.states[0], b, length);
    }
  }

  static void clear_past(const Sequence<T>& a, index b, index length) {
    for (index t = length; t < a.steps; t++) std::fill_n(a.at(t, b), a.width, T(0));
  }

  Layer<T> layer_;
  std::array<T*, most_states> final_;
  std::shared_ptr<Kept> kept_;
  Plan plan_;
  KeptFor kept_for_;
  std::shared_ptr<PackedLayer<T, E>> packed_;
  bool is_packed_ = false;  // all of it
  index rows_;
  std::vector<Worker> workers_;
  Buffer<T> values_;                            // of steps that keep none for backward
  std::array<Buffer<T>, most_states> carried_;  // states that are not kept over time: the last value
  Barrier barrier_;
};

}  // namespace rnnfast
