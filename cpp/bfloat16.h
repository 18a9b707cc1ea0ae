// Numbers of 16 bits for the operands of products: the upper half of a float, rounded to nearest, ties to even.
//
// Products take them in pairs. A pair is one element of 32 bits, so that panels, walks and tiles of pairs are those of
// floats with half the terms. Its two terms are added one after the other, the odd one first, each in one rounding:
// what the instruction vdpbf16ps does, and with the same bits what two multiply-adds of floats do.
#pragma once

#include "simd.h"

namespace rnnfast {

// Term 2k in the lower half, term 2k + 1 in the upper one: an array of them is an array of 16-bit numbers.
struct Bfloat16Pair {
  std::uint32_t bits;
};

// The number as a float's bits, the lower half zero. Subnormal numbers are zeros of their sign; a NaN stays one.
inline std::uint32_t rounded_bits(float x) {
  std::uint32_t b;
  std::memcpy(&b, &x, sizeof b);
  const std::uint32_t magnitude = b & 0x7fffffffu;
  const std::uint32_t nearest = (b + 0x7fffu + ((b >> 16) & 1u)) & 0xffff0000u;
  const std::uint32_t small = magnitude < 0x00800000u ? b & 0x80000000u : nearest;
  return magnitude > 0x7f800000u ? (b | 0x00400000u) & 0xffff0000u : small;
}

inline Bfloat16Pair make_pair(float even, float odd) { return {rounded_bits(even) >> 16 | rounded_bits(odd)}; }

// What a product is made of: elements, the type of its sums, and one step of a chain of sums.
template <class E> struct Arithmetic {
  using Sum = E;
  static constexpr index numbers = 1;  // in an element
  static Vec<E> load(const E* from) { return Vec<E>::load(from); }
  static Vec<E> broadcast(const E* from) { return Vec<E>::broadcast(from); }
  // Where w is used once, it may come straight from memory.
  template <bool once> static Vec<E> multiply_add(Vec<E> a, Vec<E> w, Vec<E> sum) {
    return once ? fma(a, w, sum) : fma_in_registers(a, w, sum);
  }
};

template <> struct Arithmetic<Bfloat16Pair> {
  using Sum = float;
  static constexpr index numbers = 2;
  static Vec<float> load(const Bfloat16Pair* from) { return Vec<float>::load(reinterpret_cast<const float*>(from)); }
  static Vec<float> broadcast(const Bfloat16Pair* from) {
    return Vec<float>::broadcast(reinterpret_cast<const float*>(from));
  }
  template <bool once> static Vec<float> multiply_add(Vec<float> a, Vec<float> w, Vec<float> sum) {
#if defined(__AVX512BF16__)
    if constexpr (!once) {
      asm("vdpbf16ps %2, %1, %0" : "+v"(sum.p) : "v"(a.p), "v"(w.p));
      return sum;
    }
    return _mm512_dpbf16_ps(sum.p, reinterpret_cast<__m512bh>(a.p), reinterpret_cast<__m512bh>(w.p));
#else
    sum = fma(odd(a), odd(w), sum);
    return fma(even(a), even(w), sum);
#endif
  }

 private:
  [[maybe_unused]] static Vec<float> odd(Vec<float> v) { return from_bits<float>(bits(v) & 0xffff0000u); }
  [[maybe_unused]] static Vec<float> even(Vec<float> v) { return from_bits<float>(bits(v) << 16); }
};

// The type of an operand's numbers in the caller's arrays is that of the sums.
template <class E> using SumOf = typename Arithmetic<E>::Sum;

// Elements that n numbers make; the last is filled up with a zero.
template <class E> constexpr index elements(index n) {
  return (n + Arithmetic<E>::numbers - 1) / Arithmetic<E>::numbers;
}

// Element k of a row of n numbers.
template <class E> E element(const SumOf<E>* from, index n, index k) {
  if constexpr (Arithmetic<E>::numbers == 1) {
    return from[k];
  } else {
    return make_pair(from[2 * k], 2 * k + 1 < n ? from[2 * k + 1] : 0.0f);
  }
}

// A row of n numbers as elements.
template <class E> void to_elements(const SumOf<E>* __restrict from, index n, E* __restrict to) {
  constexpr index numbers = Arithmetic<E>::numbers;
  for (index k = 0; k < n / numbers; k++) {
    if constexpr (numbers == 1) {
      to[k] = from[k];
    } else {
      to[k] = make_pair(from[2 * k], from[2 * k + 1]);
    }
  }
  if (n % numbers) to[n / numbers] = element<E>(from, n, n / numbers);
}

}  // namespace rnnfast
