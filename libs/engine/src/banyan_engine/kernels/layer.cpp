// A whole decoder layer for a few rows, one token each of some sequences: what the other files do,
// in one parallel region. With one row and a small model, starting a dozen operations a layer from
// Python costs a tenth of a step, and threads that sleep between them cost more. The numbers are
// those of the operations one by one, to the bit.
#include "parts.h"

namespace {
struct Matrix {  // [out, in], formats as in `banyan_product`
  const void *data, *scales, *bias;
  int64_t in, out;
  int format;
};
// Lies the same in whole_layers.py, as do `Step` and `Matrix`.
struct Layer {
  Matrix qkv, output, gate_up, down;
  const bf16 *attention_norm, *q_norm, *k_norm, *attention_post_norm, *mlp_norm, *mlp_post_norm;
  void *keys, *values;
  int64_t block_size, heads, kv_heads, dim, turning, window;
  float scale, softcap, eps;
  int is_silu, is_int8;
};
struct Step {  // rows of everything are tokens
  bf16* x;     // [rows, hidden], into and out of the layer
  const bf16 *cos, *sin;
  const int64_t *slots, *fresh_blocks, *tables, *positions;
  bf16 *normed, *qkv, *attended, *made, *both, *inner;
  int64_t rows, num_fresh;
  int threads;
};

void multiply(const Step& s, const bf16* x, const Matrix& w, bf16* y) {
  product_part(true, w.format, x, w.data, w.scales, w.bias, y, s.rows, w.in, w.out);
}

void clear_blocks(const Layer& l, const Step& s) {
  const int64_t row = l.is_int8 ? l.dim + sizeof(float) : l.dim * sizeof(bf16);
  const int64_t size = l.block_size * l.kv_heads * row;
#pragma omp for
  for (int64_t i = 0; i < s.num_fresh; i++)
    for (void* pool : {l.keys, l.values})
      std::memset((char*)pool + s.fresh_blocks[i] * size, 0, size);
}

void run(const Layer& l, const Step& s, const AttendArgs& attention, const AttendPlan& plan) {
  const int64_t hidden = l.output.out, turned = l.heads + l.kv_heads;
  const int64_t stride = (turned + l.kv_heads) * l.dim;
  norm_part(s.x, nullptr, l.attention_norm, nullptr, s.normed, s.rows, hidden, l.eps);
  multiply(s, s.normed, l.qkv, s.qkv);
  rotate_part(s.qkv, s.cos, s.sin, s.rows, stride, turned, l.dim, l.turning, l.q_norm, l.k_norm,
              l.heads, l.eps);
  if (s.num_fresh) clear_blocks(l, s);
  keep_part(s.qkv + l.heads * l.dim, l.keys, s.slots, l.is_int8, s.rows, stride, l.kv_heads, l.dim);
  keep_part(s.qkv + turned * l.dim, l.values, s.slots, l.is_int8, s.rows, stride, l.kv_heads, l.dim);
  attend_part(true, l.is_int8 ? 2 : 1, attention, plan);
  multiply(s, s.attended, l.output, s.made);
  if (l.attention_post_norm)
    norm_part(s.made, nullptr, l.attention_post_norm, nullptr, s.made, s.rows, hidden, l.eps);
  norm_part(s.x, s.made, l.mlp_norm, s.x, s.normed, s.rows, hidden, l.eps);
  multiply(s, s.normed, l.gate_up, s.both);
  gate_part(s.both, s.inner, s.rows, l.down.in, l.is_silu);
  multiply(s, s.inner, l.down, s.made);
  if (l.mlp_post_norm)
    norm_part(s.made, nullptr, l.mlp_post_norm, nullptr, s.made, s.rows, hidden, l.eps);
#pragma omp for
  for (int64_t c = 0; c < s.rows * hidden; c += 16)
    store(s.x + c, widen(s.x + c) + widen(s.made + c), 16);
}
}  // namespace

extern "C" void banyan_layer(const Layer* layer, const Step* step) {
  const Layer& l = *layer;
  const Step& s = *step;
  const AttendArgs attention{s.qkv,      l.keys, l.values,     s.attended, s.tables,
                             s.positions, s.rows, l.heads,      l.kv_heads, l.dim,
                             l.dim,      l.block_size, l.window, (l.heads + 2 * l.kv_heads) * l.dim,
                             l.scale,    l.softcap, s.threads};
  const AttendPlan plan(attention);
#pragma omp parallel num_threads(s.threads)
  run(l, s, attention, plan);
}
