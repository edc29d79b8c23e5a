// Parts of a layer, each done together by the threads of a parallel region that the caller has
// opened, and done by all of them when it returns.
#pragma once
#include <memory>
#include <vector>

#include "lanes.h"

struct AttendArgs {  // as in native.py
  const void *q, *keys, *values;  // q [rows, heads, key_dim]; pools [slots, kv_heads, dim]
  void* out;                      // [rows, heads, value_dim]
  const int64_t* tables;          // [rows] addresses of block tables
  const int64_t* positions;       // [rows] the last position that a row sees
  int64_t rows, heads, kv_heads, key_dim, value_dim, block_size, window;  // window 0: none
  int64_t q_stride;               // elements from a row of q to the next
  float scale, softcap;           // softcap 0: none
  int threads;
};

// How attention of some rows is cut into chunks, and memory for what comes of each. Where there are
// not enough chunks for the threads, KV heads are shared out too.
struct AttendPlan {
  struct Part {  // of one row, chunk and head: where its numbers lie
    float *top, *total, *sum;
  };
  struct Work {  // of some KV heads
    int64_t row, begin, end, chunk, head, head_end;
  };
  std::vector<Work> work;
  std::vector<int64_t> first_chunk;  // of each row, and the end
  std::vector<Part> parts;
  std::unique_ptr<float[]> memory;
  explicit AttendPlan(const AttendArgs& args);
};

// See the functions of the same names with `banyan_` before them.
void attend_part(int is_bf16, int kv_type, const AttendArgs& args, const AttendPlan& plan);
void product_part(int is_bf16, int format, const void* x, const void* w, const void* scales,
                  const void* bias, void* y, int64_t rows, int64_t in, int64_t out);
void norm_part(const bf16* x, const bf16* made, const bf16* weight, bf16* sum, bf16* y,
               int64_t rows, int64_t dim, float eps);
void gate_part(const bf16* both, bf16* y, int64_t rows, int64_t dim, bool is_silu);
// Row i of cos and sin is that of row i, or of `positions[i]` where there are some.
void rotate_part(bf16* heads, const bf16* cos, const bf16* sin, const int64_t* positions,
                 int64_t rows, int64_t stride, int64_t num_heads, int64_t dim, int64_t turning,
                 const bf16* q_norm, const bf16* k_norm, int64_t num_q, float eps);
void keep_part(const bf16* x, void* pool, const int64_t* slots, bool is_int8, int64_t rows,
               int64_t stride, int64_t num_heads, int64_t dim);
