// All decoder layers and the head for a few rows, one token each of some sequences: what the other
// files do, in one parallel region. With one row and a small model, starting a dozen operations a
// layer from Python costs a third of a step, and each time threads meet costs some more. The
// numbers are those of the operations one by one, to the bit.
#include <algorithm>
#include <map>

#include "clock.h"
#include "mixture.h"
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
  const ExpertsArgs* experts;  // in the place of the last two, or null; without what a step has
  const bf16 *attention_norm, *q_norm, *k_norm, *attention_post_norm, *mlp_norm, *mlp_post_norm;
  void *keys, *values;
  int64_t block_size, heads, kv_heads, dim, turning, window, rope;
  float scale, softcap, eps;
  int is_silu, is_int8;
};
struct Step {  // rows of everything are tokens
  Matrix head;
  const bf16 *norm, *embedding;         // the norm before the head
  const bf16 *const *cos, *const *sin;  // of each rope, by position
  const int64_t *tables, *token_ids, *positions, *slots, *fresh_blocks;
  bf16 *x, *normed, *qkv, *attended, *made, *both, *inner, *logits;
  double* seconds;  // see clock.h, or null
  int64_t rows, num_fresh, num_layers;
  float embedding_scale;
  int threads;
};

struct Shared {  // by the threads
  std::map<int64_t, AttendPlan> plans;  // by window
  MixtureRoom mixtures;
};

AttendArgs attention_of(const Layer& l, const Step& s) {
  return {s.qkv,   l.keys, l.values, s.attended,   s.tables, s.positions,
          s.rows,  l.heads, l.kv_heads, l.dim,     l.dim,    l.block_size,
          l.window, (l.heads + 2 * l.kv_heads) * l.dim, l.scale, l.softcap, s.threads};
}

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

void embed(const Step& s, int64_t hidden) {
#pragma omp for
  for (int64_t row = 0; row < s.rows; row++)
    for (int64_t c = 0; c < hidden; c += 16)
      store(s.x + row * hidden + c,
            widen(s.embedding + s.token_ids[row] * hidden + c) * s.embedding_scale, 16);
}

void mlp(const Layer& l, const Step& s, MixtureRoom& mixtures, Clock& clock) {
  if (l.experts) {
    ExpertsArgs args = *l.experts;
    args.x = s.normed, args.out = s.made, args.rows = s.rows, args.threads = s.threads;
    mixture_part(args, mixtures);
    return clock.end_of(EXPERTS);
  }
  multiply(s, s.normed, l.gate_up, s.both);
  clock.end_of(PRODUCTS);
  gate_part(s.both, s.inner, s.rows, l.down.in, l.is_silu);
  clock.end_of(BETWEEN);
  multiply(s, s.inner, l.down, s.made);
  clock.end_of(PRODUCTS);
}

// From the layer's input in `normed` to what it adds to x in `made`.
void run(const Layer& l, const Step& s, Shared& shared, Clock& clock) {
  const int64_t hidden = l.output.out, turned = l.heads + l.kv_heads;
  const int64_t stride = (turned + l.kv_heads) * l.dim;
  multiply(s, s.normed, l.qkv, s.qkv);
  clock.end_of(PRODUCTS);
  rotate_part(s.qkv, s.cos[l.rope], s.sin[l.rope], s.positions, s.rows, stride, turned, l.dim,
              l.turning, l.q_norm, l.k_norm, l.heads, l.eps);
  if (s.num_fresh) clear_blocks(l, s);
  keep_part(s.qkv + l.heads * l.dim, l.keys, s.slots, l.is_int8, s.rows, stride, l.kv_heads, l.dim);
  keep_part(s.qkv + turned * l.dim, l.values, s.slots, l.is_int8, s.rows, stride, l.kv_heads, l.dim);
  clock.end_of(BETWEEN);
  attend_part(true, l.is_int8 ? 2 : 1, attention_of(l, s), shared.plans.at(l.window));
  clock.end_of(ATTENTION);
  multiply(s, s.attended, l.output, s.made);
  clock.end_of(PRODUCTS);
  if (l.attention_post_norm)
    norm_part(s.made, nullptr, l.attention_post_norm, nullptr, s.made, s.rows, hidden, l.eps);
  norm_part(s.x, s.made, l.mlp_norm, s.x, s.normed, s.rows, hidden, l.eps);
  clock.end_of(BETWEEN);
  mlp(l, s, shared.mixtures, clock);
  if (l.mlp_post_norm)
    norm_part(s.made, nullptr, l.mlp_post_norm, nullptr, s.made, s.rows, hidden, l.eps);
}

void run_all(const Layer* layers, const Step& s, Shared& shared, Clock clock) {
  const int64_t hidden = layers->output.out;
  const bf16* made = nullptr;
  embed(s, hidden);
  for (int64_t i = 0; i <= s.num_layers; i++) {  // behind the last layer comes the head
    const bf16* norm = i < s.num_layers ? layers[i].attention_norm : s.norm;
    norm_part(s.x, made, norm, s.x, s.normed, s.rows, hidden, layers->eps);
    clock.end_of(BETWEEN);
    if (i < s.num_layers) run(layers[i], s, shared, clock);
    made = s.made;
  }
  multiply(s, s.normed, s.head, s.logits);
  clock.end_of(HEAD);
}
}  // namespace

// From token ids to logits; K and V of all layers are written.
extern "C" void banyan_layers(const Layer* layers, const Step* step) {
  const Step& s = *step;
  int64_t num_chosen = 0;
  for (int64_t i = 0; i < s.num_layers; i++)
    if (layers[i].experts) num_chosen = std::max(num_chosen, layers[i].experts->chosen + 1);
  Shared shared{{}, MixtureRoom(s.rows * num_chosen)};
  for (int64_t i = 0; i < s.num_layers; i++)
    shared.plans.try_emplace(layers[i].window, attention_of(layers[i], s));
  const Clock clock(s.seconds, s.threads);
#pragma omp parallel num_threads(s.threads)
  run_all(layers, s, shared, clock);
}
