// The forward driver: for every step, every row and every block of units
//   z = b + W x + R h  (products)      states, saved = cell(z, states)      (see tile.h, cell.h)
// for all cells, types, lengths, resets and directions.
#pragma once

#include "packed_layer.h"

namespace rnnfast {

template <class T> class Forward {
 public:
  // `final`: (B, H) a state, written at the end.
  Forward(Layer<T>& layer, std::array<T*, most_states> final, int threads)
      : layer_(layer), final_(final), plan_(make_plan(layer, threads)),
        packed_(layer.cell, layer.weights, plan_, plan_.rows),
        pace_(2.0 * layer.timeline.batch() * layer.cell.gates * layer.hidden() *
              (layer.weights.input + layer.hidden())) {
    for (int k = 0; k < plan_.threads; k++) workers_.emplace_back(*this);
    parallel(plan_.threads, [&](int thread, int count) {
      const auto [first, last] = share(packed_.blocks(), thread, count);
      for (index j = first; j < last; j++) packed_.pack(j);
    });
  }

  // Runs some steps; false when all is done.
  bool advance() {
    const index steps = layer_.timeline.steps();
    if (step_ < steps) {
      const index end = std::min(step_ + pace_.steps(), steps);
      pace_.start();
      parallel(plan_.threads, [&](int thread, int count) { run(workers_[thread], step_, end, thread, count); });
      pace_.stop(end - step_);
      step_ = end;
    }
    if (step_ < steps) return true;
    finish();
    return false;
  }

 private:
  static constexpr index N = Vec<T>::lanes;

  struct Worker {
    explicit Worker(const Forward& f)
        : rows(f.plan_.by_rows ? f.layer_.timeline.batch() : std::max<index>(f.plan_.rows, 1)),
          pointers(rows, f.layer_.cell.states), x(static_cast<std::size_t>(rows * f.plan_.steps_ahead)),
          z({f.z_rows(rows), f.packed_.accumulators(),
             f.plan_.steps_ahead > 1 ? f.layer_.vectors() : f.packed_.most_vectors(), N}) {}
    index rows;
    RowPointers<T> pointers;
    std::vector<const T*> x;
    Buffer<T> z;
  };

  index z_rows(index rows) const {
    return plan_.steps_ahead > 1 ? rows * plan_.steps_ahead : std::min(rows, rows_in_cache);
  }
  void run(Worker& worker, index begin, index end, int thread, int count) {
    const Timeline& timeline = layer_.timeline;
    const auto [first_row, last_row] = plan_.by_rows ? timeline.share_rows(thread, count) : Range{0, timeline.batch()};
    const auto [first_block, last_block] =
        plan_.by_rows ? Range{0, packed_.blocks()} : share(packed_.blocks(), thread, count);
    for (index s = begin; s < end;) {
      const index stop = std::min(s + plan_.steps_ahead, end);
      index row = 0;  // in the chunk
      if (plan_.steps_ahead > 1) input_ahead(worker, s, stop, first_row, last_row, first_block, last_block);
      for (; s < stop; s++) {
        const index last = std::min(last_row, timeline.live(s));
        if (first_row < last) step(worker, s, first_row, last, first_block, last_block, row);
        row += std::max<index>(last - first_row, 0);
        if (plan_.waits) barrier_.wait(count);
      }
    }
  }

  // b + W x for all rows of a chunk of steps, before its recurrence.
  void input_ahead(Worker& worker, index s, index stop, index first, index last_row, index first_block,
                   index last_block) {
    index rows = 0;
    for (; s < stop; s++)
      for (index r = first; r < std::min(last_row, layer_.timeline.live(s)); r++) worker.x[rows++] = input_row(s, r);
    for (index j = first_block; j < last_block; j++) packed_.start(j, worker.x.data(), rows, z_ahead(worker, j));
  }

  void step(Worker& worker, index s, index first, index last, index first_block, index last_block, index row) {
    worker.pointers.set(layer_, s, first, last);
    if (plan_.steps_ahead > 1) {
      for (index j = first_block; j < last_block; j++)
        end(worker, j, 0, last - first, z_ahead(worker, j) + row * packed_.z_stride(j));
      return;
    }
    for (index r = first; r < last; r++) worker.x[r - first] = input_row(s, r);
    for (index j = first_block; j < last_block; j++) {
      for (index r = 0; r < last - first;) {
        const index rows = even_part(last - first - r, rows_in_cache);
        packed_.start(j, worker.x.data() + r, rows, worker.z.get());
        end(worker, j, r, rows, worker.z.get());
        r += rows;
      }
    }
  }

  void end(const Worker& worker, index j, index first, index rows, T* z) const {
    packed_.end(j, worker.pointers, first, rows, static_cast<bool>(layer_.saved), z);
  }

  const T* input_row(index s, index r) const {
    return layer_.x.at(layer_.timeline.time(s, r), layer_.timeline.batch_row(r));
  }
  T* z_ahead(const Worker& worker, index j) const {
    return worker.z.get() + packed_.vector_of(j) * packed_.accumulators() * N * worker.rows * plan_.steps_ahead;
  }

  // Final states, and zeros past the lengths.
  void finish() {
    parallel(plan_.threads, [&](int thread, int count) {
      const Timeline& timeline = layer_.timeline;
      const auto [first, last] = share(timeline.batch(), thread, count);
      for (index r = first; r < last; r++) {
        const index b = timeline.batch_row(r), length = timeline.length(r), hidden = layer_.hidden();
        for (int k = 0; k < layer_.cell.states; k++) {
          T* to = final_[k] + b * hidden;
          const T* initial = layer_.initial[k] ? layer_.initial[k] + b * hidden : layer_.zeros.get();
          const T* from = length ? layer_.after(k, length - 1, r) : initial;
          if (from != to) std::copy_n(from, hidden, to);
          if (k == 0 || layer_.keeps_states) clear_past(layer_.states[k], b, length);
        }
        if (layer_.saved) clear_past(layer_.saved, b, length);
      }
    });
  }

  static void clear_past(const Sequence<T>& a, index b, index length) {
    for (index t = length; t < a.steps; t++) std::fill_n(a.at(t, b), a.width, T(0));
  }

  Layer<T>& layer_;
  std::array<T*, most_states> final_;
  Plan plan_;
  PackedLayer<T> packed_;
  Pace pace_;
  std::vector<Worker> workers_;
  Barrier barrier_;
  index step_ = 0;
};

}  // namespace rnnfast
