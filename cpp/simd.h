// One vector of N lanes on Eigen's packets, so that equations read like equations on every instruction set.
#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace rnnfast {

using index = std::ptrdiff_t;

// A line that two threads write wanders between their cores, which takes as long as a thousand multiply-adds or more.
constexpr std::size_t cache_line = 64;

// The first n lanes of a packet, 0 <= n < lanes: the others read as zero and are never written. By masks where the
// processor has fast ones. By way of the stack, a load waits until what memcpy wrote there is in the cache.
template <class T, class Packet> struct FirstLanesByStack {
  static constexpr int lanes = Eigen::internal::unpacket_traits<Packet>::size;
  static Packet load(const T* from, int n) {
    alignas(64) T whole[lanes] = {};
    std::memcpy(whole, from, static_cast<std::size_t>(n) * sizeof(T));
    return Eigen::internal::ploadu<Packet>(whole);
  }
  static void store(T* to, Packet p, int n) {
    alignas(64) T whole[lanes];
    Eigen::internal::pstoreu(whole, p);
    std::memcpy(to, whole, static_cast<std::size_t>(n) * sizeof(T));
  }
};
template <class T> struct FirstLanes : FirstLanesByStack<T, typename Eigen::internal::packet_traits<T>::type> {};
#if defined(__AVX512F__)
template <> struct FirstLanes<float> {
  static __mmask16 mask(int n) { return static_cast<__mmask16>((1U << n) - 1); }
  static __m512 load(const float* from, int n) { return _mm512_maskz_loadu_ps(mask(n), from); }
  static void store(float* to, __m512 p, int n) { _mm512_mask_storeu_ps(to, mask(n), p); }
};
template <> struct FirstLanes<double> {
  static __mmask8 mask(int n) { return static_cast<__mmask8>((1U << n) - 1); }
  static __m512d load(const double* from, int n) { return _mm512_maskz_loadu_pd(mask(n), from); }
  static void store(double* to, __m512d p, int n) { _mm512_mask_storeu_pd(to, mask(n), p); }
};
#elif defined(__AVX2__)
// A store by way of the stack waits for nothing: memcpy reads parts of what was written as a whole.
template <> struct FirstLanes<float> : FirstLanesByStack<float, __m256> {
  static __m256 load(const float* from, int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
  }
};
template <> struct FirstLanes<double> : FirstLanesByStack<double, __m256d> {
  static __m256d load(const double* from, int n) {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_maskload_pd(from, _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), lane));
  }
};
#endif

template <class T> struct Vec {
  using Scalar = T;
  using Packet = typename Eigen::internal::packet_traits<T>::type;
  static constexpr int lanes = Eigen::internal::unpacket_traits<Packet>::size;

  Packet p;

  Vec() = default;
  Vec(Packet packet) : p(packet) {}
  // Where the processor has no vectors, the packet is the number itself and the constructor above does it.
  template <class S, std::enable_if_t<std::is_arithmetic_v<S> && !std::is_same_v<T, Packet>, int> = 0>
  explicit Vec(S value) : p(Eigen::internal::pset1<Packet>(static_cast<T>(value))) {}

  static Vec load(const T* from) { return Eigen::internal::ploadu<Packet>(from); }
  static Vec broadcast(const T* from) { return Eigen::internal::pload1<Packet>(from); }
  void store(T* to) const { Eigen::internal::pstoreu(to, p); }
  // What other cores will read: whole vectors, at multiples of their size, past the caches. A line that another core
  // has read stays in its cache, and the next store to it has to wait until it is gone there (measured, a line: 7 ns,
  // or 36 where the two have no cache in common; past the caches 2, and 2.4 to read it). See publish().
  void store_for_others(T* to) const {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(p));
#elif defined(__AVX__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(p));
#elif defined(__SSE2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(p));
#else
    store(to);
#endif
  }

  // The first n lanes; the others read as zero and are never written. For the last vector of a row only.
  static Vec load_first(const T* from, int n) { return n >= lanes ? load(from) : Vec(FirstLanes<T>::load(from, n)); }
  void store_first(T* to, int n) const { n >= lanes ? store(to) : FirstLanes<T>::store(to, p, n); }
};

