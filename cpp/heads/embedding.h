// Rows of a table by token, and the gradient of that table. V tokens, E features.
#pragma once

#include <algorithm>

#include "../memory.h"
#include "../threads.h"
#include "../views.h"

namespace rnnfast {

// y[t, b] = weight[token[t, b]], zero past a length, for the rows n = t B + b.
template <class T> void embedding_rows(const Sequence<const std::int64_t>& tokens, const T* weight,
                                       const Sequence<T>& y, Lengths lengths, Range rows) {
  for (index n = rows.begin; n < rows.end; n++) {
    const index t = n / y.batch, b = n % y.batch;
    if (t < lengths(b))
      std::copy_n(weight + *tokens.at(t, b) * y.width, y.width, y.at(t, b));
    else
      std::fill_n(y.at(t, b), y.width, T(0));
  }
}

// dweight[token[t, b]] += dy[t, b], t descending, then b ascending; each thread has columns of its own. Every term goes
// straight to dweight: a scratch of the table's size would cost V E where a batch touches few tokens, and this order
// gives the same bits however the steps are cut into segments, the last one first.
template <class T> void embedding_gradient(const Sequence<const std::int64_t>& tokens, const Sequence<const T>& dy,
                                           T* dweight, Lengths lengths, int threads) {
  parallel(threads, [&](int thread, int count) {
    const Range columns = share(dy.width, thread, count, cache_line / sizeof(T));
    if (columns.begin == columns.end) return;
    for (index t = dy.steps; t-- > 0;)
      for (index b = 0; b < dy.batch; b++) {
        if (t >= lengths(b)) continue;
        const T* from = dy.at(t, b);
        T* to = dweight + *tokens.at(t, b) * dy.width;
        for (index e = columns.begin; e < columns.end; e++) to[e] += from[e];
      }
  });
}

}  // namespace rnnfast
