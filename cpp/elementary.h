// exp, sigmoid and tanh on a vector of lanes: without branches, with the same equations on every instruction set.
//
// All three are built on e^-x = 2^n (1 - m) with n = round(-x / ln 2), r = x + n ln 2, |r| <= ln 2 / 2, m = 1 - e^-r.
// n times the upper part of ln 2 is exact, so a level without FMA is as accurate as one with it.
//
// Errors are in units in the last place (ULP) of the exact result. Results below the smallest normal number count as
// zero, arguments below it as a zero of their sign: kernels run under FlushSubnormals.
//
// Largest errors measured, with and without FMA, on packets and on scalars: at every float, and at 3e8 doubles, most of
// them where errors are large.
//             fp32   fp64
//   exp       1.03   1.02
//   sigmoid   2.45   2.50   (2.0 but where e^-x is near 2^24 or 2^53 and 1 + 2^n must be rounded)
//   tanh      2.07   2.18
#pragma once

#include <stdexcept>
#include <string>

#include "simd.h"

namespace rnnfast {

// The coefficients of q in e^r = 1 + r + r^2 q(r) are the floats (doubles) for which the largest error that any of the
// three functions gets from them, 0.17 ULP, is least: the solution of a mixed-integer program.
template <class T> struct ExpConstants;
template <> struct ExpConstants<float> {
  static constexpr int mantissa_bits = 23, bias = 127;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr float vanishing = 88;     // e^-88 < 2^-126, the smallest normal number
  static constexpr float overflow = 89;      // e^89 > 2^128
  static constexpr float saturation = 9.1f;  // 1 - tanh 9.1 < 2^-25
  static constexpr float q[] = {0x1.000002p-1f, 0x1.555496p-3f, 0x1.55539ep-5f, 0x1.123704p-7f, 0x1.6d6162p-10f};
};
template <> struct ExpConstants<double> {
  static constexpr int mantissa_bits = 52, bias = 1023;
  static constexpr double ln2_high = 0x1.62e42fefa38p-1, ln2_low = 0x1.ef35793c7673p-45;
  static constexpr double vanishing = 709, overflow = 710, saturation = 19.2;
  static constexpr double q[] = {0x1.0000000000004p-1,  0x1.5555555555597p-3,  0x1.5555555552134p-5,
                                 0x1.11111111075c5p-7,  0x1.6c16c17fbca90p-10, 0x1.a01a01bdf03cdp-13,
                                 0x1.a019a45595eeap-16, 0x1.71de0ae9b7432p-19, 0x1.28a50c9e624c5p-22,
                                 0x1.af039350be5fap-26};
};

// 1.5 2^mantissa_bits + bias: a sum with it is rounded to an integer, whose low bits are a biased exponent.
template <class T> constexpr T rounder() {
  using C = ExpConstants<T>;
  return T(3) * T(std::uint64_t{1} << (C::mantissa_bits - 1)) + T(C::bias);
}

// round(-x / ln 2) + rounder
template <class T> inline Vec<T> shifted_exponent(Vec<T> x) {
  constexpr T log2_e = T(0x1.71547652b82fep+0);
  return fma(x, Vec<T>(-log2_e), Vec<T>(rounder<T>()));
}

// 2^n from n + rounder, -bias <= n <= bias; 2^-bias is 0.
template <class T> inline Vec<T> power_of_two(Vec<T> shifted) {
  return from_bits<T>(bits(shifted) << ExpConstants<T>::mantissa_bits);
}

// 1 - e^-r = r - r^2 q(-r) for |r| <= ln 2 / 2, with a small error relative to itself.
template <class T> inline Vec<T> one_minus_exp(Vec<T> r) {
  using C = ExpConstants<T>;
  constexpr int degree = sizeof(C::q) / sizeof(T) - 1;
  const auto coefficient = [](int k) { return Vec<T>(k % 2 ? C::q[k] : -C::q[k]); };
  Vec<T> q = coefficient(degree);
  for (int k = degree - 1; k >= 0; --k) q = fma(q, r, coefficient(k));
  return fma(r * r, q, r);
}

// e^x to 1.1 ULP: 0 at -inf, inf from where the largest number is passed, NaN at NaN.
template <class T> inline Vec<T> exp(Vec<T> x) {
  using C = ExpConstants<T>;
  const Vec<T> minus_x = -max(min(x, Vec<T>(C::overflow)), Vec<T>(-C::vanishing));
  const Vec<T> shifted = shifted_exponent(minus_x), n = shifted - Vec<T>(rounder<T>());
  const Vec<T> r = fma(n, Vec<T>(C::ln2_low), fma(n, Vec<T>(C::ln2_high), minus_x));
  // 2^(bias + 1) is no number, but what it multiplies may bring it back into range: the last factor 2 is applied apart.
  const Vec<T> within = min(shifted, Vec<T>(rounder<T>() + C::bias));
  const Vec<T> y = power_of_two(within) * (Vec<T>(T(1)) - one_minus_exp(r));
  return fma(y, shifted - within, y);
}

// 1 / (1 + e^-x) to 2.51 ULP: 0 at -inf, 1 at inf, NaN at NaN.
template <class T> inline Vec<T> sigmoid(Vec<T> x) {
  using C = ExpConstants<T>;
  const Vec<T> one(T(1)), within = max(min(x, Vec<T>(C::vanishing)), Vec<T>(-C::vanishing));
  const Vec<T> shifted = shifted_exponent(within), n = shifted - Vec<T>(rounder<T>());
  const Vec<T> r = fma(n, Vec<T>(C::ln2_low), fma(n, Vec<T>(C::ln2_high), within));
  const Vec<T> power = power_of_two(shifted);
  return one / fnma(power, one_minus_exp(r), one + power);
}

// tanh x = (1 - e^-2|x|) / (1 + e^-2|x|) with the sign of x, to 2.2 ULP: -1 at -inf, 1 at inf, NaN at NaN; tanh(-x) is
// -tanh(x) to the bit, at 0 too. One rounded ln 2 is enough here: what n times it lacks weighs 2^n in the result.
template <class T> inline Vec<T> tanh(Vec<T> x) {
  using C = ExpConstants<T>;
  const Vec<T> one(T(1)), a = min(abs(x), Vec<T>(C::saturation)), twice = a + a;
  const Vec<T> shifted = shifted_exponent(twice), n = shifted - Vec<T>(rounder<T>());
  const Vec<T> m = one_minus_exp(fma(n, Vec<T>(C::ln2_high + C::ln2_low), twice));
  const Vec<T> power = power_of_two(shifted);
  return copy_sign(fma(power, m, one - power) / fnma(power, m, one + power), x);
}

// log σ(x) = min(x, 0) - log(1 + e^-|x|), to an absolute error of an ULP of 1: -inf at -inf, 0 at inf, NaN at NaN.
template <class T> inline Vec<T> log_sigmoid(Vec<T> x) {
  const Vec<T> e = exp(-abs(x));
  return min(x, Vec<T>(T(0))) - Vec<T>(Eigen::internal::plog((Vec<T>(T(1)) + e).p));
}

// y[i] = f(x[i]) for i < n, f by its name, as the kernels see it.
template <class T> inline void apply_math(const std::string& name, const T* x, T* y, index n) {
  Vec<T> (*f)(Vec<T>) = nullptr;
  if (name == "exp") f = exp<T>;
  if (name == "sigmoid") f = sigmoid<T>;
  if (name == "tanh") f = tanh<T>;
  if (!f) throw std::invalid_argument("name: expected exp, sigmoid or tanh, got " + name);
  constexpr int lanes = Vec<T>::lanes;
  const FlushSubnormals mode;
  for (index i = 0; i < n; i += lanes) {
    const int left = static_cast<int>(n - i < lanes ? n - i : lanes);
    f(Vec<T>::load_first(x + i, left)).store_first(y + i, left);
  }
}

}  // namespace rnnfast
