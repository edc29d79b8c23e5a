// Attention of single rows over paged keys and values, which stay where they are. A context is cut
// into chunks that threads take one by one; each chunk keeps, per query head, the largest score,
// the sum of exponentials and the weighted sum of values, and a second pass joins the chunks. All
// heads of a block are done together, because together they lie side by side in memory.
#include "parts.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace {
constexpr int TILE = 16;        // keys at a time
constexpr int64_t CHUNK = 256;  // keys that one thread takes at a time, a multiple of TILE
constexpr int64_t NUM_TILES = CHUNK / TILE;
constexpr int64_t ENOUGH = 4;  // chunks for each thread, so that they end at about the same time

using Part = AttendPlan::Part;

// One of the two pools: rows of all KV heads lie side by side, `width` elements each.
template <class KV>
struct Pool {
  const KV* data;
  int64_t dim, width, stride;
  Pool(const void* pool, int64_t dim, int64_t kv_heads)  // an int8 row's scale stands behind it
      : data((const KV*)pool),
        dim(dim),
        width(dim + (SCALED ? sizeof(float) : 0)),
        stride(kv_heads * width) {}
  static constexpr bool SCALED = std::is_same<KV, int8_t>::value;

  f32x16 scales(int64_t head, const int64_t* slots) const {
    f32x16 found = splat(1.0f);
    if (SCALED)
      for (int t = 0; t < TILE; t++)
        found[t] = load<float>(data + slots[t] * stride + head * width + dim);
    return found;
  }
};

// Asks for a tile that comes later, one head's row at a time, in the order in which they lie: as
// many requests as are read meanwhile keep the memory busy, and more at once stall the core.
template <class KV>
struct Ahead {
  const Pool<KV>& pool;
  const int64_t* slots;
  int64_t first, end, head = first, row = 0;  // KV heads
  MEMBER void ask() {
    const KV* at = pool.data + slots[row] * pool.stride + head * pool.width;
    for (int64_t c = 0; c < pool.width; c += 64 / sizeof(KV)) __builtin_prefetch(at + c);
    if (++head == end) head = first, row++;
  }
};

// Of G query heads that share a KV head and a tile of its keys, before scaling.
template <int G, class T, class KV>
INLINE void scores(const T* q, const Pool<KV>& keys, int64_t head, const int64_t* slots,
                   f32x16* found, Ahead<KV>* ahead) {
  f32x16 acc[G][TILE];
  const int64_t dim = keys.dim, whole = dim / STEP * STEP;
  for (int t = 0; t < TILE; t++) {
    const KV* k = keys.data + slots[t] * keys.stride + head * keys.width;
    if (ahead) ahead->ask();
    f32x16 sum[G];
    for (int g = 0; g < G; g++) sum[g] = splat(0.0f);
    for (int64_t c = 0; c < whole; c += STEP) {
      const Pack<T> some = pack(k + c, T{});
      for (int g = 0; g < G; g++) sum[g] = dot(sum[g], pack(q + g * dim + c, T{}), some);
    }
    if (whole < dim)
      for (int g = 0; g < G; g++) sum[g] += widen(q + g * dim + whole) * widen(k + whole);
    for (int g = 0; g < G; g++) acc[g][t] = sum[g];
  }
  for (int g = 0; g < G; g++) found[g] = sums(acc[g]);
}