// After what was stored for others, before they are told that it is there.
inline void publish() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <class T> inline Vec<T> operator+(Vec<T> a, Vec<T> b) { return Eigen::internal::padd(a.p, b.p); }
template <class T> inline Vec<T> operator-(Vec<T> a, Vec<T> b) { return Eigen::internal::psub(a.p, b.p); }
template <class T> inline Vec<T> operator*(Vec<T> a, Vec<T> b) { return Eigen::internal::pmul(a.p, b.p); }
template <class T> inline Vec<T> operator/(Vec<T> a, Vec<T> b) { return Eigen::internal::pdiv(a.p, b.p); }
template <class T> inline Vec<T> operator-(Vec<T> a) { return Eigen::internal::pnegate(a.p); }

// a b + c in one rounding where the processor has it. Contraction is off everywhere, so this is the only way to fuse.
template <class T> inline Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) { return Eigen::internal::pmadd(a.p, b.p, c.p); }
// The same, with all three in registers and the sum staying in its own. Left to itself the compiler reads a vector from
// memory again for each of its uses and moves sums about: a tile of 2 × 8 vectors then loads 18 of them for 16
// multiply-adds, instead of 10.
template <class T> [[gnu::always_inline]] inline Vec<T> fma_in_registers(Vec<T> a, Vec<T> b, Vec<T> c) {
#if defined(__x86_64__) && defined(__FMA__)
  auto sum = c.p;
  if constexpr (std::is_same_v<T, float>) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a.p), "v"(b.p));
  } else {
    asm("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(a.p), "v"(b.p));
  }
  return sum;
#else
  return fma(a, b, c);
#endif
}
// c - a b likewise. The compiler's own minus merges into the fused operation; Eigen's pnegate does not.
template <class T> inline Vec<T> fnma(Vec<T> a, Vec<T> b, Vec<T> c) { return fma(Vec<T>(-a.p), b, c); }

// A NaN in the first argument comes out; Eigen's packets keep the first argument of an unordered pair.
template <class T> inline Vec<T> min(Vec<T> a, Vec<T> b) { return Eigen::internal::pmin(a.p, b.p); }
template <class T> inline Vec<T> max(Vec<T> a, Vec<T> b) { return Eigen::internal::pmax(a.p, b.p); }
template <class T> inline Vec<T> abs(Vec<T> a) { return Eigen::internal::pabs(a.p); }

// Comparisons give a mask of all-ones lanes; select(mask, a, b) takes a where it is set.
template <class T> inline Vec<T> less(Vec<T> a, Vec<T> b) { return Eigen::internal::pcmp_lt(a.p, b.p); }
template <class T> inline Vec<T> equal(Vec<T> a, Vec<T> b) { return Eigen::internal::pcmp_eq(a.p, b.p); }
template <class T> inline Vec<T> select(Vec<T> mask, Vec<T> a, Vec<T> b) {
  return Eigen::internal::pselect(mask.p, a.p, b.p);
}

// The lanes' bits as unsigned integers of the same width, for exponents and signs.
template <class T> struct BitLanes {
  using Integer = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  typedef Integer type __attribute__((vector_size(sizeof(typename Vec<T>::Packet))));
};
template <class T> inline typename BitLanes<T>::type bits(Vec<T> a) {
  typename BitLanes<T>::type lanes;
  std::memcpy(&lanes, &a.p, sizeof lanes);
  return lanes;
}
template <class T> inline Vec<T> from_bits(typename BitLanes<T>::type lanes) {
  Vec<T> a;
  std::memcpy(&a.p, &lanes, sizeof lanes);
  return a;
}

// a >= 0 with the sign of b, also where b is a zero or a NaN.
template <class T> inline Vec<T> copy_sign(Vec<T> a, Vec<T> b) {
  constexpr auto sign = typename BitLanes<T>::Integer(1) << (8 * sizeof(T) - 1);
  return from_bits<T>(bits(a) | (bits(b) & sign));
}

// Brings the line that lies `on` numbers further into the level-2 cache; any address will do.
template <class T> [[gnu::always_inline]] inline void bring(const T* at, index on) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::intptr_t>(at) + on * index{sizeof(T)}), 0, 2);
}

// Subnormal numbers cost a hundred cycles each and carry nothing here: they count as signed zero inside a kernel.
// Each worker sets its own mode and gives the caller's back.
class FlushSubnormals {
#if defined(__SSE2__)
 public:
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
 public:
  FlushSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (std::uint64_t{1} << 24)));
  }
  ~FlushSubnormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  std::uint64_t saved_;
#else
 public:
  FlushSubnormals() {}  // no such mode known on this processor
#endif
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;
};

}  // namespace rnnfast
