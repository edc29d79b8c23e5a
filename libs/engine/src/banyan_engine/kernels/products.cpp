// y = x W^T for few rows of x: what decoding does. W is read once, in the file's layout, so that
// nothing is kept twice; sums are fp32. Rows of W go four at a time, rows of x up to four, each
// pair with its own accumulators, enough of them to hide the latency of a multiplication.
#include "parts.h"

#include <algorithm>

namespace {
#define MEMBER inline __attribute__((always_inline))
constexpr int NR = 4;

// How a weight's rows lie: `at(row, k)` gives STEP numbers from channel k on, to be multiplied by
// `scale(row, k)` where they are SCALED.
template <class T>
struct DenseRows {
  static constexpr bool SCALED = false;
  const T* data;
  int64_t in;
  MEMBER Pack<T> at(int64_t row, int64_t k) const { return pack(data + row * in + k, T{}); }
  MEMBER f32x16 scale(int64_t, int64_t) const { return splat(1); }
  MEMBER const void* address(int64_t row, int64_t k) const { return data + row * in + k; }
};
template <class T>
struct Int8Rows {  // one scale belongs to the whole row and is applied at the end
  static constexpr bool SCALED = false;
  const int8_t* data;
  int64_t in;
  MEMBER Pack<T> at(int64_t row, int64_t k) const { return pack(data + row * in + k, T{}); }
  MEMBER f32x16 scale(int64_t, int64_t) const { return splat(1); }
  MEMBER const void* address(int64_t row, int64_t k) const { return data + row * in + k; }
};
template <class T>
struct Int4Rows {  // groups of STEP: byte j holds channels j (low half) and j + 16, plus 8
  static constexpr bool SCALED = true;
  const uint8_t* data;
  const bf16* scales;
  int64_t in;
  MEMBER Pack<T> at(int64_t row, int64_t k) const {
    return pack_nibbles(load<u8x16>(address(row, k)), T{});
  }
  MEMBER f32x16 scale(int64_t row, int64_t k) const { return splat(scales[(row * in + k) / STEP]); }
  MEMBER const void* address(int64_t row, int64_t k) const {
    return data + (uint64_t)(row * in + k) / 2;
  }
};

template <class T>
struct Out {
  T* y;
  int64_t rows, out;
  const float* scales;  // per row of W, or null
  const T* bias;        // per row of W, or null
};

// MR rows of x by NR rows of W. Rows past the end repeat the last one and are not stored. On the
// way it asks for its share, by rows of x, of the NR rows of W that come next.
template <int MR, class T, class Rows>
INLINE void block(const Out<T>& to, const T* x, int64_t ldx, const Rows& w, int64_t w_first,
                  int64_t m, int64_t n, int64_t in) {
  constexpr int U = 4 / MR;
  const T* xs[MR];
  int64_t ws[NR];
  for (int i = 0; i < MR; i++) xs[i] = x + std::min(m + i, to.rows - 1) * ldx;
  for (int j = 0; j < NR; j++) ws[j] = std::min(n + j, to.out - 1) - w_first;
  f32x16 acc[U][16] = {};
  const int64_t ask = NR * m / to.rows, ask_end = std::min(NR * (m + MR) / to.rows, (int64_t)NR);
  int64_t k = 0;
  auto step = [&](int u) __attribute__((always_inline)) {
    Pack<T> wk[NR];
    for (int j = 0; j < NR; j++) wk[j] = w.at(ws[j], k);
    for (int64_t j = ask; j < ask_end; j++) __builtin_prefetch(w.address(ws[0] + NR + j, k));
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

// Where `unpack` is set, weights are unpacked once, into a tile that stays in the cache.
template <class T, class Rows>
void product(const Out<T>& to, const T* x, int64_t ldx, const Rows& w, int64_t in, bool unpack) {
  const int64_t num_blocks = (to.out + NR - 1) / NR;
  std::vector<T> tile(unpack ? NR * in : 0);
#pragma omp for schedule(static)
  for (int64_t b = 0; b < num_blocks; b++) {
    const int64_t n = b * NR;
    if (!unpack) {
      all_rows(to, x, ldx, w, 0, n, in);
      continue;
    }
    for (int64_t j = 0; j < std::min<int64_t>(NR, to.out - n); j++)
      for (int64_t k = 0; k < in; k += STEP) {
        Pack<T> p = w.at(n + j, k);
        if (Rows::SCALED) p = times(p, w.scale(n + j, k));
        std::memcpy(&tile[j * in + k], &p, sizeof p);
      }
    all_rows(to, x, ldx, DenseRows<T>{tile.data(), in}, n, n, in);
  }
}

template <class T>
void dispatch(int format, const T* x, const void* w, const void* scales, const T* bias, T* y,
              int64_t rows, int64_t in, int64_t out) {
  Out<T> to{y, rows, out, format == 1 ? (const float*)scales : nullptr, bias};
  const bool many = rows > 16;  // below, unpacking anew for each 4 rows is quicker; int8 always is
  if (format == 0) product(to, x, in, DenseRows<T>{(const T*)w, in}, in, false);
  if (format == 1) product(to, x, in, Int8Rows<T>{(const int8_t*)w, in}, in, false);
  if (format == 2)
    product(to, x, in, Int4Rows<T>{(const uint8_t*)w, (const bf16*)scales, in}, in, many);
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
