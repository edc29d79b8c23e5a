// Products of some rows of x with these rows as lanes: 16 side by side, or fewer and several pairs of
// numbers of each. Every pair of a weight is broadcast to all of them, so nothing has to be summed
// across lanes but those few pairs. x is laid out once; weights come in tiles of 16 rows, unpacked
// where they are packed, that stay in the first cache for all rows of x.
#pragma once
#include <algorithm>
#include <vector>

#include "pairs.h"
#include "weight_rows.h"

constexpr int OUTS = 16;           // rows of W that a tile has
constexpr int64_t TILE_STEPS = 8;  // and times STEP channels: a quarter of the first cache

namespace {
struct Share {  // rows of x that a register or two hold; `width` is 4, 8, 16 or 32
  int64_t first, num, width;
};
struct Sums {
  f32x16 of[OUTS][2];
};
template <int N>
using Number = std::integral_constant<int, N>;

// Calls with how many registers hold a share, and how many pairs of each row stand in one.
template <class Work>
INLINE void by_width(int64_t width, Work work) {
  if (width == 4) work(Number<1>{}, Number<4>{});
  if (width == 8) work(Number<1>{}, Number<2>{});
  if (width == 16) work(Number<1>{}, Number<1>{});
  if (width == 32) work(Number<2>{}, Number<1>{});
}

inline std::vector<Share> shares_of(int64_t rows) {
  std::vector<Share> shares;
  for (int64_t first = 0; first < rows;) {
    const int64_t left = rows - first, width = left > 24 ? 32 : left > 8 ? 16 : left > 4 ? 8 : 4;
    shares.push_back({first, std::min(left, width), width});
    first += width;
  }
  return shares;
}

// `GROUP` pairs, as often as a register holds them.
template <int GROUP>
INLINE Pairs spread(const bf16* pairs) {
#ifdef __AVX512F__
  if (GROUP == 4) return {(u16x32)_mm512_broadcast_i32x4(load<__m128i>(pairs))};
  if (GROUP == 2) return {(u16x32)_mm512_set1_epi64(load<int64_t>(pairs))};
#endif
  return broadcast(pairs);
}

// V registers with the first GROUP pairs of `num` rows of x, then with the next. Lanes past them are zero.
template <int V, int GROUP>
void lay_out(const bf16* x, int64_t num, int64_t in, bf16* to) {
  constexpr int WIDTH = 16 / GROUP, SIZE = 2 * GROUP;
  for (int64_t k = 0; k < in; k += STEP)
    for (int v = 0; v < V; v++) {
      bf16* first = to + (k * WIDTH * V) + v * STEP;
      i32x16 words[16] = {};
      for (int i = 0; i < WIDTH && v * WIDTH + i < num; i++)
        words[i] = load<i32x16>(x + (v * WIDTH + i) * in + k);
      if (GROUP == 1) transpose(words);
      for (int p = 0; p < WIDTH; p++) {
        bf16* at = first + p * V * STEP;
        if (GROUP == 1) std::memcpy(at, &words[p], sizeof words[p]);
        else
          for (int i = 0; i < WIDTH; i++)
            std::memcpy(at + i * SIZE, (const bf16*)&words[i] + p * SIZE, SIZE * sizeof(bf16));
      }
    }
}

// Where to find the weights of the next tile, and those that are asked for into the second cache.
struct Ask {
  const char *next, *ahead;
  int64_t row_bytes;
};

// sum[j] += M rows of a tile times V registers of x, or = where it is the first.
template <int M, int V, int GROUP, int STEP_BYTES>
INLINE void multiply_tile(f32x16 (*sum)[2], bool is_first, const bf16* tile, const bf16* x,
                          int64_t steps, Ask ask) {
  f32x16 acc[M][V] = {};
  for (int j = 0; j < M && !is_first; j++)
    for (int v = 0; v < V; v++) acc[j][v] = sum[j][v];
  for (int64_t s = 0; s < steps; s++) {
    if (ask.next) {
      for (int j = 0; j < M; j++) __builtin_prefetch(ask.next + j * ask.row_bytes);
      for (int b = 0; b < M * STEP_BYTES; b += LINE) __builtin_prefetch(ask.ahead + b, 0, 2);
      ask.next += STEP_BYTES;
      ask.ahead += M * STEP_BYTES;
    }
#pragma GCC unroll 2
    for (int p = 0; p < 16 / GROUP; p++) {
      Pairs xs[V];
      for (int v = 0; v < V; v++) xs[v] = pack(x + v * STEP, bf16{});
      for (int j = 0; j < M; j++) {
        const Pairs wj = spread<GROUP>(tile + j * STEP + p * 2 * GROUP);
        for (int v = 0; v < V; v++) acc[j][v] = dot(acc[j][v], xs[v], wj);
      }
      x += V * STEP;
    }
    tile += OUTS * STEP;
  }
  for (int j = 0; j < M; j++)
    for (int v = 0; v < V; v++) sum[j][v] = acc[j][v];
}

// Rows of W from `n` on, up to `last`, which is repeated.
template <class Rows>
INLINE void fill(bf16* tile, const Rows w, int64_t n, int64_t last, int64_t k, int64_t steps) {
  for (int j = 0; j < OUTS; j++, tile += STEP) {
    const int64_t row = std::min(n + j, last);
    bf16* to = tile;
#pragma GCC unroll 4
    for (int64_t s = 0; s < steps; s++, to += OUTS * STEP) {
      const Pairs numbers = w.scaled(row, k + s * STEP);
      std::memcpy(to, &numbers, sizeof numbers);
    }
  }
}

template <int V, int GROUP>
INLINE void finish(const Out<bf16>& to, const Sums& sums, const Share& share, int64_t n) {
  const int num = std::min<int64_t>(OUTS, to.out - n);
  f32x16 scale = splat(1), bias = {};
  if (to.scales) std::memcpy(&scale, to.scales + n, num * sizeof(float));
  for (int j = 0; to.bias && j < num; j++) bias[j] = widen_one(to.bias[n + j]);
  for (int v = 0; v < V; v++) {
    i32x16 lanes[16];
    for (int j = 0; j < OUTS; j++) lanes[j] = (i32x16)sums.of[j][v];
    transpose(lanes);
    for (int i = 0; i < 16 / GROUP && v * 16 + i < share.num; i++) {
      f32x16 y = (f32x16)lanes[i * GROUP];
      for (int g = 1; g < GROUP; g++) y += (f32x16)lanes[i * GROUP + g];
      bf16* at = to.y + (share.first + v * 16 + i) * to.out + n;
      if (num == OUTS) store(at, y * scale + bias, OUTS);
      else store(at, y * scale + bias, num);
    }
  }
}

// One tile's rows of W. The first share asks for what comes next.
template <class Rows>
INLINE void multiply_rows(const std::vector<Share>& shares, const bf16* xs, const Rows& w, int64_t in,
                          int64_t n, int64_t last, bf16* tile, Sums* sums) {
  for (int64_t k = 0; k < in; k += TILE_STEPS * STEP) {
    const int64_t steps = std::min(TILE_STEPS, (in - k) / STEP), next = k + steps * STEP;
    fill(tile, w, n, last, k, steps);
    Ask ask{next < in ? w.address(n, next) : w.address(n + OUTS, 0),
            w.address(n, 0) + OUTS * (w.address(0, k) - w.address(0, 0)) + AHEAD,
            w.address(1, 0) - w.address(0, 0)};
    for (const Share& share : shares) {
      const bf16* x = xs + share.first * in + share.width * k;
      by_width(share.width, [&](auto v, auto group) __attribute__((always_inline)) {
        constexpr int V = decltype(v)::value, M = OUTS / V, BYTES = Rows::STEP_BYTES;
        for (int j = 0; j < OUTS; j += M) {
          multiply_tile<M, V, decltype(group)::value, BYTES>(
              &sums[&share - &shares[0]].of[j], k == 0, tile + j * STEP, x, steps, ask);
          if (ask.next) ask.next += M * ask.row_bytes, ask.ahead += M * BYTES * steps;
        }
      });
      ask.next = nullptr;
    }
  }
}

template <class Rows>
void product_in_lanes(const Out<bf16>& to, const bf16* x, const Rows& w, int64_t in) {
  static thread_local std::vector<Pairs> x_memory, tile_memory(OUTS * TILE_STEPS);
  const std::vector<Share> shares = shares_of(to.rows);
  std::vector<Sums> sums(shares.size());
  const int64_t width = shares.back().first + shares.back().width;
  if ((int64_t)x_memory.size() < width * in / STEP) x_memory.resize(width * in / STEP);
  bf16 *xs = (bf16*)x_memory.data(), *tile = (bf16*)tile_memory.data();
  for (const Share& share : shares)
    by_width(share.width, [&](auto v, auto group) {
      lay_out<decltype(v)::value, decltype(group)::value>(x + share.first * in, share.num, in,
                                                          xs + share.first * in);
    });
  const int64_t num_tiles = (to.out + OUTS - 1) / OUTS;
#pragma omp for schedule(static)
  for (int64_t t = 0; t < num_tiles; t++) {
    multiply_rows(shares, xs, w, in, t * OUTS, to.out - 1, tile, sums.data());
    for (const Share& share : shares)
      by_width(share.width, [&](auto v, auto group) __attribute__((always_inline)) {
        finish<decltype(v)::value, decltype(group)::value>(to, sums[&share - &shares[0]], share,
                                                           t * OUTS);
      });
  }
}
}  // namespace
