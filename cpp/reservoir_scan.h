// An echo state network through time: the states of its reservoir for inputs that are given, or, with a readout, in a
// loop whose outputs go back into it.
//
// Rows of the batch are cut into blocks, which run through time by themselves, or, where there are fewer blocks than
// threads, in step, each thread with units of its own.
#pragma once

#include <array>
#include <vector>

#include "plan.h"
#include "reservoir.h"
#include "timeline.h"
#include "views.h"

namespace rnnfast {

// y = b + W [h; u], with one chain of multiply-adds an output as the linear layer has it.
template <class T> struct Readout {
  index outputs = 0, features = 0;             // features: H, or H + I
  const T *weight = nullptr, *bias = nullptr;  // (O, features), (O,)
};

// What a call brings. Without x the output of the step before is the input; without a teacher it is also what the
// feedback weights see, and a readout computes it.
template <class T> struct ReservoirCall {
  Sequence<const T> x, teacher;  // (T, B, I), (T, B, O)
  Readout<T> readout;
  const T *initial = nullptr, *initial_output = nullptr;  // (B, H), (B, O), or null: zeros
  Sequence<T> states, y;                                  // (T, B, H), (T, B, O), or null
  T *final = nullptr, *final_output = nullptr;            // (B, H), (B, O) or null
  bool closed() const { return readout.outputs > 0; }
};

template <class T> class ReservoirScan {
 public:
  ReservoirScan(const Reservoir<T>& reservoir, const ReservoirCall<T>& call, const Timeline& timeline, bool resets,
                int threads)
      : reservoir_(reservoir), call_(call), timeline_(timeline), resets_(resets) {
    make_blocks(threads);
    outputs_ = call.closed() ? call.readout.outputs : reservoir.outputs();
    zeros_ = Buffer<T>({std::max(outputs_, index{1})}), zeros_.fill(T(0));
    output_ = Buffer<T>({timeline.batch(), outputs_});
    if (call.closed()) pack_readout();
    const index scratch = std::max(reservoir.head() * N, Slots<T>::padded(outputs_));
    for (int k = 0; k < threads_; k++) scratch_.emplace_back(Buffer<T>({scratch}));
    for (Block& block : blocks_) {
      for (Buffer<T>& state : block.state)
        state = Buffer<T>({block.by_rows ? reservoir.hidden() * N : Slots<T>::state_size(reservoir.hidden())}),
        state.fill(T(0));
      start(block);
    }
  }

  void run(Signals& signals) {
    parallel(threads_, [&](int thread, int count) {
      by_units_ ? run_in_step(thread, count, signals) : run_blocks(thread, count, signals);
    });
    if (!signals.stopped()) finish();
  }

 private:
  static constexpr index N = Vec<T>::lanes;

  // A row, its units as lanes, or up to N rows as lanes; and the states before and after a step, taking turns:
  // (state_size) or (H, N).
  struct Block {
    index first, rows;
    bool by_rows;
    std::array<Buffer<T>, 2> state;

    T* before(index s) const { return state[static_cast<std::size_t>(s % 2)].get(); }
    T* after(index s) const { return before(s + 1); }
    // Where the state has unit i of row r of the batch.
    index at(index i, index r) const { return by_rows ? i * N + r - first : i; }
  };

  // ---- the plan ----------------------------------------------------------------------------------------------------

  // A step of a vector of rows takes as long as one of some rows with their units as lanes (measured with AVX-512).
  index fewest_rows() const { return reservoir_.slots().in_windows() ? std::max<index>(3 * N / 4, 2) : 2; }

  void make_blocks(int threads) {
    const index batch = timeline_.batch();
    double cost = 0;  // of a step, in vector operations
    for (index r = 0; r < batch;) {
      const bool by_rows = batch - r >= fewest_rows();
      blocks_.push_back({r, by_rows ? std::min(batch - r, N) : 1, by_rows, {}});
      cost += static_cast<double>(by_rows ? reservoir_.terms() : reservoir_.slots().cost());
      r += blocks_.back().rows;
    }
    threads_ = threads_for(cost * static_cast<double>(N * timeline_.steps()), threads);
    by_units_ = static_cast<index>(blocks_.size()) < threads_;
    if (!by_units_) return;
    threads_ = cost < vectors_worth_a_barrier ? 1 : std::min(threads_, static_cast<int>(reservoir_.slots().bundles()));
    by_units_ = threads_ > 1;
  }

  // Below it a barrier, a microsecond, costs more than a second thread brings.
  static constexpr double vectors_worth_a_barrier = 4000;

  // ---- time --------------------------------------------------------------------------------------------------------

  // Multiply-adds of a step of some rows, about: an activation counts as twenty.
  double work(const Block& block, index bundles) const {
    const double units = reservoir_.hidden(), part = static_cast<double>(bundles) / reservoir_.slots().bundles();
    return static_cast<double>(block.rows) * part *
           (static_cast<double>(reservoir_.terms()) +
            units * static_cast<double>(reservoir_.head() + call_.readout.outputs + 20));
  }

  void run_blocks(int thread, int count, Signals& signals) {
    const index bundles = reservoir_.slots().bundles();
    T* in = scratch_[static_cast<std::size_t>(thread)].get();
    for (std::size_t j = static_cast<std::size_t>(thread); j < blocks_.size(); j += static_cast<std::size_t>(count))
      for (index s = 0; s < timeline_.steps() && live(blocks_[j], s); s++) {
        if (signals.stop(work(blocks_[j], bundles))) return;
        step(blocks_[j], s, {0, bundles}, in);
        if (call_.closed()) read_out(blocks_[j], s, in);
        restart(blocks_[j], s, {0, bundles});
      }
  }

  void run_in_step(int thread, int count, Signals& signals) {
    const index bundles = reservoir_.slots().bundles();
    T* in = scratch_[static_cast<std::size_t>(thread)].get();
    const Range own = share(bundles, thread, count);
    for (index s = 0; s < timeline_.steps(); s++) {
      for (const Block& block : blocks_) {
        if (!live(block, s) || signals.stop(work(block, own.end - own.begin))) continue;
        step(block, s, own, in);
        if (!call_.closed()) restart(block, s, own);
      }
      if (barrier_.agree_to_stop(count, signals)) return;
      if (!call_.closed()) continue;
      for (const Block& block : blocks_) {
        if (thread != 0 || !live(block, s)) continue;
        read_out(block, s, in);
        restart(block, s, {0, bundles});
      }
      barrier_.wait(count);
    }
  }

  // Rows of a block that run at step s; they are its first ones.
  index live(const Block& block, index s) const {
    return std::clamp<index>(timeline_.live(s) - block.first, 0, block.rows);
  }

  const T* input(index s, index r) const {
    return call_.x ? call_.x.at(s, timeline_.batch_row(r)) : output_before(s, r);
  }
  const T* output_before(index s, index r) const {
    const index b = timeline_.batch_row(r);
    switch (timeline_.origin(s, r)) {
      case Origin::step_before:
        return call_.teacher ? call_.teacher.at(s - 1, b) : output_.get() + r * outputs_;
      case Origin::given:
        if (call_.initial_output) return call_.initial_output + b * outputs_;
        [[fallthrough]];
      default:
        return zeros_.get();
    }
  }

  // Some bundles of units after step s, also to wherever the caller wants them.
  void step(const Block& block, index s, Range bundles, T* in) const {
    const Range units = units_of(bundles);
    if (block.by_rows) {
      pack_inputs(block, s, in);
      reservoir_.step_of_rows(units.begin, units.end, in, block.before(s), block.after(s));
    } else {
      reservoir_.step_of_row(bundles.begin, bundles.end, input(s, block.first), output_before(s, block.first),
                             block.before(s), block.after(s));
    }
    const index running = live(block, s);
    if (call_.states)
      give(block, s, units, 0, running, [&](index r) { return call_.states.at(s, timeline_.batch_row(r)); });
    const index ending = running - live(block, s + 1);
    if (ending > 0)
      give(block, s, units, running - ending, running,
           [&](index r) { return call_.final + timeline_.batch_row(r) * reservoir_.hidden(); });
  }

  Range units_of(Range bundles) const {
    return {bundles.begin * Slots<T>::bundle, std::min(bundles.end * Slots<T>::bundle, reservoir_.hidden())};
  }

  // (I + O, N), zeros for lanes whose row has ended.
  void pack_inputs(const Block& block, index s, T* in) const {
    const index running = live(block, s), inputs = reservoir_.input();
    for (index l = 0; l < N; l++) {
      const index r = block.first + l;
      const T* u = l < running ? input(s, r) : nullptr;
      const T* y = l < running ? output_before(s, r) : nullptr;
      for (index k = 0; k < inputs; k++) in[k * N + l] = u ? u[k] : T(0);
      for (index k = 0; k < reservoir_.outputs(); k++) in[(inputs + k) * N + l] = y ? y[k] : T(0);
    }
  }

  // Some units of the rows [first, last) of a block to where `place` says a row is.
  template <class Place>
  void give(const Block& block, index s, Range units, index first, index last, Place place) const {
    const T* x = block.after(s);
    if (!block.by_rows) {
      std::copy(x + units.begin, x + units.end, place(block.first) + units.begin);
      return;
    }
    for (index i = units.begin; i < units.end; i += N) {
      const int valid = static_cast<int>(std::min(N, units.end - i));
      Eigen::internal::PacketBlock<typename Vec<T>::Packet, static_cast<int>(N)> tile;
      for (int k = 0; k < N; k++) tile.packet[k] = Vec<T>::load(x + (k < valid ? i + k : i) * N).p;
      if constexpr (N > 1) Eigen::internal::ptranspose(tile);
      for (index r = first; r < last; r++) Vec<T>(tile.packet[r]).store_first(place(block.first + r) + i, valid);
    }
  }

  // Zeros for rows whose state is a new one when the next step begins.
  void restart(const Block& block, index s, Range bundles) const {
    if (!resets_ || s + 1 >= timeline_.steps()) return;
    const Range units = units_of(bundles);
    for (index r = block.first; r < block.first + live(block, s + 1); r++)
      if (timeline_.origin(s + 1, r) == Origin::fresh)
        for (index i = units.begin; i < units.end; i++) block.after(s)[block.at(i, r)] = T(0);
  }

  void start(const Block& block) const {
    for (index r = block.first; r < block.first + block.rows; r++) {
      if (!call_.initial || !timeline_.length(r) || timeline_.origin(0, r) == Origin::fresh) continue;
      const T* from = call_.initial + timeline_.batch_row(r) * reservoir_.hidden();
      for (index i = 0; i < reservoir_.hidden(); i++) block.before(0)[block.at(i, r)] = from[i];
    }
  }

  // ---- the readout in the loop -------------------------------------------------------------------------------------

  // [feature][output] for one row, whose outputs are lanes.
  void pack_readout() {
    const Readout<T>& out = call_.readout;
    const index padded = Slots<T>::padded(out.outputs);
    readout_ = Buffer<T>({out.features, padded}), readout_.fill(T(0));
    for (index o = 0; o < out.outputs; o++)
      for (index k = 0; k < out.features; k++) readout_[k * padded + o] = out.weight[o * out.features + k];
    readout_bias_ = Buffer<T>({padded}), readout_bias_.fill(T(0));
    std::copy_n(out.bias, out.outputs, readout_bias_.get());
  }

  // y of step s, of the rows of a block.
  void read_out(const Block& block, index s, T* in) {
    block.by_rows ? read_out_rows(block, s, in) : read_out_row(block, s, in);
    for (index r = block.first; r < block.first + live(block, s); r++) {
      const index b = timeline_.batch_row(r);
      const T* y = output_.get() + r * outputs_;
      std::copy_n(y, outputs_, call_.y.at(s, b));
      if (call_.final_output && s + 1 == timeline_.length(r))
        std::copy_n(y, outputs_, call_.final_output + b * outputs_);
    }
  }

  // By way of `to`: the input may be the output of the step before.
  void read_out_row(const Block& block, index s, T* to) {
    const index hidden = reservoir_.hidden(), padded = Slots<T>::padded(outputs_);
    const T *x = block.after(s), *u = input(s, block.first);
    for (index o = 0; o < outputs_; o += N) {
      Vec<T> y = Vec<T>::load(readout_bias_.get() + o);
      const T* w = readout_.get() + o;
      for (index k = 0; k < hidden; k++, w += padded) y = fma(Vec<T>::broadcast(x + k), Vec<T>::load(w), y);
      for (index k = hidden; k < call_.readout.features; k++, w += padded)
        y = fma(Vec<T>::broadcast(u + k - hidden), Vec<T>::load(w), y);
      y.store(to + o);
    }
    std::copy_n(to, outputs_, output_.get() + block.first * outputs_);
  }

  void read_out_rows(const Block& block, index s, T* in) {
    pack_inputs(block, s, in);  // other blocks may have used it since
    const index hidden = reservoir_.hidden(), features = call_.readout.features;
    const T* x = block.after(s);
    for (index o = 0; o < outputs_; o++) {
      const T* w = call_.readout.weight + o * features;
      Vec<T> y = Vec<T>::broadcast(call_.readout.bias + o);
      for (index k = 0; k < features; k++)
        y = fma(Vec<T>::broadcast(w + k), Vec<T>::load(k < hidden ? x + k * N : in + (k - hidden) * N), y);
      alignas(64) T lanes[N];
      y.store(lanes);
      for (index l = 0; l < live(block, s); l++) output_[(block.first + l) * outputs_ + o] = lanes[l];
    }
  }

  // ---- the end -----------------------------------------------------------------------------------------------------

  // Final values of rows without a step or with a teacher, and zeros past the lengths.
  void finish() const {
    const index hidden = reservoir_.hidden();
    for (index r = 0; r < timeline_.batch(); r++) {
      const index b = timeline_.batch_row(r), length = timeline_.length(r);
      if (!length) copy_or_clear(call_.initial, b, hidden, call_.final);
      if (call_.final_output && !length) copy_or_clear(call_.initial_output, b, outputs_, call_.final_output);
      if (call_.final_output && length && call_.teacher)
        std::copy_n(call_.teacher.at(length - 1, b), outputs_, call_.final_output + b * outputs_);
      if (call_.states) clear_past(call_.states, b, length);
      if (call_.y) clear_past(call_.y, b, length);
    }
  }

  static void copy_or_clear(const T* from, index b, index size, T* to) {
    if (from)
      std::copy_n(from + b * size, size, to + b * size);
    else
      std::fill_n(to + b * size, size, T(0));
  }
  static void clear_past(const Sequence<T>& a, index b, index length) {
    for (index t = length; t < a.steps; t++) std::fill_n(a.at(t, b), a.width, T(0));
  }

  const Reservoir<T>& reservoir_;
  ReservoirCall<T> call_;
  Timeline timeline_;
  bool resets_, by_units_ = false;
  int threads_ = 1;
  std::vector<Block> blocks_;
  index outputs_ = 0;
  Buffer<T> zeros_, output_, readout_, readout_bias_;  // output_ [row][output]: of the step before
  std::vector<Buffer<T>> scratch_;                     // of each thread: what a block reads, (I + O, N)
  Barrier barrier_;
};

}  // namespace rnnfast
