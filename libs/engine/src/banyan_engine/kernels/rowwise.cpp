// What lies between the products of a layer, row by row: norms, rotary embeddings, gates, and the
// way of K and V into their slots. Each is a handful of torch operations otherwise, and with one row
// an operation costs as much as it takes to start it, with caches that the weights have just swept.
// Numbers are computed in fp32 and rounded once. Lengths are multiples of 16.
#include "parts.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace {
constexpr int LANES = 16;
constexpr int64_t FEW = 16;  // rows below which threads cost more than they bring

// y = x / rms(x) * weight
template <class T>
INLINE void norm_row(const T* x, const T* weight, T* y, int64_t dim, float eps) {
  f32x16 squares = splat(0.0f);
  for (int64_t c = 0; c < dim; c += LANES) squares += widen(x + c) * widen(x + c);
  const f32x16 factor = splat(1 / std::sqrt(total_of(squares)[0] / dim + eps));
  for (int64_t c = 0; c < dim; c += LANES)
    store(y + c, widen(x + c) * factor * widen(weight + c), LANES);
}

// The logistic function, without overflow.
INLINE f32x16 logistic(f32x16 x) {
  f32x16 e = exp_lanes(x < 0.0f ? x : -x);
  return (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
}

INLINE void keep_row(const bf16* x, bf16* to, int64_t dim) { std::memcpy(to, x, dim * sizeof *x); }
// A row that is not finite gets a NaN scale.
INLINE void keep_row(const bf16* x, int8_t* to, int64_t dim) {
  float top = 0;
  bool finite = true;
  for (int64_t c = 0; c < dim; c++) {
    const float size = std::fabs(widen_one(x[c]));
    finite &= size <= std::numeric_limits<float>::max();
    top = std::max(top, size);
  }
  const float scale = std::max(top / 127, std::numeric_limits<float>::min());
  for (int64_t c = 0; c < dim; c++)
    to[c] = finite ? (int8_t)std::nearbyint(widen_one(x[c]) / scale) : 0;
  const float kept = finite ? scale : NAN;
  std::memcpy(to + dim, &kept, sizeof kept);
}

template <class KV>
void keep(const bf16* x, KV* pool, const int64_t* slots, int64_t rows, int64_t stride,
          int64_t num_heads, int64_t dim, int64_t width) {
#pragma omp for collapse(2)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t h = 0; h < num_heads; h++)
      keep_row(x + row * stride + h * dim, pool + (slots[row] * num_heads + h) * width, dim);
}

// Few rows are done by one thread: more cost more than they bring.
int useful(int64_t rows, int threads) { return rows < FEW ? 1 : threads; }
}  // namespace

void norm_part(const bf16* x, const bf16* made, const bf16* weight, bf16* sum, bf16* y,
               int64_t rows, int64_t dim, float eps) {
#pragma omp for
  for (int64_t row = 0; row < rows; row++) {
    const bf16* from = x + row * dim;
    if (made) {
      bf16* to = sum + row * dim;
      for (int64_t c = 0; c < dim; c += LANES)
        store(to + c, widen(from + c) + widen(made + row * dim + c), LANES);
      from = to;
    }
    norm_row(from, weight, y + row * dim, dim, eps);
  }
}

void gate_part(const bf16* both, bf16* y, int64_t rows, int64_t dim, bool is_silu) {
#pragma omp for collapse(2)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t c = 0; c < dim; c += LANES) {
      f32x16 x = widen(both + row * 2 * dim + c), up = widen(both + (row * 2 + 1) * dim + c);
      f32x16 slope = is_silu ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
      store(y + row * dim + c, x * logistic(slope) * up, LANES);
    }
}

void rotate_part(bf16* heads, const bf16* cos, const bf16* sin, const int64_t* positions,
                 int64_t rows, int64_t stride, int64_t num_heads, int64_t dim, int64_t turning,
                 const bf16* q_norm, const bf16* k_norm, int64_t num_q, float eps) {
  const int64_t half = turning / 2;
#pragma omp for collapse(2)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t h = 0; h < num_heads; h++) {
      bf16* x = heads + row * stride + h * dim;
      const int64_t at = positions ? positions[row] : row;
      if (q_norm) norm_row(x, h < num_q ? q_norm : k_norm, x, dim, eps);
      for (int64_t c = 0; c < half; c += LANES) {
        const bf16 *co = cos + at * turning + c, *si = sin + at * turning + c;
        f32x16 left = widen(x + c), right = widen(x + half + c);
        store(x + c, left * widen(co) - right * widen(si), LANES);
        store(x + half + c, right * widen(co + half) + left * widen(si + half), LANES);
      }
    }
}

void keep_part(const bf16* x, void* pool, const int64_t* slots, bool is_int8, int64_t rows,
               int64_t stride, int64_t num_heads, int64_t dim) {
  if (is_int8)
    keep(x, (int8_t*)pool, slots, rows, stride, num_heads, dim, dim + (int64_t)sizeof(float));
  else
    keep(x, (bf16*)pool, slots, rows, stride, num_heads, dim, dim);
}

// `sum` becomes x + made where there is one; y is the norm of it. All [rows, dim].
extern "C" void banyan_norm(const void* x, const void* made, const void* weight, void* sum, void* y,
                            int64_t rows, int64_t dim, float eps, int threads) {
#pragma omp parallel num_threads(useful(rows, threads))
  norm_part((const bf16*)x, (const bf16*)made, (const bf16*)weight, (bf16*)sum, (bf16*)y, rows, dim,
            eps);
}

// y [rows, dim] = activation(left half) * right half of both [rows, 2 dim].
extern "C" void banyan_gate(const void* both, void* y, int64_t rows, int64_t dim, int is_silu,
                            int threads) {
#pragma omp parallel num_threads(useful(rows, threads))
  gate_part((const bf16*)both, (bf16*)y, rows, dim, is_silu);
}

// In place, the first `num_heads` heads of each row; the norms, if any, come before the turning.
extern "C" void banyan_rotate(void* heads, const void* cos, const void* sin, int64_t rows,
                              int64_t stride, int64_t num_heads, int64_t dim, int64_t turning,
                              const void* q_norm, const void* k_norm, int64_t num_q, float eps,
                              int threads) {
#pragma omp parallel num_threads(useful(rows, threads))
  rotate_part((bf16*)heads, (const bf16*)cos, (const bf16*)sin, nullptr, rows, stride, num_heads,
              dim, turning, (const bf16*)q_norm, (const bf16*)k_norm, num_q, eps);
}

// Rows of x [rows, num_heads, dim], `stride` apart, into slots of a pool of bfloat16 or int8.
extern "C" void banyan_keep(const void* x, void* pool, const int64_t* slots, int is_int8,
                            int64_t rows, int64_t stride, int64_t num_heads, int64_t dim,
                            int threads) {
#pragma omp parallel num_threads(useful(rows, threads))
  keep_part((const bf16*)x, pool, slots, is_int8, rows, stride, num_heads, dim);
}
