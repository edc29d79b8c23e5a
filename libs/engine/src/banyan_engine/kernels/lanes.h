// Sixteen lanes at a time, whatever the CPU's registers hold: GCC's vector types compile to one
// AVX-512 register or to two of AVX2. Intrinsics stand only where the compiler finds no good code.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

using f32x16 = float __attribute__((vector_size(64)));
using i32x16 = int32_t __attribute__((vector_size(64)));
using u32x16 = uint32_t __attribute__((vector_size(64)));
using u16x16 = uint16_t __attribute__((vector_size(32)));
using u16x32 = uint16_t __attribute__((vector_size(64)));
using u8x16 = uint8_t __attribute__((vector_size(16)));
struct bf16 {
  uint16_t bits;
};
constexpr int STEP = 32;  // weights or channels that one `dot` takes

#define INLINE static inline __attribute__((always_inline))
#define MEMBER inline __attribute__((always_inline))

template <class V>
INLINE V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
INLINE float widen_one(float x) { return x; }
INLINE float widen_one(bf16 x) {
  uint32_t bits = (uint32_t)x.bits << 16;
  return load<float>(&bits);
}
INLINE f32x16 splat(float x) { return x - f32x16{}; }
INLINE f32x16 splat(bf16 x) {
#ifdef __AVX512BW__
  return (f32x16)_mm512_slli_epi32(_mm512_set1_epi16((short)x.bits), 16);
#else
  return splat(widen_one(x));
#endif
}

INLINE f32x16 widen(const float* p) { return load<f32x16>(p); }
INLINE f32x16 widen_bytes(u8x16 raw) {  // signed bytes
#ifdef __AVX512F__
  return (f32x16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)raw));
#else
  __m128i bytes = (__m128i)raw;
  __m256 halves[2] = {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                      _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
  return load<f32x16>(halves);
#endif
}
INLINE f32x16 widen(const int8_t* p) { return widen_bytes(load<u8x16>(p)); }
INLINE f32x16 widen(const bf16* p) {
#ifdef __AVX512F__
  return (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(load<__m256i>(p)), 16);
#else
  __m256i halves[2] = {_mm256_slli_epi32(_mm256_cvtepu16_epi32(load<__m128i>(p)), 16),
                       _mm256_slli_epi32(_mm256_cvtepu16_epi32(load<__m128i>(p + 8)), 16)};
  return load<f32x16>(halves);
#endif
}

// To the nearest bfloat16, ties to even; NaN stays NaN.
INLINE u16x16 round_bf16(f32x16 x) {
  u32x16 bits = (u32x16)x;
  u32x16 rounded = bits + 0x7fff + ((bits >> 16) & 1);
  u32x16 chosen = x == x ? rounded : (bits | 0x400000);
  return __builtin_convertvector(chosen >> 16, u16x16);
}
INLINE void store(float* p, f32x16 x, int n) { std::memcpy(p, &x, n * sizeof(float)); }
INLINE void store(bf16* p, f32x16 x, int n) {
  u16x16 rounded = round_bf16(x);
  std::memcpy(p, &rounded, n * sizeof(bf16));
}

// STEP numbers in the form that `dot` multiplies.
template <class T>
struct Pack;
template <>
struct Pack<float> {
  f32x16 low, high;
};
template <>
struct Pack<bf16> {
  u16x32 all;
};

INLINE Pack<float> pack(f32x16 low, f32x16 high, float) { return {low, high}; }
INLINE Pack<bf16> pack(f32x16 low, f32x16 high, bf16) {
#ifdef __AVX512BF16__
  return {(u16x32)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low)};
#else
  u16x16 halves[2] = {round_bf16(low), round_bf16(high)};
  return {load<u16x32>(halves)};
#endif
}
INLINE Pack<float> pack(const float* p, float) { return {widen(p), widen(p + 16)}; }
INLINE Pack<bf16> pack(const bf16* p, bf16) { return {load<u16x32>(p)}; }
INLINE Pack<float> pack(const bf16* p, float) { return {widen(p), widen(p + 16)}; }
template <class T>
INLINE Pack<T> pack(const int8_t* p, T type) {
  return pack(widen(p), widen(p + 16), type);
}

