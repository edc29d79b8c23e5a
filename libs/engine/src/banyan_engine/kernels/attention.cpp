// Attention of single rows over paged keys and values, which stay where they are. A context is cut
// into chunks that threads take one by one; each chunk keeps, per query head, the largest score,
// the sum of exponentials and the weighted sum of values, and a second pass joins the chunks. All
// heads of a block are done together, because together they lie side by side in memory.
#include "lanes.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

struct AttendArgs {  // as in native.py
  const void *q, *keys, *values;  // q [rows, heads, key_dim]; pools [slots, kv_heads, dim]
  void* out;                      // [rows, heads, value_dim]
  const int64_t* tables;          // [rows] addresses of block tables
  const int64_t* positions;       // [rows] the last position that a row sees
  int64_t rows, heads, kv_heads, key_dim, value_dim, block_size, window;  // window 0: none
  float scale, softcap;           // softcap 0: none
  int threads;
};

namespace {
constexpr int TILE = 16;       // keys at a time
constexpr int64_t CHUNK = 256; // keys that one thread takes at a time, a multiple of TILE
constexpr int MAX_DIM = 256;

struct Part {  // of one row, chunk and head: where its numbers lie
  float *top, *total, *sum;
};
struct Work {
  int64_t row, begin, end;
};

template <class T, class KV>
INLINE f32x16 scores(const T* q, const KV* keys, const int64_t* slots, int64_t stride, int64_t dim) {
  f32x16 acc[TILE];
  Pack<T> qs[MAX_DIM / STEP];
  const int64_t whole = dim / STEP;
  for (int64_t s = 0; s < whole; s++) qs[s] = pack(q + s * STEP, T{});
  for (int t = 0; t < TILE; t++) {
    const KV* k = keys + slots[t] * stride;
    f32x16 sum = splat(0.0f);
    for (int64_t s = 0; s < whole; s++) sum = dot(sum, qs[s], pack(k + s * STEP, T{}));
    if (dim % STEP) sum += widen(q + whole * STEP) * widen(k + whole * STEP);
    acc[t] = sum;
  }
  return sums(acc);
}

// sum[head] = sum[head] * keep[head] + the values of `n` slots, weighted; C times 16 channels.
template <int G, int C, class KV>
INLINE void add_channels(float* const* sum, const float* keep, const f32x16* weights,
                         const KV* values, const int64_t* slots, int n, int64_t stride) {
  f32x16 acc[G][C];
  for (int g = 0; g < G; g++)
    for (int c = 0; c < C; c++) acc[g][c] = widen(sum[g] + c * 16) * splat(keep[g]);
  for (int t = 0; t < n; t++)
    for (int c = 0; c < C; c++) {
      f32x16 v = widen(values + slots[t] * stride + c * 16);
      for (int g = 0; g < G; g++) acc[g][c] += v * splat(weights[g][t]);
    }
  for (int g = 0; g < G; g++)
    for (int c = 0; c < C; c++) store(sum[g] + c * 16, acc[g][c], 16);
}
template <int G, class KV>
INLINE void add_values(float** sum, const float* keep, const f32x16* weights, const KV* values,
                       const int64_t* slots, int n, int64_t stride, int64_t dim) {
  constexpr int C = 4;
  int64_t c = 0;
  auto move = [&](int count) {
    c += count * 16;
    for (int g = 0; g < G; g++) sum[g] += count * 16;
  };
  for (; c + C * 16 <= dim; move(C))
    add_channels<G, C>(sum, keep, weights, values + c, slots, n, stride);
  for (; c < dim; move(1)) add_channels<G, 1>(sum, keep, weights, values + c, slots, n, stride);
}

template <class KV>
INLINE void ask_for(const AttendArgs& a, int64_t kv_head, const int64_t* slots) {
  constexpr int64_t extra = std::is_same<KV, int8_t>::value ? sizeof(float) : 0;
  const void* pools[] = {a.keys, a.values};
  const int64_t sizes[] = {a.key_dim + extra, a.value_dim + extra};
  for (int i = 0; i < 2; i++)
    for (int t = 0; t < TILE; t++) {
      const KV* row = (const KV*)pools[i] + (slots[t] * a.kv_heads + kv_head) * sizes[i];
      for (int64_t c = 0; c < sizes[i]; c += 64 / sizeof(KV)) __builtin_prefetch(row + c);
    }
}

// Up to 4 query heads of one KV head over up to TILE slots.
template <int G, class T, class KV>
INLINE void tile(const AttendArgs& a, const T* q, int64_t kv_head, const int64_t* slots, int n,
                 const Part* parts) {
  // Behind the bytes of an int8 row stands its scale, a float.
  constexpr bool SCALED = std::is_same<KV, int8_t>::value;
  const int64_t extra = SCALED ? sizeof(float) : 0;
  const int64_t key_stride = a.kv_heads * (a.key_dim + extra);
  const int64_t value_stride = a.kv_heads * (a.value_dim + extra);
  const KV* keys = (const KV*)a.keys + kv_head * (a.key_dim + extra);
  const KV* values = (const KV*)a.values + kv_head * (a.value_dim + extra);
  f32x16 weights[G];
  float keep[G], *sum[G];
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  f32x16 key_scales = splat(a.scale), value_scales = splat(1.0f);
  if (SCALED)
    for (int t = 0; t < TILE; t++) {
      key_scales[t] *= load<float>(keys + slots[t] * key_stride + a.key_dim);
      value_scales[t] = load<float>(values + slots[t] * value_stride + a.value_dim);
    }
  for (int g = 0; g < G; g++) {
    f32x16 s = scores(q + g * a.key_dim, keys, slots, key_stride, a.key_dim);
    s *= key_scales;
    if (a.softcap > 0)
      for (int t = 0; t < TILE; t++) s[t] = a.softcap * std::tanh(s[t] / a.softcap);
    s = lane < n ? s : splat(-INFINITY);
    const float top = std::max(*parts[g].top, largest(s)[0]);
    f32x16 p = exp_lanes(s - splat(top));
    keep[g] = exp_lanes(splat(*parts[g].top - top))[0];
    *parts[g].top = top;
    *parts[g].total = *parts[g].total * keep[g] + total_of(p)[0];
    weights[g] = p * value_scales;
    sum[g] = parts[g].sum;
  }
  add_values<G>(sum, keep, weights, values, slots, n, value_stride, a.value_dim);
}

template <class T, class KV>
void chunk(const AttendArgs& a, const Work& work, const Part* parts) {
  const int64_t* table = (const int64_t*)a.tables[work.row];
  const T* q = (const T*)a.q + work.row * a.heads * a.key_dim;
  const int64_t group = a.heads / a.kv_heads;
  int64_t memory[2][TILE], *slots = memory[0], *next = memory[1];
  auto find = [&](int64_t t, int64_t* found) {  // positions past the end repeat the last one
    for (int64_t i = 0; i < TILE; i++) {
      const int64_t p = std::min(t + i, work.end - 1);
      found[i] = table[p / a.block_size] * a.block_size + p % a.block_size;
    }
  };
  find(work.begin, slots);
  for (int64_t t = work.begin; t < work.end; t += TILE, std::swap(slots, next)) {
    const int n = std::min<int64_t>(TILE, work.end - t);
    find(t + TILE, next);
    for (int64_t h = 0; h < a.kv_heads; h++) {
      const bool last = h == a.kv_heads - 1;
      ask_for<KV>(a, last ? 0 : h + 1, last ? next : slots);
      for (int64_t g = h * group; g < (h + 1) * group;) {
        const int64_t left = (h + 1) * group - g;
        const T* qg = q + g * a.key_dim;
        if (left >= 4) tile<4, T, KV>(a, qg, h, slots, n, parts + g), g += 4;
        else if (left >= 2) tile<2, T, KV>(a, qg, h, slots, n, parts + g), g += 2;
        else tile<1, T, KV>(a, qg, h, slots, n, parts + g), g += 1;
      }
    }
  }
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
void attend(const AttendArgs& a) {
  std::vector<Work> work;
  std::vector<int64_t> first_work;
  for (int64_t row = 0; row < a.rows; row++) {
    first_work.push_back(work.size());
    const int64_t end = a.positions[row] + 1;
    int64_t begin = a.window > 0 ? std::max<int64_t>(0, end - a.window) : 0;
    for (; begin < end; begin = (begin / CHUNK + 1) * CHUNK)
      work.push_back({row, begin, std::min(end, (begin / CHUNK + 1) * CHUNK)});
  }
  first_work.push_back(work.size());
  const int64_t num_parts = work.size() * a.heads, size = a.value_dim + 2;
  std::vector<float> memory(num_parts * size);
  std::vector<Part> parts(num_parts);
  for (int64_t i = 0; i < num_parts; i++) {
    float* p = &memory[i * size];
    parts[i] = {p, p + 1, p + 2};
    *p = -INFINITY;
  }
#pragma omp parallel num_threads(a.threads)
  {
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < work.size(); i++) chunk<T, KV>(a, work[i], &parts[i * a.heads]);
#pragma omp for
    for (int64_t row = 0; row < a.rows; row++)
      join<T>(a, row, &parts[first_work[row] * a.heads], first_work[row + 1] - first_work[row]);
  }
}
}  // namespace

// q and out are bfloat16 or float. The pools (kv_type) are 0 float, 1 bfloat16 or 2 int8 with scales;
// bfloat16 queries see no float pools. Dimensions are multiples of 16 and at most MAX_DIM, and each
// row sees at least one key.
extern "C" void banyan_attend(int is_bf16, int kv_type, const AttendArgs* args) {
  if (is_bf16)
    kv_type == 2 ? attend<bf16, int8_t>(*args) : attend<bf16, bf16>(*args);
  else if (kv_type == 0)
    attend<float, float>(*args);
  else
    kv_type == 2 ? attend<float, int8_t>(*args) : attend<float, bf16>(*args);
}
