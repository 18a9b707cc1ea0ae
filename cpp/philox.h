// Random numbers without a state: Philox4x32-10 of J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (2011). A bijection of 128-bit counters, chosen by a 64-bit key, so that what an element draws follows from its place
// and not from who asks first.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace rnnfast {

// The words of some counters, each in a lane twice as wide: a product of two words fills one, and the other operations
// leave the upper half to itself, so that no word ever moves to another lane.
#if defined(__AVX512F__)
constexpr int philox_lanes = 8, philox_chains = 4;
#elif defined(__AVX2__)
constexpr int philox_lanes = 4, philox_chains = 2;
#else
constexpr int philox_lanes = 2, philox_chains = 4;
#endif
typedef std::uint64_t PhiloxWide __attribute__((vector_size(8 * philox_lanes)));
typedef std::uint32_t PhiloxNarrow __attribute__((vector_size(4 * philox_lanes)));

// Of the lower halves. The compiler's own product is one of 64 bits, thrice the work.
inline PhiloxWide philox_product(PhiloxWide a, std::uint32_t b) {
#if defined(__AVX512F__)
  return reinterpret_cast<PhiloxWide>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<PhiloxWide>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<PhiloxWide>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), _mm_set1_epi64x(b)));
#else
  return (a & 0xFFFFFFFF) * b;
#endif
}

struct PhiloxKey {
  std::uint32_t word[2];
};

// n vectors of counters, word by word. A round waits for the one before, so several run side by side.
template <int n> struct PhiloxCounters {
  PhiloxWide word[4][n];

  // The random words that `philox` has left, one of each lane.
  PhiloxNarrow words(int which, int vector) const { return __builtin_convertvector(word[which][vector], PhiloxNarrow); }
};

template <int n> inline void philox(PhiloxCounters<n>& c, PhiloxKey key) {
  std::uint64_t k0 = key.word[0], k1 = key.word[1];
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
      const PhiloxWide a = philox_product(c.word[0][i], 0xD2511F53), b = philox_product(c.word[2][i], 0xCD9E8D57);
      c.word[0][i] = (b >> 32) ^ c.word[1][i] ^ k0;
      c.word[1][i] = b;
      c.word[2][i] = (a >> 32) ^ c.word[3][i] ^ k1;
      c.word[3][i] = a;
    }
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
}

}  // namespace rnnfast
