// How the rows of a weight lie in memory: `at(row, k)` gives STEP numbers from channel k on, to be
// multiplied by `scale(row, k)` where they are SCALED; `scaled(row, k)` gives them multiplied.
#pragma once
#include "lanes.h"

template <class T, class Number>
struct PlainRows {
  static constexpr bool SCALED = false;
  static constexpr int STEP_BYTES = STEP * sizeof(Number);
  const Number* data;
  int64_t in;
  MEMBER Pack<T> at(int64_t row, int64_t k) const { return pack(data + row * in + k, T{}); }
  MEMBER f32x16 scale(int64_t, int64_t) const { return splat(1); }
  MEMBER Pack<T> scaled(int64_t row, int64_t k) const { return at(row, k); }
  MEMBER const char* address(int64_t row, int64_t k) const {
    return (const char*)(data + row * in + k);
  }
};
template <class T>
using DenseRows = PlainRows<T, T>;
template <class T>
using Int8Rows = PlainRows<T, int8_t>;  // one scale belongs to a whole row and is applied at the end
template <class T>
struct Int4Rows {  // groups of STEP: byte j holds channels j (low half) and j + 16, plus 8
  static constexpr bool SCALED = true;
  static constexpr int STEP_BYTES = STEP / 2;
  const uint8_t* data;
  const bf16* scales;
  int64_t in;
  MEMBER Pack<T> at(int64_t row, int64_t k) const {
    return pack_nibbles(load<u8x16>(address(row, k)), T{});
  }
  MEMBER f32x16 scale(int64_t row, int64_t k) const { return splat(scales[(row * in + k) / STEP]); }
  MEMBER Pack<T> scaled(int64_t row, int64_t k) const {
    return pack_nibbles(load<u8x16>(address(row, k)), scale(row, k), T{});
  }
  MEMBER const char* address(int64_t row, int64_t k) const {
    return (const char*)(data + (uint64_t)(row * in + k) / 2);
  }
};

// Weights are asked for in the order in which they lie, so far before they are used, into the second
// cache. Asked for by the row, 2 KiB apart, they came at half the rate.
constexpr int64_t AHEAD = 64 << 10, LINE = 64;

template <class T>
struct Out {
  T* y;
  int64_t rows, out;
  const float* scales;  // per row of W, or null
  const T* bias;        // per row of W, or null
};