// acc[head][c] += the values of a tile's slots, weighted; C times 16 channels.
template <int G, int C, class KV, class T>
INLINE void add_channels(f32x16 (*acc)[C], const f32x16* weights, const KV* values,
                         const int64_t* slots, int64_t stride, T,
                         Ahead<KV>* ahead) {
  for (int t = 0; t < TILE; t++) {
    if (ahead) ahead->ask();
    for (int c = 0; c < C; c++) {
      f32x16 v = widen(values + slots[t] * stride + c * 16);
      for (int g = 0; g < G; g++) acc[g][c] += v * splat(weights[g][t]);
    }
  }
}
#ifdef __AVX512BF16__
// C times 16 channels of two rows, channel by channel side by side.
template <int C, class KV>
INLINE void side_by_side(const KV* one, const KV* other, Pack<bf16>* to) {
  for (int c = 0; c < C; c++)
    to[c] = {(u16x32)((u32x16)widen(one + c * 16) >> 16 | (u32x16)widen(other + c * 16))};
}
template <int C>
INLINE void side_by_side(const bf16* one, const bf16* other, Pack<bf16>* to) {
  if (C % 2) return side_by_side<C, bf16>(one, other, to);
  for (int c = 0; c < C; c += 2) {
    u16x32 a = load<u16x32>(one + c * 16), b = load<u16x32>(other + c * 16);
    to[c] = {__builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8,
                                     40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47)};
    to[c + 1] = {__builtin_shufflevector(a, b, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22,
                                         54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61,
                                         30, 62, 31, 63)};
  }
}
// With weights in bfloat16 two slots go at once: a channel's two values side by side, as `dot` wants.
template <int G, int C, class KV>
INLINE void add_channels(f32x16 (*acc)[C], const f32x16* weights, const KV* values,
                         const int64_t* slots, int64_t stride, bf16,
                         Ahead<KV>* ahead) {
  uint32_t pairs[G][TILE / 2];
  for (int g = 0; g < G; g++) store((bf16*)pairs[g], weights[g], TILE);
  for (int t = 0; t < TILE; t += 2) {
    const KV *one = values + slots[t] * stride, *other = values + slots[t + 1] * stride;
    Pack<bf16> side[C];
    if (ahead) ahead->ask(), ahead->ask();
    side_by_side<C>(one, other, side);
    for (int g = 0; g < G; g++) {
      const Pack<bf16> pair = {(u16x32)_mm512_set1_epi32((int)pairs[g][t / 2])};
      for (int c = 0; c < C; c++) acc[g][c] = dot(acc[g][c], side[c], pair);
    }
  }
}
#endif

template <int G, class T, class KV>
INLINE void add_values(const Part* parts, const f32x16* weights, const Pool<KV>& values,
                       int64_t head, const int64_t* slots, Ahead<KV>* ahead) {
  const KV* from = values.data + head * values.width;
  auto add = [&](auto count, int64_t c) __attribute__((always_inline)) {
    constexpr int C = decltype(count)::value;
    f32x16 acc[G][C];
    for (int g = 0; g < G; g++)
      for (int i = 0; i < C; i++) acc[g][i] = widen(parts[g].sum + c + i * 16);
    add_channels<G, C>(acc, weights, from + c, slots, values.stride, T{}, c ? nullptr : ahead);
    for (int g = 0; g < G; g++)
      for (int i = 0; i < C; i++) store(parts[g].sum + c + i * 16, acc[g][i], 16);
  };
  int64_t c = 0;
  for (; c + 64 <= values.dim; c += 64) add(std::integral_constant<int, 4>{}, c);
  for (; c + 32 <= values.dim; c += 32) add(std::integral_constant<int, 2>{}, c);
  for (; c < values.dim; c += 16) add(std::integral_constant<int, 1>{}, c);
}

// The query heads of a KV head, four, two or one at a time.
template <class Work>
INLINE void by_groups(int64_t group, Work work) {
  int64_t g = 0;
  for (; g + 4 <= group; g += 4) work(std::integral_constant<int, 4>{}, g);
  for (; g + 2 <= group; g += 2) work(std::integral_constant<int, 2>{}, g);
  if (g < group) work(std::integral_constant<int, 1>{}, g);
}

