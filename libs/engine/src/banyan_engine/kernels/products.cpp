// y = x W^T for few rows of x: what decoding does. W is read once, in the file's layout, so that
// nothing is kept twice; sums are fp32. Up to four rows, and wherever the CPU does not multiply
// bfloat16, rows of W go four at a time, rows of x up to four, each pair with its own accumulators,
// enough of them to hide the latency of a multiplication. More rows become lanes (row_lanes.h).
#include "parts.h"
#include "row_lanes.h"

namespace {
constexpr int NR = 4;

// MR rows of x by NR rows of W. Rows past the end repeat the last one and are not stored. On the
// way it asks for its share, by rows of x, of weights that come later.
template <int MR, class T, class Rows>
INLINE void block(const Out<T>& to, const T* x, int64_t ldx, const Rows& w, int64_t w_first,
                  int64_t m, int64_t n, int64_t in) {
  constexpr int U = 4 / MR;
  constexpr int64_t ASKED = NR * Rows::STEP_BYTES;
  const T* xs[MR];
  int64_t ws[NR];
  for (int i = 0; i < MR; i++) xs[i] = x + std::min(m + i, to.rows - 1) * ldx;
  for (int j = 0; j < NR; j++) ws[j] = std::min(n + j, to.out - 1) - w_first;
  f32x16 acc[U][16] = {};
  const char* ahead = w.address(ws[0], 0) + AHEAD;
  const int64_t ask = ASKED * m / to.rows, ask_end = std::min(ASKED * (m + MR) / to.rows, ASKED);
  int64_t k = 0;
  auto step = [&](int u) __attribute__((always_inline)) {
    Pack<T> wk[NR];
    for (int j = 0; j < NR; j++) wk[j] = w.at(ws[j], k);
    for (int64_t b = ask; b < ask_end; b += LINE) __builtin_prefetch(ahead + b, 0, 2);
    ahead += ASKED;
    for (int i = 0; i < MR; i++) {
      Pack<T> xk = pack(xs[i] + k, T{});
      for (int j = 0; j < NR; j++) {
        f32x16& sum = acc[u][i * NR + j];
        sum = Rows::SCALED ? sum + dot(splat(0), xk, wk[j]) * w.scale(ws[j], k)
                           : dot(sum, xk, wk[j]);
      }
    }
    k += STEP;
  };
  while (k + U * STEP <= in)
    for (int u = 0; u < U; u++) step(u);
  while (k < in) step(0);
  for (int u = 1; u < U; u++)
    for (int i = 0; i < MR * NR; i++) acc[0][i] += acc[u][i];
  f32x16 sum = sums(acc[0]);
  const int num_out = std::min<int64_t>(NR, to.out - n);
  for (int lane = 0; lane < MR * NR; lane++) {
    int64_t row = std::min(n + lane % NR, to.out - 1);
    if (to.scales) sum[lane] *= to.scales[row];
    if (to.bias) sum[lane] += widen_one(to.bias[row]);
  }
  float spread[16 + 16];
  store(spread, sum, 16);
  for (int i = 0; i < MR && m + i < to.rows; i++)
    store(to.y + (m + i) * to.out + n, load<f32x16>(spread + i * NR), num_out);
}

template <class T, class Rows>
INLINE void all_rows(const Out<T>& to, const T* x, int64_t ldx, const Rows& w, int64_t w_first,
                     int64_t n, int64_t in) {
  int64_t m = 0;
  for (; to.rows - m > 2; m += 4) block<4>(to, x, ldx, w, w_first, m, n, in);
  if (to.rows - m == 2) block<2>(to, x, ldx, w, w_first, m, n, in);
  if (to.rows - m == 1) block<1>(to, x, ldx, w, w_first, m, n, in);
}

// With many rows int4 is unpacked once, into a tile that stays in the cache. With fewer, and int8 always,
// it is quicker to unpack anew for each four rows.
template <class T, class Rows>
void product(const Out<T>& to, const T* x, const Rows& w, int64_t in) {
  const bool unpack = Rows::SCALED && to.rows > 16;
  const int64_t num_blocks = (to.out + NR - 1) / NR;
  std::vector<T> tile(unpack ? NR * in : 0);
#pragma omp for schedule(static)
  for (int64_t b = 0; b < num_blocks; b++) {
    const int64_t n = b * NR;
    if (!unpack) {
      all_rows(to, x, in, w, 0, n, in);
      continue;
    }
    for (int64_t j = 0; j < std::min<int64_t>(NR, to.out - n); j++)
      for (int64_t k = 0; k < in; k += STEP) {
        const Pack<T> numbers = w.scaled(n + j, k);
        std::memcpy(&tile[j * in + k], &numbers, sizeof numbers);
      }
    all_rows(to, x, in, DenseRows<T>{tile.data(), in}, n, n, in);
  }
}

#ifdef __AVX512BF16__
template <class Rows>
void product(const Out<bf16>& to, const bf16* x, const Rows& w, int64_t in) {
  if (to.rows > 4) product_in_lanes(to, x, w, in);
  else product<bf16, Rows>(to, x, w, in);
}
#endif

template <class T>
void dispatch(int format, const T* x, const void* w, const void* scales, const T* bias, T* y,
              int64_t rows, int64_t in, int64_t out) {
  Out<T> to{y, rows, out, format == 1 ? (const float*)scales : nullptr, bias};
  if (format == 0) product(to, x, DenseRows<T>{(const T*)w, in}, in);
  if (format == 1) product(to, x, Int8Rows<T>{(const int8_t*)w, in}, in);
  if (format == 2) product(to, x, Int4Rows<T>{(const uint8_t*)w, (const bf16*)scales, in}, in);
}
}  // namespace

void product_part(int is_bf16, int format, const void* x, const void* w, const void* scales,
                  const void* bias, void* y, int64_t rows, int64_t in, int64_t out) {
  if (is_bf16)
    dispatch(format, (const bf16*)x, w, scales, (const bf16*)bias, (bf16*)y, rows, in, out);
  else
    dispatch(format, (const float*)x, w, scales, (const float*)bias, (float*)y, rows, in, out);
}

// format 0 dense, 1 int8 with a float per row, 2 int4 with a bfloat16 per group. `in` is a
// multiple of STEP; x [rows, in], y [rows, out], W [out, in], all contiguous.
extern "C" void banyan_product(int is_bf16, int format, const void* x, const void* w,
                               const void* scales, const void* bias, void* y, int64_t rows,
                               int64_t in, int64_t out, int threads) {
#pragma omp parallel num_threads(threads)
  product_part(is_bf16, format, x, w, scales, bias, y, rows, in, out);
}
