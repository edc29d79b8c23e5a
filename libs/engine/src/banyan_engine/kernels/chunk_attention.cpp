// Attention of a chunk: many tokens of one sequence over paged keys and values, which stay where they
// are. A thread takes some tokens with all query heads of one KV head, and goes through the keys tile
// by tile: the tile's keys and values are laid out once for all rows, as pairs of numbers that `dot`
// multiplies, then each few rows get their scores, exponentials and weighted sums of values. Scores
// are fp32; weights are rounded to bfloat16 before they multiply values.
#include "pairs.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

struct ChunkArgs {  // as in chunks.py
  const void *q, *keys, *values;  // q [tokens, heads, key_dim], tokens `q_stride` apart; pools
  void* out;                      // [tokens, heads, value_dim]
  const int64_t* table;           // block ids from position 0 on
  int64_t tokens, start, q_stride, heads, kv_heads, key_dim, value_dim, block_size;
  int64_t window;                 // 0: none
  float scale, softcap;           // softcap 0: none
  int threads;
};

namespace {
constexpr int64_t TILE = 128;       // keys at a time, a multiple of NV * 16
constexpr int64_t ROWS = MR * 32;   // rows that share a tile, where there are so many
constexpr float LOWEST = -1e30f;    // below any score; finite, so that differences are numbers
constexpr float LOG2E = 1.44269504f;

// 2^x for x <= 0 to 5e-6, as exact as bfloat16 weights need; below -125 it is 0. NaN stays NaN.
INLINE f32x16 exp2_lanes(f32x16 x) {
  f32x16 clamped = x < -125.0f ? splat(-125.0f) : x;
  f32x16 whole = clamped + 12582912.0f;  // rounds: 1.5 * 2^23 has no fraction bits
  i32x16 power = (i32x16)whole - 0x4b400000;
  f32x16 r = clamped - (whole - 12582912.0f);
  f32x16 y = 0.00967029f * r + 0.0555041f;
  y = y * r + 0.24022651f;
  y = y * r + 0.6931472f;
  y = y * r + 1.0f;
  y = y * (f32x16)((power + 127) << 23);
  return x < -125.0f ? splat(0.0f) : y;
}
INLINE f32x16 tanh_lanes(f32x16 x) {
  f32x16 e = exp_lanes(x < 0.0f ? 2.0f * x : -2.0f * x);
  f32x16 y = (1.0f - e) / (1.0f + e);
  return x < 0.0f ? -y : y;
}

// Up to STEP channels of a row, zeros past `num`.
template <class KV>
INLINE Pairs channels(const KV* row, int64_t num) {
  if (num >= STEP) return pack(row, bf16{});
  return pack(widen(row), splat(0.0f), bf16{});
}

// A tile's keys as [key_dim / 2][TILE] pairs of channels, its values as [TILE / 2][value_dim] pairs
// of keys, and the scales of int8 rows. Positions past `num` are zeros.
struct Tile {
  std::vector<bf16> keys, values;
  float key_scales[TILE], value_scales[TILE];

  explicit Tile(const ChunkArgs& a) : keys(a.key_dim * TILE), values(a.value_dim * TILE) {}

  template <class KV>
  void fill(const ChunkArgs& a, int64_t kv_head, int64_t begin, int64_t num) {
    constexpr bool SCALED = std::is_same<KV, int8_t>::value;
    const int64_t extra = SCALED ? sizeof(float) : 0;
    const KV *key_rows[TILE], *value_rows[TILE];
    for (int64_t t = 0; t < num; t++) {
      const int64_t p = begin + t;
      const int64_t slot = a.table[p / a.block_size] * a.block_size + p % a.block_size;
      const int64_t row = slot * a.kv_heads + kv_head;
      key_rows[t] = (const KV*)a.keys + row * (a.key_dim + extra);
      value_rows[t] = (const KV*)a.values + row * (a.value_dim + extra);
      if (SCALED) {
        key_scales[t] = load<float>(key_rows[t] + a.key_dim);
        value_scales[t] = load<float>(value_rows[t] + a.value_dim);
      }
    }
    if (SCALED)
      for (int64_t t = num; t < TILE; t++) key_scales[t] = value_scales[t] = 0;
    fill_keys(a.key_dim, key_rows, num);
    fill_values(a.value_dim, value_rows, num);
  }

