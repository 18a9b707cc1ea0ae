// The fixed weights of an echo state network, as its scan reads them. The sum of a unit,
//
//   z = b + sum over k of w_in[k] u[k] + sum over o of w_fb[o] y[o] + sum over j of w[j] x[column j]
//
// is one chain of fused multiply-adds in just this order, the sparse terms as CSR has them. Two layouts give the same
// bits: rows of the batch as lanes, where a weight meets one vector of states, and units as lanes, where rows are few.
// There each lane needs a number of its own from the state, and to gather it costs a load a lane. So the lanes of a
// slot take their terms from a window of 16 neighbouring states, which lies in a register or two, wherever the columns
// let them; a lane whose next column lies beyond the window sits the slot out.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "elementary.h"
#include "memory.h"

namespace rnnfast {

template <class T> struct Csr {
  index rows = 0;
  const std::int64_t* starts = nullptr;   // (rows + 1,)
  const std::int64_t* columns = nullptr;  // ascending in each row
  const T* values = nullptr;

  index terms() const { return starts[rows]; }
  index terms(index row) const { return starts[row + 1] - starts[row]; }
};

// ---- a number for each lane ----------------------------------------------------------------------------------------

constexpr index window = 16;

// window_pick: lane l gets table[offsets[l]], and +0 where that is `sits_out`.
constexpr std::int8_t sits_out = -1;
template <class T> inline constexpr bool has_window = false;

// gather: lane l gets x[at[l]].
template <class T> inline Vec<T> gather(const T* x, const std::int32_t* at) {
  alignas(64) T lanes[Vec<T>::lanes];
  for (int l = 0; l < Vec<T>::lanes; l++) lanes[l] = x[at[l]];
  return Vec<T>::load(lanes);
}
template <class T> inline Vec<T> window_pick(const T*, const std::int8_t*) { return Vec<T>(T(0)); }

#if defined(__AVX512DQ__)
template <> inline constexpr bool has_window<float> = true;
template <> inline constexpr bool has_window<double> = true;
template <> inline Vec<float> window_pick(const float* table, const std::int8_t* offsets) {
  const __m512i at = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets)));
  return _mm512_permutex2var_ps(_mm512_loadu_ps(table), at, _mm512_setzero_ps());  // sits_out reads the zeros
}
template <> inline Vec<double> window_pick(const double* table, const std::int8_t* offsets) {
  const __m512i at = _mm512_cvtepi8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(offsets)));
  return _mm512_maskz_permutex2var_pd(_knot_mask8(_mm512_movepi64_mask(at)), _mm512_loadu_pd(table), at,
                                      _mm512_loadu_pd(table + 8));
}
template <> inline Vec<float> gather(const float* x, const std::int32_t* at) {
  return _mm512_i32gather_ps(_mm512_loadu_si512(at), x, 4);
}
template <> inline Vec<double> gather(const double* x, const std::int32_t* at) {
  return _mm512_i32gather_pd(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), x, 8);
}
#elif defined(__AVX2__)
template <> inline constexpr bool has_window<float> = true;
template <> inline Vec<float> window_pick(const float* table, const std::int8_t* offsets) {
  const __m256i at = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(offsets)));
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), at);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), at);
  const __m256 both = _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
  return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(at, 31)), both);
}
template <> inline Vec<float> gather(const float* x, const std::int32_t* at) {
  return _mm256_i32gather_ps(x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), 4);
}
template <> inline Vec<double> gather(const double* x, const std::int32_t* at) {
  return _mm256_i32gather_pd(x, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), 8);
}
#endif

// ---- units as lanes ------------------------------------------------------------------------------------------------

