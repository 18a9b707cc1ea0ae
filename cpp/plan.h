// How one call is laid out over threads and caches. A plan changes the time a call takes and no bit of its result.
#pragma once

#include <numeric>

#include "layer.h"
#include "threads.h"
#include "tile.h"
#include "together.h"

namespace rnnfast {

struct Plan {
  int threads = 1;
  bool by_rows = true;    // each thread has rows of the batch of its own, or units of its own
  bool waits = false;     // one barrier a step: a thread's units read those of others
  index rows = 0;         // of the batch that meet a panel of weights together
  index width = 0;        // of a panel of recurrent weights, in vectors
  index steps_ahead = 1;  // steps whose input product is made at once; 1: beside the recurrent one, step by step
  bool scans = false;     // no step waits for what all units made of the one before: those steps are one of more rows

  // Parts of a group of units that threads are to share out alike, of so many groups.
  int parts_of_units(index groups) const { return by_rows ? 1 : threads / std::gcd(threads, static_cast<int>(groups)); }

  // Vectors of units in a block of `wanted` or somewhat more: all its panels equally wide, and wide enough that a tile
  // computes more than it loads.
  template <class E> index unit_vectors(const PackedRows<E>& weights, index wanted, index vectors) const {
    const index most = by_rows ? vectors : ceil_div(vectors, threads);
    const auto good = [&](index n) {
      bool all = true;
      weights.for_each_section([&](index count) {
        const index panels = ceil_div(n * count, width);
        all = all && n * count % panels == 0 && n * count / panels >= std::min<index>(width, 3);
      });
      return all;
    };
    index n = std::max<index>(wanted, 1);
    while (n < most && !good(n)) n++;
    return std::clamp<index>(n, 1, most);
  }
};

// Rows of the batch a thread should have to itself before splitting by rows pays.
constexpr index rows_worth_splitting = 4;
// Weights that stay in a level-2 cache from step to step. Larger ones pass through it at every step: with rows split,
// all of them through each thread's, which so many rows make worth their way; with units split, each thread's own
// share. Backward has other work beside such products, dx and dW, and takes fewer rows (measured with two threads at
// 20 × (650, 650), 10 rows each: forward 0.98 of the speed, and 0.81 where the cores share no cache; backward 1.04).
constexpr index weights_in_cache = 768 * 1024, rows_worth_streaming = 12, rows_worth_streaming_back = 8;
// Multiply-adds of a call below which opening a region costs more than a second thread brings, or may: where two cores
// have no cache in common, all that one reads of the other's comes late.
constexpr double work_worth_a_region = 2e6;
// Recurrent multiply-adds a step below which a barrier costs more than a second thread brings.
constexpr double work_worth_a_barrier = 1e5;
// Bytes of pre-activations that are kept for a chunk of steps: about half a level-2 cache. Weights so large that no
// cache has them come from memory at every step: then those of x do so once for some steps (measured at 20 × (1500,
// 1500) with one thread: 7 % of the forward time).
constexpr index bytes_ahead = 256 * 1024, bytes_ahead_of_memory = 5 << 20;
constexpr double weights_in_memory = 32 << 20;
// Rows whose products are made together, and bytes of pre-activations that are kept between product and cell: a part
// of the level-2 cache. More units a block mean whole cache lines written and fewer changes between weights.
constexpr index rows_in_cache = 48, bytes_in_cache = 128 * 1024;
// Rows of several steps that are taken together, where steps have few: what a scan makes of them stays in a level-1
// cache.
constexpr index rows_together = 24;

// Fewer steps than these are no stride for each layer of a stack to be behind the one below.
constexpr index least_steps_of_layers = 16;

inline int threads_for(double work, int threads) { return work < work_worth_a_region ? 1 : threads; }

// What a call multiplies, in multiply-adds, and the weights that it does so with.
struct Work {
  double step = 0, input = 0, all = 0;  // by h and by x at one step, by both at all steps
  double weight_bytes = 0;

