// Products of bfloat16 whose right side is laid out as pairs: of two numbers that are multiplied and
// added to the same sum, for 16 sums side by side. Laying out costs as much as some six rows of the left
// side, and then nothing has to be summed across lanes.
#pragma once
#include "lanes.h"

constexpr int MR = 6, NV = 4;  // rows and vectors of 16 numbers that one product makes
using Pairs = Pack<bf16>;      // 16 pairs of numbers

INLINE Pairs broadcast(const bf16* pair) {
  const i32x16 zero = {};
  return {(u16x32)(zero + load<int32_t>(pair))};
}

// sum[i] += a[i] [2 * num_pairs] times b [num_pairs][ldb] pairs, MR rows by V vectors.
template <int V>
INLINE void multiply(f32x16 (&sum)[MR][V], const bf16* const* a, const bf16* b, int64_t ldb,
                     int64_t num_pairs) {
  f32x16 acc[MR][V];  // in registers: nothing else can be said to lie where they lie
  std::memcpy(acc, sum, sizeof acc);
  for (int64_t k = 0; k < num_pairs; k++) {
    Pairs bk[V];
    for (int v = 0; v < V; v++) bk[v] = pack(b + 2 * (k * ldb + v * 16), bf16{});
    for (int i = 0; i < MR; i++) {
      const Pairs ak = broadcast(a[i] + 2 * k);
      for (int v = 0; v < V; v++) acc[i][v] = dot(acc[i][v], ak, bk[v]);
    }
  }
  std::memcpy(sum, acc, sizeof acc);
}

// Sixteen vectors of sixteen words become their transpose: four times, the highest bit of a vector's
// number changes places with the highest of a lane's, and both turn.
INLINE void transpose(i32x16* v) {
  for (int turn = 0; turn < 4; turn++) {
    i32x16 w[16];
    for (int i = 0; i < 8; i++) {
      w[2 * i] = __builtin_shufflevector(v[i], v[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21,
                                         6, 22, 7, 23);
      w[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                                             13, 29, 14, 30, 15, 31);
    }
    std::memcpy(v, w, sizeof w);
  }
}
