// Numbers that fill one register of the CPU, and e^x of them. lanes.h always takes sixteen at a time,
// but comparing and choosing compile to slow code where that is two registers.
#pragma once
#include "lanes.h"

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
using Floats = float __attribute__((vector_size(4 * LANES)));
using Ints = int32_t __attribute__((vector_size(4 * LANES)));

INLINE Floats all(float x) { return x - Floats{}; }
// A bit for each lane that is -1, of a comparison.
INLINE uint32_t marked_of(Ints lanes) {
#ifdef __AVX512F__
  return _mm512_movepi32_mask((__m512i)lanes);
#else
  return (uint32_t)_mm256_movemask_ps((__m256)lanes);
#endif
}
INLINE Floats load_some(const float* p, int64_t num, float rest) {
  if (num >= LANES) return load<Floats>(p);
  Floats some = all(rest);
  if (num > 0) std::memcpy(&some, p, num * sizeof(float));
  return some;
}
INLINE void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }
INLINE float sum(Floats v) {
  for (int step = LANES / 2; step; step /= 2)
    for (int lane = 0; lane < step; ++lane) v[lane] += v[lane + step];
  return v[0];
}

// e^x for x up to 0, within 2 units in the last place where it is a normal number, else next to 0.
INLINE Floats exponential(Floats x) {
  Floats kept = x > -126.0f ? x : all(-126.0f);
  const Floats whole = all(12582912.0f);  // adding it leaves no fraction
  Floats power = (kept * 1.44269504f + whole) - whole;
  Floats rest = kept - power * 0.693359375f + power * 2.12194440e-4f;  // ln 2 in two parts
  Floats y = all(1.0f / 5040);
  for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    y = y * rest + factor;
#ifdef __AVX512F__
  return (Floats)_mm512_scalef_ps((__m512)y, (__m512)power);
#else
  Ints scale = (__builtin_convertvector(power, Ints) + 127) << 23;
  return kept < -87.0f ? all(0.0f) : y * (Floats)scale;
#endif
}

// Append the chosen lanes, and their ids if asked for; how many. May write LANES of each.
INLINE int64_t append(Floats values, Ints chosen, int32_t first_id, float* out, int32_t* ids) {
  uint32_t bits = marked_of(chosen);
#ifdef __AVX512F__
  __m512 packed = _mm512_maskz_compress_ps((__mmask16)bits, (__m512)values);
  std::memcpy(out, &packed, sizeof packed);
  if (ids) {
    const Ints counted = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    __m512i which = _mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)(counted + first_id));
    std::memcpy(ids, &which, sizeof which);
  }
#else
  for (uint32_t left = bits; left; left &= left - 1) {
    int lane = __builtin_ctz(left);
    *out++ = values[lane];
    if (ids) *ids++ = first_id + lane;
  }
#endif
  return __builtin_popcount(bits);
}
