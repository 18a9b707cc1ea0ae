// Threads of one call. Every kernel gives the same bits for any number of them: threads share outputs, never one sum.
#pragma once

#include <algorithm>

#include "simd.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace rnnfast {

// Calls body(thread, count) once in each worker. `count` is what the runtime gave, which may be fewer than `threads`.
// The body must neither throw nor allocate. One thread opens no region at all.
template <class Body> void parallel([[maybe_unused]] int threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      FlushSubnormals flush;
      body(omp_get_thread_num(), omp_get_num_threads());
    }
    return;
  }
#endif
  FlushSubnormals flush;
  body(0, 1);
}

// Waits for the other workers of the region. One worker has nobody to wait for: it may run inside a region of the
// caller's.
inline void barrier([[maybe_unused]] int count) {
#ifdef _OPENMP
  if (count > 1) {
#pragma omp barrier
  }
#endif
}

struct Range {
  index begin = 0, end = 0;
};

// A thread's part of [0, n): contiguous, nearly equal, begun at a multiple of `block`.
inline Range share(index n, int thread, int count, index block = 1) {
  const index blocks = (n + block - 1) / block;
  return {std::min(n, blocks * thread / count * block), std::min(n, blocks * (thread + 1) / count * block)};
}

// body(k) for every k of [begin, end), dealt to the threads one by one: for work whose cheap part, such as padding,
// lies together.
template <class Body> void deal(int threads, Range range, const Body& body) {
  parallel(threads, [&](int thread, int count) {
    for (index k = range.begin + thread; k < range.end; k += count) body(k);
  });
}

// All threads or one, for work of so many simple steps: a region costs some microseconds. Nothing between the two,
// since a runtime that is asked for a smaller team ends threads and has to start them again for the next call.
inline int worthwhile_threads(int threads, index work) { return work < (index{1} << 14) ? 1 : threads; }

}  // namespace rnnfast