// Scores to weights, in place, and what they come to.
INLINE void exponentials(f32x16* row, int64_t n, float softcap, const Part& part) {
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int64_t num_tiles = (n + TILE - 1) / TILE;
  f32x16 top = splat(-INFINITY), total = splat(0.0f);
  for (int64_t i = 0; i < num_tiles; i++) {
    if (softcap > 0)
      for (int t = 0; t < TILE; t++) row[i][t] = softcap * std::tanh(row[i][t] / softcap);
    row[i] = lane < (int)(n - i * TILE) ? row[i] : splat(-INFINITY);
    top = row[i] > top ? row[i] : top;
  }
  top = largest(top);
  for (int64_t i = 0; i < num_tiles; i++) total += row[i] = exp_lanes(row[i] - top);
  *part.top = top[0];
  *part.total = total_of(total)[0];
}

// Query heads of one row over some of its keys: all scores, then weights, then all values.
template <class T, class KV>
void chunk(const AttendArgs& a, const AttendPlan::Work& work, const Part* parts, f32x16* weights) {
  const Pool<KV> keys(a.keys, a.key_dim, a.kv_heads), values(a.values, a.value_dim, a.kv_heads);
  const T* q = (const T*)a.q + work.row * a.q_stride;
  const int64_t* table = (const int64_t*)a.tables[work.row];
  const int64_t group = a.heads / a.kv_heads, n = work.end - work.begin;
  const int64_t num_tiles = (n + TILE - 1) / TILE;
  int64_t slots[CHUNK + TILE];
  int64_t block = work.begin / a.block_size, place = work.begin % a.block_size;
  for (int64_t i = 0; i < n; i++) {
    slots[i] = table[block] * a.block_size + place;
    if (++place == a.block_size) place = 0, block++;
  }
  for (int64_t i = n; i < num_tiles * TILE; i++) slots[i] = slots[n - 1];
  // While a tile is read the next one is asked for: the last of the keys asks for values.
  auto each_head = [&](const Pool<KV>& pool, auto visit) __attribute__((always_inline)) {
    for (int64_t tile = 0; tile < num_tiles; tile++) {
      const bool last = tile + 1 == num_tiles;
      Ahead<KV> ahead{last ? values : pool, slots + (last ? 0 : (tile + 1) * TILE), work.head,
                      work.head_end};
      for (int64_t h = work.head; h < work.head_end; h++) visit(tile, h, slots + tile * TILE, ahead);
    }
  };
  each_head(keys, [&](int64_t tile, int64_t h, const int64_t* at,
                      Ahead<KV>& ahead) __attribute__((always_inline)) {
    const f32x16 scales = keys.scales(h, at) * a.scale;
    by_groups(group, [&](auto count, int64_t g) __attribute__((always_inline)) {
      constexpr int G = decltype(count)::value;
      const int64_t first = h * group + g;
      f32x16 found[G];
      scores<G>(q + first * a.key_dim, keys, h, at, found, g ? nullptr : &ahead);
      for (int i = 0; i < G; i++) weights[(first + i) * NUM_TILES + tile] = found[i] * scales;
    });
  });
  for (int64_t h = work.head * group; h < work.head_end * group; h++) {
    exponentials(weights + h * NUM_TILES, n, a.softcap, parts[h]);
    std::memset(parts[h].sum, 0, a.value_dim * sizeof(float));
  }
  each_head(values, [&](int64_t tile, int64_t h, const int64_t* at,
                      Ahead<KV>& ahead) __attribute__((always_inline)) {
    const f32x16 scales = values.scales(h, at);
    by_groups(group, [&](auto count, int64_t g) __attribute__((always_inline)) {
      constexpr int G = decltype(count)::value;
      const int64_t first = h * group + g;
      f32x16 scaled[G];
      for (int i = 0; i < G; i++) scaled[i] = weights[(first + i) * NUM_TILES + tile] * scales;
      add_values<G, T>(parts + first, scaled, values, h, at, g ? nullptr : &ahead);
    });
  });
}