  bool exceeds_cache() const { return weight_bytes > static_cast<double>(weights_in_cache); }
};

template <class T> Work work_of(const Layer<T>& layer) {
  const double batch = static_cast<double>(layer.timeline.batch()), hidden = static_cast<double>(layer.hidden());
  const double input = static_cast<double>(layer.weights.input), output = static_cast<double>(layer.weights.output);
  const double row = static_cast<double>(layer.accumulators()) * hidden;
  Work work;
  work.step = layer.recurrent() ? batch * row * hidden : 0;
  work.input = batch * row * input;
  work.all = static_cast<double>(layer.timeline.steps()) * (work.step + work.input);
  work.weight_bytes = row * (input + output) * sizeof(T);
  return work;
}

enum class Pass { forward, backward };

template <class T>
Plan make_plan(const Layer<T>& layer, int threads, Beside beside = Beside::nothing, Pass pass = Pass::forward) {
  constexpr index N = Vec<T>::lanes;
  const index batch = layer.timeline.batch(), vectors = layer.vectors(), accumulators = layer.accumulators();
  const Work work = work_of(layer);
  Plan plan;
  plan.threads = threads_for(work.all, threads);
  const index rows = batch / plan.threads;
  const bool streams = work.exceeds_cache() && layer.recurrent();
  const bool from_memory = streams && work.weight_bytes > weights_in_memory;
  const index worth_streaming =
      pass == Pass::backward && !from_memory ? rows_worth_streaming_back : rows_worth_streaming;
  plan.by_rows = plan.threads == 1 || rows >= (streams ? worth_streaming : rows_worth_splitting) || layer.weights.norms;
  if (layer.weights.norms)  // statistics are of whole rows
    plan.threads = static_cast<int>(std::clamp<index>(batch, 1, plan.threads));
  if (!plan.by_rows) {
    plan.waits = layer.waits();
    plan.threads =
        plan.waits && work.step < work_worth_a_barrier ? 1 : std::min(plan.threads, static_cast<int>(vectors));
  }
  plan.rows = plan.by_rows ? batch / plan.threads : batch;
  plan.scans = layer.scans();
  if (plan.scans)
    plan.steps_ahead =
        std::clamp<index>(rows_together / std::max<index>(plan.rows, 1), 1, std::max<index>(layer.timeline.steps(), 1));
  plan.width = panel_width(plan.scans ? plan.rows * plan.steps_ahead : plan.rows);
  if (!plan.scans && (plan.rows < rows_worth_splitting || from_memory)) {
    const index step_bytes = std::max<index>(plan.rows, 1) * accumulators * vectors * N * static_cast<index>(sizeof(T));
    plan.steps_ahead = std::clamp<index>((from_memory ? bytes_ahead_of_memory : bytes_ahead) / step_bytes, 1, 128);
  }
  if (beside == Beside::layers) {
    // Who tells how far the layer is must not be ahead of the layer's other threads.
    if (plan.threads > 1 && !plan.waits) return make_plan(layer, 1, beside, pass);
    plan.steps_ahead = std::min(plan.steps_ahead, steps_a_stride(layer.timeline.steps()));
  }
  return plan;
}

// Whether `count` directions or layers like this one are better run side by side, each by a part of the threads, than
// one after the other by all of them: where one alone would occupy one thread, or its threads would wait for each other
// at every step, over weights that a single core's cache has too; and where no fewer threads have work all the time.
template <class T> bool side_by_side(const Layer<T>& layer, Beside beside, int count, int threads) {
  if (threads < 2 || count < 2 || threads_for(count * work_of(layer).all, threads) == 1) return false;
  if (beside == Beside::layers && layer.timeline.steps() < least_steps_of_layers) return false;
  const Plan alone = make_plan(layer, threads), own = make_plan(layer, team_of(threads, count), beside);
  if (alone.threads > 1 && (!alone.waits || work_of(layer).exceeds_cache())) return false;
  const index rounds = ceil_div(count, threads);  // more than one where there are more drivers than threads
  return rounds * alone.threads <= index{count} * own.threads;
}

}  // namespace rnnfast