  template <class KV>
  void fill_keys(int64_t dim, const KV* const* rows, int64_t num) {
    for (int64_t t = 0; t < TILE; t += 16)
      for (int64_t c = 0; c < dim; c += STEP) {
        i32x16 words[16] = {};
        for (int64_t i = 0; i < std::min<int64_t>(16, num - t); i++)
          words[i] = (i32x16)channels(rows[t + i] + c, dim - c).all;
        transpose(words);
        for (int64_t i = 0; i < std::min<int64_t>(16, (dim - c) / 2); i++)
          std::memcpy(&keys[2 * ((c / 2 + i) * TILE + t)], &words[i], sizeof words[i]);
      }
  }

  template <class KV>
  void fill_values(int64_t dim, const KV* const* rows, int64_t num) {
    for (int64_t t = 0; t < TILE; t += 2)
      for (int64_t c = 0; c < dim; c += 16) {
        u32x16 low = {}, high = {};  // a bfloat16 is the upper half of a float
        if (t < num) low = (u32x16)widen(rows[t] + c);
        if (t + 1 < num) high = (u32x16)widen(rows[t + 1] + c);
        u32x16 pairs = (low >> 16) | high;
        std::memcpy(&values[t * dim + 2 * c], &pairs, sizeof pairs);
      }
  }
};

struct Rows {  // MR rows of a chunk: their queries, what they see, and what they have so far
  const bf16* q[MR];
  int64_t positions[MR];
  float *top, *total, *sum;  // [MR], [MR], [MR][value_dim]
};

// Scores of the rows with a tile's first `num` keys, times log2(e), hidden ones below all others.
template <class KV>
INLINE void score(const ChunkArgs& a, const Rows& rows, const Tile& tile, int64_t begin, int64_t num,
                  float (*scores)[TILE]) {
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t t = 0; t < num; t += NV * 16) {
    f32x16 made[MR][NV] = {};
    multiply<NV>(made, rows.q, &tile.keys[2 * t], TILE, a.key_dim / 2);
    const bool whole = begin + t + NV * 16 - 1 <= rows.positions[0] &&
                       (!a.window || begin + t > rows.positions[MR - 1] - a.window);
    for (int i = 0; i < MR; i++)
      for (int v = 0; v < NV; v++) {
        f32x16 s = made[i][v] * a.scale;
        if (std::is_same<KV, int8_t>::value) s *= widen(tile.key_scales + t + v * 16);
        if (a.softcap > 0) s = a.softcap * tanh_lanes(s / a.softcap);
        s *= LOG2E;
        if (!whole) {
          const i32x16 key = lane + (int)(begin + t + v * 16 - rows.positions[i]);
          s = key > 0 ? splat(-INFINITY) : s;
          if (a.window) s = key <= (int)-a.window ? splat(-INFINITY) : s;
        }
        store(&scores[i][t + v * 16], s, 16);
      }
  }
}

// Scores become weights, and what the rows have so far is to be multiplied by `keep`.
template <class KV>
INLINE void weigh(const Rows& rows, const Tile& tile, int64_t num, float (*scores)[TILE],
                  bf16 (*weights)[TILE], float* keep) {
  for (int i = 0; i < MR; i++) {
    f32x16 most = splat(rows.top[i]), total = splat(0.0f);
    for (int64_t t = 0; t < num; t += 16) {
      f32x16 s = widen(&scores[i][t]);
      most = s > most ? s : most;
    }
    const f32x16 top = largest(most);
    for (int64_t t = 0; t < num; t += STEP) {
      f32x16 low = exp2_lanes(widen(&scores[i][t]) - top);
      f32x16 high = exp2_lanes(widen(&scores[i][t + 16]) - top);
      total += low + high;
      if (std::is_same<KV, int8_t>::value) {
        low *= widen(tile.value_scales + t);
        high *= widen(tile.value_scales + t + 16);
      }
      const Pairs rounded = pack(low, high, bf16{});
      std::memcpy(&weights[i][t], &rounded, sizeof rounded);
    }
    keep[i] = exp2_lanes(splat(rows.top[i]) - top)[0];
    rows.top[i] = top[0];
    rows.total[i] = rows.total[i] * keep[i] + total_of(total)[0];
  }
}