template <class T>
void join(const AttendArgs& a, int64_t row, const Part* parts, int64_t num_parts) {
  for (int64_t h = 0; h < a.heads; h++) {
    float top = -INFINITY, total = 0;
    for (int64_t i = 0; i < num_parts; i++) top = std::max(top, *parts[i * a.heads + h].top);
    std::vector<float> sum(a.value_dim);
    for (int64_t i = 0; i < num_parts; i++) {
      const Part& part = parts[i * a.heads + h];
      const float weight = std::exp(*part.top - top);
      total += weight * *part.total;
      for (int64_t c = 0; c < a.value_dim; c++) sum[c] += weight * part.sum[c];
    }
    for (int64_t c = 0; c < a.value_dim; c++) sum[c] /= total;
    T* out = (T*)a.out + (row * a.heads + h) * a.value_dim;
    for (int64_t c = 0; c < a.value_dim; c += 16) store(out + c, widen(&sum[c]), 16);
  }
}

template <class T, class KV>
void attend(const AttendArgs& a, const AttendPlan& plan) {
  std::vector<f32x16> weights(a.heads * NUM_TILES);
#pragma omp for schedule(dynamic)
  for (size_t i = 0; i < plan.work.size(); i++)
    chunk<T, KV>(a, plan.work[i], &plan.parts[plan.work[i].chunk * a.heads], weights.data());
#pragma omp for
  for (int64_t row = 0; row < a.rows; row++) {
    const int64_t first = plan.first_chunk[row];
    join<T>(a, row, &plan.parts[first * a.heads], plan.first_chunk[row + 1] - first);
  }
}
}  // namespace

AttendPlan::AttendPlan(const AttendArgs& a) {
  std::vector<Work> chunks;
  for (int64_t row = 0; row < a.rows; row++) {
    first_chunk.push_back(chunks.size());
    const int64_t end = a.positions[row] + 1;
    int64_t begin = a.window > 0 ? std::max<int64_t>(0, end - a.window) : 0;
    for (; begin < end; begin = (begin / CHUNK + 1) * CHUNK)
      chunks.push_back({row, begin, std::min(end, (begin / CHUNK + 1) * CHUNK),
                        (int64_t)chunks.size(), 0, a.kv_heads});
  }
  first_chunk.push_back(chunks.size());
  const bool few = (int64_t)chunks.size() < a.threads * ENOUGH;
  const int64_t share = few ? (a.kv_heads + a.threads - 1) / a.threads : a.kv_heads;
  for (Work each : chunks)
    for (int64_t head = 0; head < a.kv_heads; head += share) {
      each.head = head, each.head_end = std::min(head + share, a.kv_heads);
      work.push_back(each);
    }
  const int64_t num_parts = chunks.size() * a.heads, size = a.value_dim + 2;
  memory.reset(new float[num_parts * size]);
  for (int64_t i = 0; i < num_parts; i++) {
    float* p = memory.get() + i * size;
    parts.push_back({p, p + 1, p + 2});
  }
}

void attend_part(int is_bf16, int kv_type, const AttendArgs& args, const AttendPlan& plan) {
  if (is_bf16)
    kv_type == 2 ? attend<bf16, int8_t>(args, plan) : attend<bf16, bf16>(args, plan);
  else if (kv_type == 0)
    attend<float, float>(args, plan);
  else
    kv_type == 2 ? attend<float, int8_t>(args, plan) : attend<float, bf16>(args, plan);
}

// q and out are bfloat16 or float. The pools (kv_type) are 0 float, 1 bfloat16 or 2 int8 with scales;
// bfloat16 queries see no float pools. Dimensions are multiples of 16, and each row sees at least
// one key.
extern "C" void banyan_attend(int is_bf16, int kv_type, const AttendArgs* args) {
  const AttendPlan plan(*args);
#pragma omp parallel num_threads(args->threads)
  attend_part(is_bf16, kv_type, *args, plan);
}
