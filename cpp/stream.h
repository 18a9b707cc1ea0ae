// A stack of layers that takes one step at a time: weights packed when it is made, states of its own.
#pragma once

#include <memory>
#include <vector>

#include "packed_layer.h"

#if defined(__unix__)
#include <unistd.h>
#endif

namespace rnnfast {

// What Python holds: a stream over elements of any type.
template <class T> class AnyStream {
 public:
  virtual ~AnyStream() = default;
  virtual bool large() const = 0;  // whether a step takes long enough for others to run meanwhile
  virtual index batch() const = 0;
  virtual index input() const = 0;
  virtual index output() const = 0;
  virtual index layers() const = 0;
  virtual int states() const = 0;
  virtual index width(int k) const = 0;
  virtual T* state(index layer, int k) = 0;  // (B, width) as it is now
  virtual T initial(int k) const = 0;
  // One step of all layers; y (B, output). One that is told to stop leaves the states as they were.
  virtual void step(const T* x, T* y, Signals& signals) = 0;
};

template <class T, class E> class Stream final : public AnyStream<T> {
 public:
  // Weights are copied; `layers` each reads the one before.
  Stream(const std::vector<const CellKernels<T>*>& cells, const std::vector<Weights<T>>& layers, const Zoneout& zoneout,
         index batch, int threads)
      : batch_(batch) {
    double work = 0;
    for (std::size_t l = 0; l < layers.size(); l++)
      work = std::max(work, 1.0 * batch * cells[l]->gates * layers[l].hidden * (layers[l].input + layers[l].output));
    large_ = work >= work_worth_a_region;
    const bool norms = static_cast<bool>(layers.front().norms);
    const index vectors = ceil_div(layers.front().hidden, Vec<T>::lanes);
    threads_ = norms ? 1 : static_cast<int>(std::min<index>(threads_for(work, threads), vectors));
    Plan plan;
    plan.threads = threads_, plan.by_rows = threads_ == 1, plan.rows = batch;
    plan.width = panel_width(batch);
    for (std::size_t l = 0; l < layers.size(); l++) {
      const CellKernels<T>& cell = *cells[l];
      const Weights<T>& weights = layers[l];
      layers_.emplace_back(std::make_unique<Layer<T>>(
          Layer<T>{cell,
                   keep(weights),
                   Timeline(0, batch, {}, {}, false),
                   {},
                   saved_layout(cell, weights.hidden, weights.projected(), static_cast<bool>(zoneout), norms),
                   zoneout}));
      const Layer<T>& layer = *layers_.back();
      PackedLayer<T, E>& packed = *packed_.emplace_back(std::make_unique<PackedLayer<T, E>>(layer, plan, batch));
      Signals signals(never_stop);
      packed.pack({signals});
      desks_.emplace_back();
      for (int k = 0; k < threads_; k++) desks_.back().push_back(packed.make_desk(batch, batch, false));
    }
    for (const auto& layer : layers_) values_size_ = std::max(values_size_, layer->layout.size());
    if (front().needs_values()) values_ = Buffer<T>({batch, values_size_});
    for (Buffer<T>& states : states_) {
      states = Buffer<T>({this->layers() * state_size()});
      for (index l = 0; l < this->layers(); l++)
        for (int k = 0; k < this->states(); k++)
          std::fill_n(states.get() + offset(l, k), batch_ * width(k), initial(k));
    }
  }

  bool large() const override { return large_; }
  index batch() const override { return batch_; }
  index input() const override { return front().weights.input; }
  index output() const override { return front().weights.output; }
  index layers() const override { return static_cast<index>(layers_.size()); }
  int states() const override { return front().cell.states; }
  index width(int k) const override { return front().width(k); }
  T* state(index layer, int k) override { return at(now_, layer, k); }
  T initial(int k) const override { return front().cell.initial[static_cast<std::size_t>(k)]; }

  void step(const T* x, T* y, Signals& signals) override {
    for (index l = 0; l < layers(); l++) {
      const PackedLayer<T, E>& packed = *packed_[static_cast<std::size_t>(l)];
      const T* from = l ? at(1 - now_, l - 1, 0) : x;
      parallel(owned_here() ? threads_ : 1, [&](int thread, int count) {
        const Crew crew{signals, thread, count, count > 1, count > 1 && packed.stages() > 1 ? &barrier_ : nullptr};
        Desk<T, E>& desk = desks_[static_cast<std::size_t>(l)][static_cast<std::size_t>(thread)];
        for (index r = 0; r < batch_; r++) {
          T* values = values_.size() ? values_.get() + r * values_size_ : nullptr;
          desk.rows.set(r, from + r * layers_[static_cast<std::size_t>(l)]->weights.input, values);
          for (int k = 0; k < states(); k++)
            desk.rows.set(r, k, at(now_, l, k) + r * width(k), at(1 - now_, l, k) + r * width(k));
          if (packed.has_shares()) packed.draw_shares(0, r, crew, values);
        }
        packed.step(desk, batch_, crew, false, [](index, index) -> T* { return nullptr; });
      });
    }
    if (signals.stopped()) return;
    now_ = 1 - now_;
    std::copy_n(state(layers() - 1, 0), batch_ * output(), y);
  }

 private:
  const Layer<T>& front() const { return *layers_.front(); }
  index state_size() const { return batch_ * (output() + (states() - 1) * front().weights.hidden); }
  index offset(index layer, int k) const {
    return layer * state_size() + (k ? batch_ * (output() + (k - 1) * front().weights.hidden) : 0);
  }
  T* at(int which, index layer, int k) { return states_[static_cast<std::size_t>(which)].get() + offset(layer, k); }

  const T* keep(const T* from, index size) {
    if (!from) return nullptr;
    const Buffer<T>& kept = kept_.emplace_back(Buffer<T>({size}));
    std::copy_n(from, size, kept.get());
    return kept.get();
  }
  // What is read at every step is kept here; the rest is packed.
  Weights<T> keep(Weights<T> weights) {
    for (const T*& of_units : weights.of_units) of_units = keep(of_units, weights.hidden);
    return weights;
  }

  // A forked child has none of its parent's threads: it goes on with one.
  bool owned_here() const {
#if defined(__unix__)
    return threads_ == 1 || getpid() == owner_;
#else
    return true;
#endif
  }

  index batch_, values_size_ = 0;
  bool large_ = false;
  int threads_ = 1, now_ = 0;
#if defined(__unix__)
  pid_t owner_ = getpid();
#endif
  std::vector<Buffer<T>> kept_;
  std::vector<std::unique_ptr<Layer<T>>> layers_;
  std::vector<std::unique_ptr<PackedLayer<T, E>>> packed_;
  std::vector<std::vector<Desk<T, E>>> desks_;  // of each layer and thread
  Buffer<T> values_;                            // of a step's rows
  std::array<Buffer<T>, 2> states_;             // before and after a step, taking turns: [layer][state][row][unit]
  Barrier barrier_;
};

}  // namespace rnnfast
