// Embedding, dropout, losses and optimiser steps to Python: arrays to views, one loop over blocks of rows.
#include "bind.h"
#include "heads/dropout.h"
#include "heads/embedding.h"
#include "heads/loss.h"
#include "heads/optimizer.h"
#include "heads/rows.h"
#include "heads/softmax.h"

namespace rnnfast {
namespace {

using Integers = Array<std::int64_t>;
using MaybeIntegers = MaybeArray<std::int64_t>;

// body(block, rows) for all blocks, without the lock. They are dealt to the threads one by one, since those whose work
// is cheap, such as padding, lie together. Nothing that is interrupted leaves a trace but in outputs that the caller
// then throws away.
template <class Body> void run_over(const RowBlocks& blocks, int num_threads, const Body& body) {
  run_unlocked([&](Signals& signals) {
    parallel(worthwhile_threads(num_threads, blocks.elements()), [&](int thread, int count) {
      for (index block = thread; block < blocks.count() && !signals.stop(blocks.work()); block += count)
        body(block, blocks[block]);
    });
  });
}

// (T, B) of any strides, as a sequence of width 1.
Sequence<const std::int64_t> tokens_view(const Integers& tokens) {
  constexpr py::ssize_t item = sizeof(std::int64_t);
  const index steps = extent("tokens", tokens, 0, 2), batch = tokens.shape(1);
  if ((steps > 1 && tokens.strides(0) % item) || (batch > 1 && tokens.strides(1) % item))
    throw py::value_error("tokens: strides are no whole elements");
  check_aligned("tokens", tokens);
  return {tokens.data(), steps, batch, 1, tokens.strides(0) / item, tokens.strides(1) / item};
}

void check_tokens(const Sequence<const std::int64_t>& tokens, Lengths lengths, index vocabulary) {
  for (index t = 0; t < tokens.steps; t++)
    for (index b = 0; b < tokens.batch; b++)
      if (t < lengths(b)) check_entry("tokens", *tokens.at(t, b), vocabulary, {t, b});
}

template <class T> void embedding_forward(const Integers& tokens, const Array<T>& weight, const Array<T>& y,
                                          const MaybeIntegers& lengths, int num_threads) {
  check_threads(num_threads);
  const auto from = tokens_view(tokens);
  const index vocabulary = extent("weight", weight, 0, 2), width = weight.shape(1);
  const T* table = dense("weight", weight, {vocabulary, width});
  const Sequence<T> to = sequence_out("y", y, from.steps, from.batch, width);
  const Lengths valid = lengths_view(lengths, from.steps, from.batch);
  check_tokens(from, valid, vocabulary);
  run_over(RowBlocks(from.steps * from.batch, width), num_threads,
           [&](index, Range rows) { embedding_rows(from, table, to, valid, rows); });
}

template <class T> void embedding_backward(const Integers& tokens, const Array<T>& dy, const Array<T>& dweight,
                                           const MaybeIntegers& lengths, int num_threads) {
  check_threads(num_threads);
  const auto at = tokens_view(tokens);
  const index vocabulary = extent("dweight", dweight, 0, 2), width = dweight.shape(1);
  const Sequence<const T> from = sequence("dy", dy, at.steps, at.batch, width);
  T* to = dense_out("dweight", dweight, {vocabulary, width});
  const Lengths valid = lengths_view(lengths, at.steps, at.batch);
  check_tokens(at, valid, vocabulary);
  py::gil_scoped_release unlocked;  // in one piece: an interrupt must not leave half a gradient in dweight
  embedding_gradient(at, from, to, valid, worthwhile_threads(num_threads, at.steps * at.batch * width));
}

// With `begin`, x has the steps from there on of longer sequences, and lengths are those of the whole ones.
template <class T> void dropout(const Array<T>& x, const Array<T>& y, double probability, std::uint64_t seed,
                                std::uint64_t call, std::uint32_t layer, const MaybeIntegers& lengths, int num_threads,
                                std::optional<index> begin) {
  check_threads(num_threads);
  if (begin && *begin < 0) throw py::value_error("begin: expected at least 0, got " + std::to_string(*begin));
  const index steps = extent("x", x, 0, 3), batch = x.shape(1), width = x.shape(2);
  const Sequence<const T> from = sequence("x", x, steps, batch, width);
  const Sequence<T> to = sequence_out("y", y, steps, batch, width);
  Lengths valid = lengths_view(lengths, steps, batch, !begin);
  valid.begin = begin.value_or(0);
  const DropoutMask mask(probability, seed, call, layer);
  const T scale = static_cast<T>(1 / (1 - probability));
  run_over(RowBlocks(steps * batch, width), num_threads,
           [&](index, Range rows) { dropout_rows(mask, scale, from, to, valid, rows); });
}

template <class T> double softmax_cross_entropy(const Array<T>& logits, const Integers& targets,
                                                const MaybeArray<T>& weights, const Array<T>& dlogits,
                                                int num_threads) {
  check_threads(num_threads);
  const index rows = extent("logits", logits, 0, 2), classes = logits.shape(1);
  const T* from = dense("logits", logits, {rows, classes});
  const std::int64_t* target = dense("targets", targets, {rows});
  const T* weight = dense("weights", weights, {rows});
  T* to = dense_out("dlogits", dlogits, {rows, classes});
  for (index n = 0; n < rows; n++)
    if (!weight || weight[n] != 0) check_entry("targets", target[n], classes, {n});
  const RowBlocks blocks(rows, classes);
  WeightedMean<T> mean(weight, blocks);
  run_over(blocks, num_threads, [&](index block, Range own) {
    mean.add(block, own, [&](index n, double fraction) {
      return cross_entropy_row(from + n * classes, classes, target[n], fraction, to + n * classes);
    });
  });
  return mean.value();
}

template <class T> double mse(const Array<T>& y, const Array<T>& target, const MaybeArray<T>& weights,
                              const Array<T>& dy, int num_threads) {
  check_threads(num_threads);
  const index rows = extent("y", y, 0, 2), features = y.shape(1);
  const T* from = dense("y", y, {rows, features});
  const T* wanted = dense("target", target, {rows, features});
  T* to = dense_out("dy", dy, {rows, features});
  const RowBlocks blocks(features ? rows : 0, features);
  WeightedMean<T> mean(dense("weights", weights, {rows}), blocks);
  run_over(blocks, num_threads, [&](index block, Range own) {
    mean.add(block, own, [&](index n, double fraction) {
      return squared_error_row(from + n * features, wanted + n * features, features, fraction, to + n * features);
    });
  });
  return mean.value();
}

template <class T> double sum_of_squares(const Array<T>& values, double clip_value, int num_threads) {
  check_threads(num_threads);
  const index n = extent("values", values, 0, 1);
  const T* from = dense("values", values, {n});
  const T bound = static_cast<T>(clip_value);
  const RowBlocks blocks(n, 1);
  std::vector<double> partial(static_cast<std::size_t>(blocks.count()));
  run_over(blocks, num_threads,
           [&](index block, Range own) { partial[block] = squares(from + own.begin, own.end - own.begin, bound); });
  return tree_sum(partial.data(), blocks.count());
}

template <class T> void sgd_step(const Array<T>& params, const Array<T>& grads, const MaybeArray<T>& velocity,
                                 double lr, double momentum, double scale, double clip_value, int num_threads) {
  check_threads(num_threads);
  const index n = extent("params", params, 0, 1);
  T* p = dense_out("params", params, {n});
  const T* g = dense("grads", grads, {n});
  T* v = dense_out("velocity", velocity, {n});
  const Clipping<T> clip{static_cast<T>(scale), static_cast<T>(clip_value)};
  const T rate = static_cast<T>(lr), friction = static_cast<T>(momentum);
  py::gil_scoped_release unlocked;
  run_update(n, num_threads, [&](index begin, index count) {
    sgd_update(p + begin, g + begin, v ? v + begin : nullptr, count, rate, friction, clip);
  });
}

template <class T> void adam_step(const Array<T>& params, const Array<T>& grads, const Array<T>& m, const Array<T>& v,
                                  double lr, double beta1, double beta2, double eps, double weight_decay,
                                  std::int64_t step, double scale, double clip_value, int num_threads) {
  check_threads(num_threads);
  const index n = extent("params", params, 0, 1);
  T* p = dense_out("params", params, {n});
  const T* g = dense("grads", grads, {n});
  T* first = dense_out("m", m, {n});
  T* second = dense_out("v", v, {n});
  const Clipping<T> clip{static_cast<T>(scale), static_cast<T>(clip_value)};
  const AdamFactors<T> factors = adam_factors<T>(lr, beta1, beta2, eps, weight_decay, step);
  py::gil_scoped_release unlocked;
  run_update(n, num_threads, [&](index begin, index count) {
    adam_update(p + begin, g + begin, first + begin, second + begin, count, factors, clip);
  });
}

template <class T> void bind_type(py::module_& m) {
  using py::arg;
  m.def("embedding_forward", embedding_forward<T>, exact("tokens"), exact("weight"), exact("y"),
        exact("lengths").none(true), arg("num_threads"));
  m.def("embedding_backward", embedding_backward<T>, exact("tokens"), exact("dy"), exact("dweight"),
        exact("lengths").none(true), arg("num_threads"));
  m.def("dropout", dropout<T>, exact("x"), exact("y"), arg("probability"), arg("seed"), arg("call"), arg("layer"),
        exact("lengths").none(true), arg("num_threads"), arg("begin") = py::none());
  m.def("softmax_cross_entropy", softmax_cross_entropy<T>, exact("logits"), exact("targets"),
        exact("weights").none(true), exact("dlogits"), arg("num_threads"));
  m.def("mse", mse<T>, exact("y"), exact("target"), exact("weights").none(true), exact("dy"), arg("num_threads"));
  m.def("sum_of_squares", sum_of_squares<T>, exact("values"), arg("clip_value"), arg("num_threads"));
  m.def("sgd_step", sgd_step<T>, exact("params"), exact("grads"), exact("velocity").none(true), arg("lr"),
        arg("momentum"), arg("scale"), arg("clip_value"), arg("num_threads"));
  m.def("adam_step", adam_step<T>, exact("params"), exact("grads"), exact("m"), exact("v"), arg("lr"), arg("beta1"),
        arg("beta2"), arg("eps"), arg("weight_decay"), arg("step"), arg("scale"), arg("clip_value"),
        arg("num_threads"));
}

}  // namespace

void bind_heads(py::module_& m) {
  bind_type<float>(m);
  bind_type<double>(m);
}

}  // namespace rnnfast