// The sparse weights in slots: a term for each unit of a group of N. A lane without a term multiplies -0 by +0, which
// leaves every sum as it is, to the sign of a zero. Four groups are a bundle, whose slots lie side by side: as many
// chains of multiply-adds in flight.
template <class T> class Slots {
 public:
  static constexpr index N = Vec<T>::lanes, most_groups = 4, bundle = most_groups * N;

  static index padded(index units) { return (units + N - 1) / N * N; }
  // Numbers of a state vector: the units, padded, and zeros behind them, which a window may reach and padding reads.
  static index state_size(index units) { return (units + N - 1) / N * N + window + N; }

  explicit Slots(const Csr<T>& w) : groups_(padded(w.rows) / N) {
    const index in_windows = count_in_windows(w), in_order = count_in_order(w);
    windows_ = has_window<T> && in_windows < cost_of_gather * in_order;
    const index slots = (windows_ ? in_windows : in_order) * most_groups;
    weights_ = Buffer<T>({slots, N}), weights_.fill(T(-0.0));
    if (windows_) {
      from_ = Buffer<std::int32_t>({slots}), from_.fill(0);
      offsets_ = Buffer<std::int8_t>({slots, N}), offsets_.fill(sits_out);
    } else {
      at_ = Buffer<std::int32_t>({slots, N}), at_.fill(static_cast<std::int32_t>(padded(w.rows)));
    }
    for (index b = 0; b < bundles(); b++)
      first_.push_back(first_[b] + (windows_ ? fill_windows(w, b) : fill_in_order(w, b)));
  }

  index bundles() const { return (groups_ + most_groups - 1) / most_groups; }
  index groups(index b) const { return std::min(most_groups, groups_ - b * most_groups); }
  bool in_windows() const { return windows_; }
  // Of a step, in vector operations.
  index cost() const { return first_.back() * most_groups * (windows_ ? 1 : cost_of_gather); }

  // z[i] += W x for the G groups of bundle b.
  template <int G> void add(index b, const T* x, Vec<T>* z) const {
    windows_ ? add_slots<G, true>(b, x, z) : add_slots<G, false>(b, x, z);
  }

 private:
  // Vector operations in the time that a gather takes.
  static constexpr index cost_of_gather = N >= 8 ? 6 : 2;

  template <int G, bool in_windows> void add_slots(index b, const T* x, Vec<T>* z) const {
    const index first = first_[b] * most_groups, last = first + (first_[b + 1] - first_[b]) * G;
    const T* w = weights_.get() + first * N;
    for (index slot = first; slot < last; slot += G, w += G * N)
#pragma GCC unroll 4
      for (int i = 0; i < G; i++) z[i] = fma(Vec<T>::load(w + i * N), of_lanes<in_windows>(slot + i, x), z[i]);
  }
  template <bool in_windows> Vec<T> of_lanes(index slot, const T* x) const {
    if constexpr (in_windows) return window_pick(x + from_[slot], offsets_.get() + slot * N);
    return gather(x, at_.get() + slot * N);
  }

  // f(start of the window, the place in CSR of each lane's term or -1) for the slots of a group, how many there are.
  // A window is the one with the least column that is left, so that each lane keeps its order.
  template <class F> static index for_each_window(const Csr<T>& w, index g, F f) {
    index next[N], end[N], taken[N], slots = 0;
    for (index l = 0; l < N; l++) {
      const index i = g * N + l;
      next[l] = i < w.rows ? w.starts[i] : 0;
      end[l] = i < w.rows ? w.starts[i + 1] : 0;
    }
    for (;; slots++) {
      index least = w.rows;
      for (index l = 0; l < N; l++)
        if (next[l] < end[l]) least = std::min<index>(least, w.columns[next[l]]);
      if (least == w.rows) return slots;
      const index start = least / window * window;
      for (index l = 0; l < N; l++) taken[l] = next[l] < end[l] && w.columns[next[l]] < start + window ? next[l]++ : -1;
      f(start, taken);
    }
  }

  index count_in_windows(const Csr<T>& w) const {
    index slots = 0;
    for (index b = 0; b < bundles(); b++) {
      index most = 0;
      for (index i = 0; i < groups(b); i++)
        most = std::max(most, for_each_window(w, b * most_groups + i, [](index, const index*) {}));
      slots += most;
    }
    return slots;
  }
  index count_in_order(const Csr<T>& w) const {
    index slots = 0;
    for (index first = 0; first < w.rows; first += bundle) {
      index most = 0;
      for (index i = first; i < std::min(w.rows, first + bundle); i++) most = std::max(most, w.terms(i));
      slots += most;
    }
    return slots;
  }

  index fill_windows(const Csr<T>& w, index b) {
    index most = 0;
    for (index i = 0; i < groups(b); i++) {
      index slot = first_[b] * most_groups + i;
      const index count = for_each_window(w, b * most_groups + i, [&](index start, const index* taken) {
        from_[slot] = static_cast<std::int32_t>(start);
        for (index l = 0; l < N; l++) {
          if (taken[l] < 0) continue;
          weights_[slot * N + l] = w.values[taken[l]];
          offsets_[slot * N + l] = static_cast<std::int8_t>(w.columns[taken[l]] - start);
        }
        slot += groups(b);
      });
      most = std::max(most, count);
    }
    return most;
  }
  index fill_in_order(const Csr<T>& w, index b) {
    index most = 0;
    for (index i = b * bundle; i < std::min(w.rows, (b + 1) * bundle); i++) {
      const index lane = i - b * bundle;
      most = std::max(most, w.terms(i));
      for (index k = 0; k < w.terms(i); k++) {
        const index place = (first_[b] * most_groups + k * groups(b)) * N + lane;
        weights_[place] = w.values[w.starts[i] + k];
        at_[place] = static_cast<std::int32_t>(w.columns[w.starts[i] + k]);
      }
    }
    return most;
  }

  index groups_;
  bool windows_ = false;
  std::vector<index> first_{0};  // of each bundle, in slots of four groups
  Buffer<T> weights_;            // [slot][group of the bundle][lane]
  Buffer<std::int32_t> from_;    // [slot][group]: where its window begins
  Buffer<std::int8_t> offsets_;  // [slot][group][lane]: in the window
  Buffer<std::int32_t> at_;      // [slot][group][lane]: in the state, where windows don't pay
};