// Sixteen bytes, two numbers of -8 to 7 in each: the low halves, then the high ones.
INLINE Pack<float> pack_nibbles(u8x16 raw, float) {
  return {widen_bytes((raw & 15) - 8), widen_bytes((raw >> 4) - 8)};
}
INLINE Pack<bf16> pack_nibbles(u8x16 raw, bf16 type) {
#ifdef __AVX512BW__
  // Looked up by their low five bits, of which the table ignores the fifth.
  __m512i table = _mm512_broadcast_i64x4(
      _mm256_setr_epi16(-0x3f00, -0x3f20, -0x3f40, -0x3f60, -0x3f80, -0x3fc0, -0x4000, -0x4080, 0,
                        0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0));
  __m256i low = _mm256_cvtepu8_epi16((__m128i)raw);
  __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_srli_epi16(low, 4), 1);
  return {(u16x32)_mm512_permutexvar_epi16(both, table)};
#else
  return pack(widen_bytes((raw & 15) - 8), widen_bytes((raw >> 4) - 8), type);
#endif
}
// The same times `scale`: numbers of a table that is scaled beforehand.
template <class T>
INLINE Pack<T> pack_nibbles(u8x16 raw, f32x16 scale, T type) {
#ifdef __AVX512F__
  const f32x16 table = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  const __m512 scaled = (__m512)(table * scale);
  const __m512i low = _mm512_cvtepu8_epi32((__m128i)raw);  // of whose bits four are looked at
  return pack((f32x16)_mm512_permutexvar_ps(low, scaled),
              (f32x16)_mm512_permutexvar_ps(_mm512_srli_epi32(low, 4), scaled), type);
#else
  return pack(widen_bytes((raw & 15) - 8) * scale, widen_bytes((raw >> 4) - 8) * scale, type);
#endif
}

INLINE f32x16 dot(f32x16 sum, Pack<float> a, Pack<float> b) {
  return sum + a.low * b.low + a.high * b.high;
}
INLINE f32x16 dot(f32x16 sum, Pack<bf16> a, Pack<bf16> b) {
#ifdef __AVX512BF16__
  return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a.all, (__m512bh)b.all);
#else
  u32x16 left = (u32x16)a.all, right = (u32x16)b.all, upper = (u32x16)splat(0) | 0xffff0000u;
  return sum + (f32x16)(left << 16) * (f32x16)(right << 16) +
         (f32x16)(left & upper) * (f32x16)(right & upper);
#endif
}

// Lane i of the result is the sum of all lanes of v[i]; v is used up.
INLINE f32x16 sums(f32x16* v) {
#define FOLD(count, low, high)              \
  for (int i = 0; i < count; i++)           \
    v[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], low) + \
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], high);
#define LANES(...) __VA_ARGS__
  FOLD(8, LANES(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
       LANES(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
  FOLD(4, LANES(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27),
       LANES(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31))
  FOLD(2, LANES(0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29),
       LANES(2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31))
  FOLD(1, LANES(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
       LANES(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31))
  return v[0];
}

// All lanes of the result are the largest lane, or the sum of all lanes.
INLINE f32x16 rotated(f32x16 x, int by) {
  i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return __builtin_shuffle(x, lane + by & 15);
}
INLINE f32x16 largest(f32x16 x) {
  for (int by = 8; by; by /= 2) {
    f32x16 other = rotated(x, by);
    x = other > x ? other : x;
  }
  return x;
}
INLINE f32x16 total_of(f32x16 x) {
  for (int by = 8; by; by /= 2) x += rotated(x, by);
  return x;
}

// e^x to 2 units in the last place or so, for x <= 0; below -87 it is 0. NaN stays NaN.
INLINE f32x16 exp_lanes(f32x16 x) {
  f32x16 clamped = x < -87.0f ? splat(-87.0f) : x;
  f32x16 whole = clamped * 1.44269504f + 12582912.0f;  // rounds: 1.5 * 2^23 has no fraction bits
  i32x16 power = (i32x16)whole - 0x4b400000;
  whole = whole - 12582912.0f;
  f32x16 r = clamped - whole * 0.693359375f + whole * 2.12194440e-4f;
  f32x16 y = 1.0f / 5040 * r + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r * r + r + 1.0f;
  y = y * (f32x16)((power + 127) << 23);
  return x < -87.0f ? splat(0) : y;
}
