// A mixture of experts in one call: rows choose, then each expert that was chosen computes its rows,
// read where they lie, and what they made is summed up row by row. Two products do it. Few rows read
// the weights as they lie, four channels at a time, which memory bounds; many rows have them laid out
// as pairs first. Sums are fp32 and go in the order of the experts, whatever the threads do.
#include "few_rows.h"
#include "mixture.h"
#include "pairs.h"

#include <algorithm>
#include <cmath>

namespace {
constexpr int64_t MANY = 48;      // rows from which laying out pays
constexpr int64_t WIDTH = NV * 16;  // channels that are laid out at a time: of gate and up half each
constexpr int64_t PART = 1024;    // rows whose sums a thread keeps at a time

using Expert = MixtureRoom::Expert;

INLINE f32x16 logistic(f32x16 x) {
  f32x16 e = exp_lanes(x < 0.0f ? x : -x);
  return (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
}
INLINE f32x16 gated(f32x16 x, f32x16 up, bool is_silu) {
  f32x16 slope = is_silu ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
  return x * logistic(slope) * up;
}

// Rows of a weight [.., in] as [in / 2][WIDTH] pairs, from column `to` on.
void lay_out(const bf16* w, int64_t num, int64_t in, bf16* pairs, int64_t to) {
  for (int64_t n = 0; n < num; n += 16)
    for (int64_t k = 0; k < in; k += STEP) {
      i32x16 words[16];
      for (int64_t i = 0; i < 16; i++) words[i] = load<i32x16>(w + (n + i) * in + k);
      transpose(words);
      for (int64_t i = 0; i < 16; i++)
        std::memcpy(pairs + 2 * ((k / 2 + i) * WIDTH + to + n), &words[i], sizeof words[i]);
    }
}

// The chosen experts and shares of one row.
void choose(const ExpertsArgs& a, int64_t row, int64_t* chosen, float* shares) {
  const bf16* x = (const bf16*)a.x + row * a.hidden;
  std::vector<float> scores(a.experts + 16);
  for (int64_t e = 0; e < a.experts; e += NR) {
    const bf16* w[NR];
    for (int64_t j = 0; j < NR; j++)
      w[j] = (const bf16*)a.router + std::min(e + j, a.experts - 1) * a.hidden;
    store(&scores[e], block<1>(&x, w, w[NR - 1] + a.hidden, a.hidden), NR);
  }
  float top = scores[0], total = 0, picked = 0;
  for (int64_t e = 1; e < a.experts; e++) top = std::max(top, scores[e]);
  for (int64_t e = 0; e < a.experts; e++) total += scores[e] = std::exp(scores[e] - top);
  for (int64_t i = 0; i < a.chosen; i++) {
    int64_t best = -1;  // what is no number is chosen too, if nothing else is left
    for (int64_t e = 0; e < a.experts; e++) {
      if (std::find(chosen, chosen + i, e) != chosen + i) continue;
      if (best < 0 || scores[e] > scores[best]) best = e;
    }
    chosen[i] = best;
    picked += shares[i] = scores[best];
  }
  for (int64_t i = 0; i < a.chosen; i++) shares[i] /= a.renormalise ? picked : total;
}

float shared_share(const ExpertsArgs& a, int64_t row) {
  const bf16* x = (const bf16*)a.x + row * a.hidden;
  const bf16* w[NR];
  for (auto& each : w) each = (const bf16*)a.shared_gate;
  return logistic(splat(block<1>(&x, w, w[0], a.hidden)[0]))[0];
}

// Those that any row chose, in their order, and behind them the shared one; `num_made` becomes the
// numbers that they make between their two products.
std::vector<Expert> in_use(const ExpertsArgs& a, const std::vector<int64_t>& chosen,
                           const std::vector<float>& shares, int64_t& num_made) {
  std::vector<Expert> all(a.experts + 1), found;
  for (int64_t e = 0; e < a.experts; e++)
    all[e] = {(const bf16*)a.gate_ups[e], (const bf16*)a.downs[e], a.inner, 0, {}, {}};
  all[a.experts] = {(const bf16*)a.shared_gate_up, (const bf16*)a.shared_down, a.shared_inner, 0, {}, {}};
  for (int64_t row = 0; row < a.rows; row++)
    for (int64_t i = 0; i <= a.chosen; i++) {
      if (i == a.chosen && !a.shared_gate_up) continue;
      Expert& to = all[i == a.chosen ? a.experts : chosen[row * (a.chosen + 1) + i]];
      to.rows.push_back(row);
      to.shares.push_back(shares[row * (a.chosen + 1) + i]);
    }
  num_made = 0;
  for (Expert& each : all) {
    if (each.rows.empty()) continue;
    each.place = num_made;
    num_made += each.rows.size() * each.inner;
    found.push_back(std::move(each));
  }
  return found;
}

// WIDTH / 2 channels of an expert's inner numbers, from n on, for all its rows.
void make_inner(const ExpertsArgs& a, const Expert& e, int64_t n, bf16* made, std::vector<bf16>& pairs) {
  constexpr int64_t half = WIDTH / 2;
  const int64_t num = e.rows.size(), in = a.hidden;
  const bf16 *gate = e.gate_up + n * in, *up = e.gate_up + (e.inner + n) * in;
  std::vector<const bf16*> x(num + MR);
  for (int64_t i = 0; i < num + MR; i++)
    x[i] = (const bf16*)a.x + e.rows[std::min(i, num - 1)] * in;
  bf16* to = made + e.place + n;
  if (num < MANY) {
    float numbers[MANY][WIDTH + 16];
    for (int64_t j = 0; num == 1 && j < WIDTH; j += 8) {
      const bf16* w = j < half ? gate + j * in : up + (j - half) * in;
      const bf16* next = j + 8 == half ? up : j + 8 == WIDTH ? gate + half * in : w + 8 * in;
      store(&numbers[0][j], eight(x[0], w, next, in), 8);
    }
    for (int64_t j = 0; num > 1 && j < WIDTH; j += NR) {
      const bf16* four = j < half ? gate + j * in : up + (j - half) * in;
      const bf16* next = j + NR == half ? up : j + NR == WIDTH ? gate + half * in : four + NR * in;
      few_rows(x.data(), num, four, next, in, [&](int64_t m, f32x16 lanes) {
        float spread[16 + 16];
        store(spread, lanes, 16);
        for (int64_t i = 0; i < std::min<int64_t>(4, num - m); i++)
          std::memcpy(&numbers[m + i][j], spread + i * NR, NR * sizeof(float));
      });
    }
    for (int64_t i = 0; i < num; i++)
      for (int64_t c = 0; c < half; c += 16)
        store(to + i * e.inner + c,
              gated(widen(&numbers[i][c]), widen(&numbers[i][half + c]), a.is_silu), 16);
    return;
  }
  pairs.resize(std::max<size_t>(pairs.size(), in * WIDTH));
  lay_out(gate, half, in, pairs.data(), 0);
  lay_out(up, half, in, pairs.data(), half);
  for (int64_t m = 0; m < num; m += MR) {
    f32x16 sum[MR][NV] = {};
    multiply<NV>(sum, &x[m], pairs.data(), WIDTH, in / 2);
    for (int64_t i = 0; i < std::min<int64_t>(MR, num - m); i++)
      for (int v = 0; v < NV / 2; v++)
        store(to + (m + i) * e.inner + v * 16, gated(sum[i][v], sum[i][v + NV / 2], a.is_silu), 16);
  }
}

// Adds WIDTH or fewer channels of what an expert makes of its rows `from` to `to` to `sums`, in which
// rows of x begin at `first`.
void add_outer(const ExpertsArgs& a, const Expert& e, int64_t n, int64_t from, int64_t to,
               int64_t first, const bf16* made, float (*total)[WIDTH], const bf16* next,
               std::vector<bf16>& pairs) {
  const int64_t num = to - from, in = e.inner, width = std::min(WIDTH, a.hidden - n);
  const bf16* down = e.down + n * in;
  std::vector<const bf16*> x(num + MR);
  for (int64_t i = 0; i < num + MR; i++)
    x[i] = made + e.place + (from + std::min(i, num - 1)) * in;
  if (num == 1) {
    float* sum = total[e.rows[from] - first];
    for (int64_t j = 0; j < width; j += 8) {
      const bf16* w = down + j * in;
      const f32x16 lanes = eight(x[0], w, j + 8 < width ? w + 8 * in : next, in);
      store(sum + j, widen(sum + j) + e.shares[from] * lanes, 8);
    }
    return;
  }
  if (num < MANY) {
    for (int64_t j = 0; j < width; j += NR) {
      const bf16* four = down + j * in;
      few_rows(x.data(), num, four, j + NR < width ? four + NR * in : next, in, [&](int64_t m, f32x16 lanes) {
        for (int64_t i = 0; i < std::min<int64_t>(4, num - m); i++)
          for (int64_t l = 0; l < NR; l++)
            total[e.rows[from + m + i] - first][j + l] += e.shares[from + m + i] * lanes[i * NR + l];
      });
    }
    return;
  }
  pairs.resize(std::max<size_t>(pairs.size(), in * WIDTH));
  lay_out(down, width, in, pairs.data(), 0);
  for (int64_t m = 0; m < num; m += MR) {
    f32x16 sum[MR][NV] = {};
    multiply<NV>(sum, &x[m], pairs.data(), WIDTH, in / 2);
    for (int64_t i = 0; i < std::min<int64_t>(MR, num - m); i++) {
      float* row = total[e.rows[from + m + i] - first];
      for (int v = 0; v * 16 < width; v++)
        store(row + v * 16, widen(row + v * 16) + sum[i][v] * e.shares[from + m + i], 16);
    }
  }
}

std::vector<bf16>& kept_memory() {  // new memory costs page faults
  static thread_local std::vector<bf16> memory;
  return memory;
}

// What the experts make of their rows, summed up for WIDTH channels of PART rows.
void sum_up(const ExpertsArgs& a, const MixtureRoom& room, int64_t n, int64_t first,
            std::vector<float>& total, std::vector<bf16>& pairs) {
  const std::vector<Expert>& experts = room.experts;
  const int64_t end = std::min(a.rows, first + PART);
  total.assign((end - first) * WIDTH + 16, 0);
  float(*rows)[WIDTH] = (float(*)[WIDTH])total.data();
  for (const Expert& e : experts) {
    const Expert& after = experts[std::min<size_t>(&e - &experts[0] + 1, experts.size() - 1)];
    auto place = [&](int64_t row) {
      return std::lower_bound(e.rows.begin(), e.rows.end(), row) - e.rows.begin();
    };
    if (place(first) < place(end))
      add_outer(a, e, n, place(first), place(end), first, room.made.data(), rows,
                after.down + n * after.inner, pairs);
  }
  for (int64_t row = first; row < end; row++)
    for (int64_t c = 0; c < std::min(WIDTH, a.hidden - n); c += 16)
      store((bf16*)a.out + row * a.hidden + n + c, widen(rows[row - first] + c), 16);
}
}  // namespace

MixtureRoom::MixtureRoom(int64_t num_shares)
    : chosen(num_shares), shares(num_shares), made(kept_memory()) {}

void mixture_part(const ExpertsArgs& a, MixtureRoom& room) {
  const int64_t each = a.chosen + 1, half = WIDTH / 2;  // the last of a row's is the shared one
  const int64_t num_parts = (a.rows + PART - 1) / PART, num_blocks = (a.hidden + WIDTH - 1) / WIDTH;
  static thread_local std::vector<bf16> pairs;
  static thread_local std::vector<float> total;
#pragma omp for
  for (int64_t row = 0; row < a.rows; row++) {
    choose(a, row, &room.chosen[row * each], &room.shares[row * each]);
    if (a.shared_gate_up) room.shares[row * each + a.chosen] = shared_share(a, row);
  }
#pragma omp single
  {
    int64_t num_made = 0;
    room.experts = in_use(a, room.chosen, room.shares, num_made);
    if ((int64_t)room.made.size() < num_made) room.made.resize(num_made);
    room.first_item.clear();
    room.num_items = 0;
    for (const Expert& e : room.experts)
      room.first_item.push_back(room.num_items), room.num_items += e.inner / half;
  }
#pragma omp for schedule(dynamic)
  for (int64_t item = 0; item < room.num_items; item++) {
    const auto& first = room.first_item;
    const int64_t e = std::upper_bound(first.begin(), first.end(), item) - first.begin() - 1;
    make_inner(a, room.experts[e], (item - first[e]) * half, room.made.data(), pairs);
  }
#pragma omp for schedule(dynamic)
  for (int64_t item = 0; item < num_blocks * num_parts; item++)
    sum_up(a, room, item % num_blocks * WIDTH, item / num_blocks * PART, total, pairs);
}

// All numbers are bfloat16; `hidden`, `inner` and `shared_inner` are multiples of STEP.
extern "C" void banyan_experts(const ExpertsArgs* args) {
  MixtureRoom room(args->rows * (args->chosen + 1));
#pragma omp parallel num_threads(args->threads)
  mixture_part(*args, room);
}
