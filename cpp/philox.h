// Random numbers without a state: Philox4x32-10 of J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (2011). A bijection of 128-bit counters, chosen by a 64-bit key, so that what an element draws follows from its place
// and not from who asks first.
#pragma once

#include <cstdint>

namespace rnnfast {

struct PhiloxKey {
  std::uint32_t word[2];
};

// n counters of four words, all their first words first; the random words come in the same places.
template <int n> struct PhiloxWords {
  std::uint32_t word[4 * n];
};

// The rounds are innermost, so that the loop over counters is the one that becomes vectors.
template <int n> inline void philox(PhiloxWords<n>& c, PhiloxKey key) {
  for (int i = 0; i < n; i++) {
    std::uint32_t c0 = c.word[i], c1 = c.word[n + i], c2 = c.word[2 * n + i], c3 = c.word[3 * n + i];
    std::uint32_t k0 = key.word[0], k1 = key.word[1];
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
      const std::uint64_t a = std::uint64_t{0xD2511F53} * c0, b = std::uint64_t{0xCD9E8D57} * c2;
      c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ k0;
      c1 = static_cast<std::uint32_t>(b);
      c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ k1;
      c3 = static_cast<std::uint32_t>(a);
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    c.word[i] = c0, c.word[n + i] = c1, c.word[2 * n + i] = c2, c.word[3 * n + i] = c3;
  }
}

}  // namespace rnnfast