// ---- the reservoir -------------------------------------------------------------------------------------------------

template <class T> class Reservoir {
 public:
  static constexpr index N = Vec<T>::lanes;

  // weight_in (H, I), weight_fb (H, O) or null with O = 0, bias (H,); everything is copied.
  Reservoir(index input, index outputs, const T* weight_in, const T* weight_fb, const T* bias, const Csr<T>& w, T leak)
      : input_(input), outputs_(outputs), hidden_(w.rows), leak_(leak), keep_(T(1) - leak), slots_(w),
        bias_({padded()}), head_by_unit_({hidden_, input + outputs}), head_by_group_({input + outputs, padded()}),
        starts_({hidden_ + 1}), columns_({w.terms()}), values_({w.terms()}) {
    bias_.fill(T(0));
    head_by_group_.fill(T(0));
    std::copy_n(bias, hidden_, bias_.get());
    for (index i = 0; i < hidden_; i++)
      for (index k = 0; k < head(); k++) {
        const T value = k < input_ ? weight_in[i * input_ + k] : weight_fb[i * outputs_ + k - input_];
        head_by_unit_[i * head() + k] = head_by_group_[k * padded() + i] = value;
      }
    std::copy_n(w.starts, hidden_ + 1, starts_.get());
    std::copy_n(w.values, w.terms(), values_.get());
    for (index j = 0; j < w.terms(); j++) columns_[j] = static_cast<std::int32_t>(w.columns[j]);
  }

  index input() const { return input_; }
  index outputs() const { return outputs_; }  // that are fed back
  index hidden() const { return hidden_; }
  index terms() const { return starts_[hidden_]; }
  index terms(index unit) const { return starts_[unit + 1] - starts_[unit]; }
  index head() const { return input_ + outputs_; }
  index padded() const { return Slots<T>::padded(hidden_); }
  const Slots<T>& slots() const { return slots_; }

  // The sums z of one row, units as lanes, of the bundles [begin, end). x and z have state_size numbers.
  void sums_of_row(index begin, index end, const T* u, const T* y, const T* x, T* z) const {
    for (index b = begin; b < end; b++) {
      const index groups = slots_.groups(b);
      if (groups == 1) sum_groups<1>(b, u, y, x, z);
      if (groups == 2) sum_groups<2>(b, u, y, x, z);
      if (groups == 3) sum_groups<3>(b, u, y, x, z);
      if (groups == 4) sum_groups<4>(b, u, y, x, z);
    }
  }

  // One step of such a row.
  void step_of_row(index begin, index end, const T* u, const T* y, const T* x, T* x_after) const {
    sums_of_row(begin, end, u, y, x, x_after);
    for (index i = begin * Slots<T>::bundle; i < std::min(padded(), end * Slots<T>::bundle); i += N)
      activate(Vec<T>::load(x_after + i), Vec<T>::load(x + i)).store(x_after + i);
  }

  // One step of N rows, rows as lanes, of the units [begin, end). x and x_after are (H, N), `in` is (I + O, N).
  void step_of_rows(index begin, index end, const T* in, const T* x, T* x_after) const {
    index i = begin;
    for (; i + chains <= end; i += chains) sum_units<chains>(i, in, x, x_after);
    for (; i < end; i++) sum_units<1>(i, in, x, x_after);
    for (i = begin * N; i < end * N; i += N)
      activate(Vec<T>::load(x_after + i), Vec<T>::load(x + i)).store(x_after + i);
  }

 private:
  static constexpr int chains = 4;  // sums in flight: a multiply-add waits four cycles for the one before

  Vec<T> activate(Vec<T> z, Vec<T> x) const {
    const Vec<T> h = tanh(z);
    return keep_ == T(0) ? h : fma(Vec<T>(leak_), h, Vec<T>(keep_) * x);
  }

  template <int G> void sum_groups(index b, const T* u, const T* y, const T* x, T* to) const {
    const index first = b * Slots<T>::bundle;
    const T* w = head_by_group_.get() + first;
    Vec<T> z[G];
#pragma GCC unroll 4
    for (int i = 0; i < G; i++) z[i] = Vec<T>::load(bias_.get() + first + i * N);
    for (index k = 0; k < head(); k++, w += padded()) {
      const Vec<T> scale = Vec<T>::broadcast(k < input_ ? u + k : y + (k - input_));
#pragma GCC unroll 4
      for (int i = 0; i < G; i++) z[i] = fma(scale, Vec<T>::load(w + i * N), z[i]);
    }
    slots_.template add<G>(b, x, z);
#pragma GCC unroll 4
    for (int i = 0; i < G; i++) z[i].store(to + first + i * N);
  }

  template <int U> void sum_units(index first, const T* in, const T* x, T* to) const {
    const T* w[U];
    const std::int32_t* at[U];
    index common = terms(first);
    Vec<T> z[U];
#pragma GCC unroll 4
    for (int i = 0; i < U; i++) {
      w[i] = values_.get() + starts_[first + i];
      at[i] = columns_.get() + starts_[first + i];
      common = std::min(common, terms(first + i));
      z[i] = Vec<T>::broadcast(bias_.get() + first + i);
    }
    for (index k = 0; k < head(); k++)
#pragma GCC unroll 4
      for (int i = 0; i < U; i++)
        z[i] = fma(Vec<T>::broadcast(head_by_unit_.get() + (first + i) * head() + k), Vec<T>::load(in + k * N), z[i]);
    const auto add = [&](int i, index k) {
      z[i] = fma(Vec<T>::broadcast(w[i] + k), Vec<T>::load(x + at[i][k] * N), z[i]);
    };
    for (index k = 0; k < common; k++)
#pragma GCC unroll 4
      for (int i = 0; i < U; i++) add(i, k);
#pragma GCC unroll 4
    for (int i = 0; i < U; i++) {
      for (index k = common; k < terms(first + i); k++) add(i, k);
      z[i].store(to + (first + i) * N);
    }
  }

  index input_, outputs_, hidden_;
  T leak_, keep_;
  Slots<T> slots_;
  Buffer<T> bias_, head_by_unit_, head_by_group_;
  Buffer<std::int64_t> starts_;
  Buffer<std::int32_t> columns_;
  Buffer<T> values_;
};

}  // namespace rnnfast