template <int V>
INLINE void add_channels(float* sum, int64_t dim, const float* keep, const bf16* const* weights,
                         const bf16* values, int64_t num) {
  f32x16 made[MR][V];
  for (int i = 0; i < MR; i++)
    for (int v = 0; v < V; v++) made[i][v] = widen(sum + i * dim + v * 16) * keep[i];
  multiply<V>(made, weights, values, dim, num / 2);
  for (int i = 0; i < MR; i++)
    for (int v = 0; v < V; v++) store(sum + i * dim + v * 16, made[i][v], 16);
}

template <class KV>
void add_tile(const ChunkArgs& a, const Rows& rows, const Tile& tile, int64_t begin) {
  const int64_t end = rows.positions[MR - 1] + 1, dim = a.value_dim;
  if (end <= begin || (a.window && rows.positions[0] - a.window >= begin + TILE - 1)) return;
  const int64_t step = NV * 16, num = std::min(TILE, (end - begin + step - 1) / step * step);
  alignas(64) float scores[MR][TILE];
  alignas(64) bf16 weights[MR][TILE];
  float keep[MR];
  score<KV>(a, rows, tile, begin, num, scores);
  weigh<KV>(rows, tile, num, scores, weights, keep);
  const bf16* by[MR];
  for (int i = 0; i < MR; i++) by[i] = weights[i];
  int64_t c = 0;
  for (; c + NV * 16 <= dim; c += NV * 16)
    add_channels<NV>(rows.sum + c, dim, keep, by, &tile.values[2 * c], num);
  for (; c < dim; c += 16) add_channels<1>(rows.sum + c, dim, keep, by, &tile.values[2 * c], num);
}

// Some tokens, from `first` on, with the query heads of one KV head; rows go token by token. Rows past
// the end repeat the last one and are not stored.
template <class KV>
void some_tokens(const ChunkArgs& a, int64_t kv_head, int64_t first, int64_t tokens, Tile& tile) {
  const int64_t group = a.heads / a.kv_heads, num = tokens * group, dim = a.value_dim;
  std::vector<Rows> rows((num + MR - 1) / MR);
  std::vector<float> memory(rows.size() * MR * (dim + 2));
  auto token = [&](int64_t row) { return first + std::min(row, num - 1) / group; };
  auto head = [&](int64_t row) { return kv_head * group + std::min(row, num - 1) % group; };
  for (size_t r = 0; r < rows.size(); r++) {
    float* at = &memory[r * MR * (dim + 2)];
    rows[r].top = at, rows[r].total = at + MR, rows[r].sum = at + 2 * MR;
    for (int64_t i = 0; i < MR; i++) {
      const int64_t row = r * MR + i;
      rows[r].q[i] = (const bf16*)a.q + token(row) * a.q_stride + head(row) * a.key_dim;
      rows[r].positions[i] = a.start + token(row);
      rows[r].top[i] = LOWEST;
    }
  }
  const int64_t end = a.start + first + tokens;
  int64_t begin = a.window ? std::max<int64_t>(0, a.start + first - a.window + 1) : 0;
  for (; begin < end; begin += TILE) {
    tile.fill<KV>(a, kv_head, begin, std::min(TILE, end - begin));
    for (const Rows& each : rows) add_tile<KV>(a, each, tile, begin);
  }
  for (int64_t row = 0; row < num; row++) {
    const Rows& from = rows[row / MR];
    bf16* to = (bf16*)a.out + (token(row) * a.heads + head(row)) * dim;
    const float share = 1 / from.total[row % MR];
    for (int64_t c = 0; c < dim; c += 16)
      store(to + c, widen(from.sum + row % MR * dim + c) * share, 16);
  }
}

template <class KV>
void attend(const ChunkArgs& a) {
  const int64_t most = std::max<int64_t>(1, ROWS / (a.heads / a.kv_heads));
  const int64_t num_parts = (a.tokens + most - 1) / most;
#pragma omp parallel num_threads(a.threads)
  {
    Tile tile(a);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < num_parts * a.kv_heads; i++) {
      const int64_t first = (num_parts - 1 - i / a.kv_heads) * most;  // the longest come first
      some_tokens<KV>(a, i % a.kv_heads, first, std::min(most, a.tokens - first), tile);
    }
  }
}
}  // namespace

// q and out are bfloat16, the pools bfloat16 or int8 with scales; dimensions are multiples of 16.
extern "C" void banyan_attend_chunk(int is_int8, const ChunkArgs* args) {
  is_int8 ? attend<int8_t>(*args) : attend<bf16>(*args);
}
