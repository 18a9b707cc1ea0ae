// The head of a language model to Python: arrays to views, one driver call.
#include "bind.h"
#include "heads/softmax_head.h"

namespace rnnfast {
namespace {

using Integers = Array<std::int64_t>;

template <class T> Labels<T> labels_view(const Integers& targets, const MaybeArray<T>& weights, index steps,
                                         index batch, bool batch_first, index classes) {
  const index rows = checked_product({steps, batch});
  const Labels<T> labels{dense("targets", targets, {rows}), dense("weights", weights, {rows}), steps, batch,
                         batch_first};
  for (index n = 0; n < rows; n++)
    if (!labels.weights || labels.weights[n] != 0) check_entry("targets", labels.targets[n], classes, {n});
  return labels;
}

// The loss; its gradients too where there are arrays for them.
template <class T> double softmax_head(const Array<T>& x, const Array<T>& weight, const MaybeArray<T>& bias,
                                       const Integers& targets, const MaybeArray<T>& weights, bool batch_first,
                                       const MaybeArray<T>& dx, const MaybeArray<T>& dweight,
                                       const MaybeArray<T>& dbias, int num_threads) {
  check_threads(num_threads);
  const index steps = extent("x", x, 0, 3), batch = x.shape(1), input = x.shape(2);
  const index classes = extent("weight", weight, 0, 2);
  const auto from = sequence("x", x, steps, batch, input);
  const T *w = dense("weight", weight, {classes, input}), *b = dense("bias", bias, {classes});
  const Labels<T> labels = labels_view(targets, weights, steps, batch, batch_first, classes);
  if (dx.has_value() != dweight.has_value()) throw py::value_error("dx, dweight: expected both or none");
  HeadAdjoints<T> to;
  if (dx) to.dx = sequence_out("dx", *dx, steps, batch, input);
  to.dweight = dense_out("dweight", dweight, {classes, input});
  to.dbias = dense_out("dbias", dbias, {classes});
  double loss = 0;
  run_unlocked([&](Signals& signals) {
    SoftmaxHead<T> head(from, w, b, classes, labels, to, num_threads);
    head.run(signals);
    loss = head.loss();
  });
  return loss;
}

template <class T> void bind_type(py::module_& m) {
  using py::arg;
  m.def("softmax_head", softmax_head<T>, exact("x"), exact("weight"), exact("bias").none(true), exact("targets"),
        exact("weights").none(true), arg("batch_first"), exact("dx").none(true), exact("dweight").none(true),
        exact("dbias").none(true), arg("num_threads"));
}

}  // namespace

void bind_softmax_head(py::module_& m) {
  bind_type<float>(m);
  bind_type<double>(m);
}

}  // namespace rnnfast
