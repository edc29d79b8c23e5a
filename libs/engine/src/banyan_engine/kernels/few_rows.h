// Products of few rows of bfloat16 with a weight as it lies in memory, which bounds them: some rows of
// the weight at a time, and those that come next are asked for on the way.
#pragma once
#include <algorithm>

#include "pairs.h"

constexpr int64_t NR = 4;  // rows of a weight that a few rows of x take at a time

// Lane 4 i + j is row i of x times row j of w; M rows of x, `in` a multiple of STEP. On the way it
// asks for the four rows of `in` numbers that come next.
template <int M>
INLINE f32x16 block(const bf16* const* x, const bf16* const* w, const bf16* next, int64_t in) {
  constexpr int U = 4 / M;
  f32x16 acc[U][16] = {};
  int64_t k = 0;
  auto step = [&](int u) __attribute__((always_inline)) {
    Pairs wk[NR];
    for (int j = 0; j < NR; j++) wk[j] = pack(w[j] + k, bf16{});
    for (int j = 0; j < NR; j++) __builtin_prefetch(next + j * in + k);
    for (int i = 0; i < M; i++) {
      const Pairs xk = pack(x[i] + k, bf16{});
      for (int j = 0; j < NR; j++) acc[u][i * NR + j] = dot(acc[u][i * NR + j], xk, wk[j]);
    }
    k += STEP;
  };
  while (k + U * STEP <= in)
    for (int u = 0; u < U; u++) step(u);
  while (k < in) step(0);
  for (int u = 1; u < U; u++)
    for (int i = 0; i < M * NR; i++) acc[0][i] += acc[u][i];
  return sums(acc[0]);
}

// Lane j is one row x times row j of eight of a weight: half as many sums across lanes as by fours.
INLINE f32x16 eight(const bf16* x, const bf16* w, const bf16* next, int64_t in) {
  f32x16 acc[16] = {};
  int64_t k = 0;
  auto step = [&](int u) __attribute__((always_inline)) {
    const Pairs xk = pack(x + k, bf16{});
    for (int j = 0; j < 8; j++) {
      acc[u * 8 + j] = dot(acc[u * 8 + j], xk, pack(w + j * in + k, bf16{}));
      __builtin_prefetch(next + j * in + k);
    }
    k += STEP;
  };
  while (k + 2 * STEP <= in) step(0), step(1);
  if (k < in) step(0);
  for (int j = 0; j < 8; j++) acc[j] += acc[8 + j], acc[8 + j] = splat(0.0f);
  return sums(acc);
}

// Calls take(m, lanes) for each four of `num` rows, rows past the end being repeated.
template <class Take>
INLINE void few_rows(const bf16* const* x, int64_t num, const bf16* w, const bf16* next,
                     int64_t in, const Take& take) {
  const bf16* ws[NR] = {w, w + in, w + 2 * in, w + 3 * in};
  for (int64_t m = 0; m < num; m += 4) {
    const bf16* xs[4];
    for (int64_t i = 0; i < 4; i++) xs[i] = x[std::min(m + i, num - 1)];
    if (num - m > 2) take(m, block<4>(xs, ws, next, in));
    else if (num - m == 2) take(m, block<2>(xs, ws, next, in));
    else take(m, block<1>(xs, ws, next, in));
  }
}
