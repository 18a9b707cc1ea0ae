// A stack of layers that takes one step at a time: weights packed when it is made, states of its own.
#pragma once

#include <memory>
#include <vector>

#include "packed_layer.h"

#if defined(__unix__)
#include <unistd.h>
#endif

namespace rnnfast {

template <class T> class Stream {
 public:
  // Weights are copied; `layers` each reads the one before.
  Stream(const CellKernels<T>& cell, const std::vector<Weights<T>>& layers, index batch, int threads)
      : batch_(batch), input_(layers.front().input), hidden_(layers.front().hidden), x_(batch),
        pointers_(batch, cell.states) {
    const index vectors = (hidden_ + N - 1) / N;
    double work = 0;
    for (const Weights<T>& weights : layers)
      work = std::max(work, 1.0 * batch * cell.gates * hidden_ * (weights.input + hidden_));
    large_ = work >= work_worth_a_region;
    threads_ = std::min(threads_for(work, threads), static_cast<int>(vectors));
    Plan plan;
    plan.threads = threads_, plan.by_rows = threads_ == 1, plan.rows = batch;
    plan.width = panel_width(batch);
    plan.most_units = std::max<index>(ceil_div(vectors, threads_), 1);
    index z_size = 0;
    for (Weights<T> weights : layers) {
      // What the cell reads at every step is kept here; the rest is packed.
      for (std::size_t k = 0; k < cell.unit_weights.size(); k++) {
        const Buffer<T>& kept = unit_weights_.emplace_back(Buffer<T>({hidden_}));
        std::copy_n(weights.of_units[k], hidden_, kept.get());
        weights.of_units[k] = kept.get();
      }
      PackedLayer<T>& packed = *layers_.emplace_back(std::make_unique<PackedLayer<T>>(cell, weights, plan, batch));
      for (index j = 0; j < packed.blocks(); j++) packed.pack(j);
      z_size = std::max(z_size, packed.accumulators() * packed.most_vectors() * N);
    }
    rows_ = std::min(batch, rows_in_cache);
    for (int k = 0; k < threads_; k++) z_.emplace_back(Buffer<T>({rows_, z_size}));
    for (Buffer<T>& states : states_)
      states = Buffer<T>({static_cast<index>(layers.size()), cell.states, batch, hidden_}), states.fill(T(0));
  }

  // Whether a step takes long enough for others to run meanwhile.
  bool large() const { return large_; }
  index batch() const { return batch_; }
  index input() const { return input_; }
  index hidden() const { return hidden_; }
  index layers() const { return static_cast<index>(layers_.size()); }
  int states() const { return layers_.front()->cell().states; }

  // State k (B, H) of a layer as it is now.
  T* state(index layer, int k) { return at(now_, layer, k); }

  // One step of all layers; y (B, H) is the output of the last one.
  void step(const T* x, T* y) {
    for (index l = 0; l < layers(); l++) {
      const T* from = l ? at(1 - now_, l - 1, 0) : x;
      const index width = l ? hidden_ : input_;
      for (index r = 0; r < batch_; r++) {
        x_[r] = from + r * width;
        for (int k = 0; k < states(); k++)
          pointers_.set(r, k, at(now_, l, k) + r * hidden_, at(1 - now_, l, k) + r * hidden_);
      }
      const PackedLayer<T>& packed = *layers_[static_cast<std::size_t>(l)];
      parallel(owned_here() ? threads_ : 1, [&](int thread, int count) {
        const auto [first, last] = share(packed.blocks(), thread, count);
        T* z = z_[static_cast<std::size_t>(thread)].get();
        for (index j = first; j < last; j++)
          for (index r = 0; r < batch_;) {
            const index rows = even_part(batch_ - r, rows_);
            packed.start(j, x_.data() + r, rows, z);
            packed.end(j, pointers_, r, rows, false, z);
            r += rows;
          }
      });
    }
    now_ = 1 - now_;
    std::copy_n(state(layers() - 1, 0), batch_ * hidden_, y);
  }

 private:
  static constexpr index N = Vec<T>::lanes;
  T* at(int which, index layer, int k) { return states_[which].get() + (layer * states() + k) * batch_ * hidden_; }

  // A forked child has none of its parent's threads: it goes on with one.
  bool owned_here() const {
#if defined(__unix__)
    return threads_ == 1 || getpid() == owner_;
#else
    return true;
#endif
  }

  index batch_, input_, hidden_, rows_ = 0;
  bool large_ = false;
  int threads_ = 1, now_ = 0;
#if defined(__unix__)
  pid_t owner_ = getpid();
#endif
  std::vector<std::unique_ptr<PackedLayer<T>>> layers_;
  std::vector<Buffer<T>> unit_weights_;
  std::vector<const T*> x_;
  RowPointers<T> pointers_;
  std::vector<Buffer<T>> z_;
  std::array<Buffer<T>, 2> states_;  // before and after a step, taking turns: [layer][state][row][unit]
};

}  // namespace rnnfast
