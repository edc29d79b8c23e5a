// Draws from a row of logits in one pass over it (its largest being known), or says that it is not
// sure. numpy's definition in `draw.py` is what counts, to the last bit; here exponentials and sums
// round otherwise. So what comes out is a token only where no such difference can change it: where
// the draw, and the end of the head, lie further from the next token than MARGIN.
//
// Why MARGIN holds: with the weights of every token off by a share of at most A, no share of mass
// moves by more than A / 2. numpy's exponentials (4 units in the last place, more than it claims)
// and sums (runs of 512 in single precision) are within 1.8e-6 together, those here within 1.1e-6.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "registers.h"

namespace {

constexpr int64_t RUN = 512, NOT_SURE = -1;
constexpr double MARGIN = 2e-6;   // a share of the mass
constexpr float NEAR = 2e-6f;     // weights this close may come in the other order in numpy
constexpr int CUTS = 15;          // places where a head may end that are tried at a time
constexpr int64_t SORTED = 64;    // weights that are few enough to sort
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

struct Row {
  const float* scores;  // [num]
  float* part;          // room for num
  float* heads;         // the same, rounded up to RUN: weights that may belong to the head ...
  int32_t* ids;         // ... and whose they are
  double* sums;         // room for a number per RUN
  int64_t num;
  double top_p, min_p, uniform;
  float largest, temperature;
};

INLINE Floats weigh(const Row& row, int64_t at) {
  Floats scores = load_some(row.scores + at, row.num - at, NOTHING);
  return exponential((scores - row.largest) / row.temperature);
}

// The mass of a run, whose weights go to `out`.
INLINE double weigh_run(const Row& row, int64_t start, float* out) {
  Floats sums[4] = {};
  for (int64_t at = 0; at < RUN; at += 4 * LANES)
    for (int each = 0; each < 4; ++each) {
      Floats weights = weigh(row, start + at + each * LANES);
      store(out + at + each * LANES, weights);
      sums[each] += weights;
    }
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

struct Place {
  int64_t run;
  double before, target, slack;  // mass before the run, and of what is drawn
};

// In which run the draw falls, by the runs' sums.
Place find_run(const Row& row, int64_t num_runs) {
  double total = 0;
  for (int64_t i = 0; i < num_runs; ++i) total += row.sums[i];
  Place place = {0, 0, row.uniform * total, MARGIN * total};
  while (place.run < num_runs - 1 && place.before + row.sums[place.run] <= place.target)
    place.before += row.sums[place.run++];
  return place;
}

// And where in it; NOT_SURE if near to the next.
int64_t place_in(const float* run, Place place) {
  double before = place.before;
  for (int64_t at = 0; at < RUN; ++at) {
    double reached = before + run[at];
    if (reached > place.target) {
      bool sure = place.target - before > place.slack && reached - place.target > place.slack;
      return sure ? at : NOT_SURE;
    }
    before = reached;
  }
  return NOT_SURE;
}

int64_t draw_of_all(const Row& row) {
  float run[RUN];
  int64_t num_runs = (row.num + RUN - 1) / RUN;
  for (int64_t i = 0; i < num_runs; ++i) row.sums[i] = weigh_run(row, i * RUN, run);
  Place place = find_run(row, num_runs);
  weigh_run(row, place.run * RUN, run);
  int64_t at = place_in(run, place);
  return at == NOT_SURE ? NOT_SURE : place.run * RUN + at;
}

INLINE float of_bits(int64_t bits) { return load<float>(&bits); }  // little end first
INLINE int64_t bits_of(float x) { return load<int32_t>(&x); }

struct Cut {
  float weight;  // the smallest of the head
  int64_t num;   // how many of its equals belong to it; 0: not sure
};

// How many of the cuts, which rise, have at least so much above them; by sums of single precision.
INLINE int num_with(const float* part, int64_t num, const float* cuts, double wanted) {
  Floats masses[CUTS] = {};
  for (int64_t i = 0; i < num; i += LANES) {
    Floats weights = load_some(part + i, num - i, 0.0f);
    for (int each = 0; each < CUTS; ++each)
      masses[each] += weights >= cuts[each] ? weights : all(0.0f);
  }
  int chosen = CUTS;
  while (chosen > 0 && sum(masses[chosen - 1]) < wanted) --chosen;
  return chosen;
}

// Leave in `part` those of `from` that are in between; add what lies above to `above`.
INLINE int64_t narrow(const float* from, int64_t num, float least, float most, float* part,
                      double& above) {
  int64_t kept = 0;
  for (int64_t start = 0; start < num; start += 8 * LANES) {
    Floats masses = {};
    for (int64_t i = start; i < std::min(num, start + 8 * LANES); i += LANES) {
      Floats weights = load_some(from + i, num - i, 0.0f);
      masses += weights >= most ? weights : all(0.0f);
      kept += append(weights, (weights >= least) & (weights < most), 0, part + kept, nullptr);
    }
    above += sum(masses);
  }
  return kept;
}

// Lighter than (1 - top_p) of the mean, all together would weigh less than 1 - top_p.
INLINE float lightest(const Row& row, double total) {
  double least = row.top_p < 1 ? (1 - row.top_p) * total / row.num : row.min_p;
  return (float)(least * (1 - 1e-5));
}

// Where the shortest head that reaches top_p ends. Weights are positive, so their bits are in order.
Cut end_of_head(const Row& row, int64_t num, double total) {
  double wanted = row.top_p * total, slack = MARGIN * total;
  const float *heads = row.heads, *from = heads;
  float* part = row.part;
  int64_t low = bits_of(lightest(row, total)), high = bits_of(1.0f) + 1;
  double above = 0;
  for (; num > SORTED && high - low > 1; from = part) {
    float cuts[CUTS + 2];
    for (int i = 0; i < CUTS + 2; ++i) cuts[i] = of_bits(low + (high - low) * i / (CUTS + 1));
    int chosen = num_with(from, num, cuts + 1, wanted - above);
    low = bits_of(cuts[chosen]), high = bits_of(cuts[chosen + 1]);
    num = narrow(from, num, cuts[chosen], cuts[chosen + 1], part, above);
  }
  if (from == heads) std::copy(heads, heads + num, part);
  if (high - low > 1) std::sort(part, part + num, std::greater<float>());
  bool first = above == 0;  // the most likely token is always in the head
  int64_t equals = 0;
  for (int64_t i = 0; i < num; ++i) {
    equals = i && part[i] == part[i - 1] ? equals + 1 : 1;
    double reached = above + part[i];
    if (reached >= wanted) {
      bool sure = (first || wanted - above > slack) && reached - wanted > slack;
      return {part[i], sure ? equals : 0};
    }
    above = reached, first = false;
  }
  return {0, 0};
}

// Leave zeros where a weight is not in the head. False where the order at its end is not sure.
bool keep_head(const Row& row, int64_t num, Cut cut) {
  float score = NOTHING;  // of those at the cut: equal scores are equal weights in numpy too
  for (int64_t i = 0; i < num; i += LANES) {
    Floats weights = load_some(row.heads + i, num - i, 0.0f);
    Floats away = weights - cut.weight;
    Floats kept = away > 0 ? weights : all(0.0f);
    float far = cut.weight * NEAR;
    for (uint32_t near = marked_of((away <= far) & (away >= -far)); near; near &= near - 1) {
      int lane = __builtin_ctz(near);
      float own = row.scores[row.ids[i + lane]];
      if (score == NOTHING) score = own;
      if (own != score) return false;
      kept[lane] = cut.num-- > 0 ? weights[lane] : 0.0f;
    }
    store(row.heads + i, kept);
  }
  return true;
}

// Leave zeros below a share of the largest weight, which is 1. False where that is not sure.
bool keep_likely(const Row& row, int64_t num) {
  float least = (float)row.min_p, far = least * NEAR;
  bool sure = true;
  for (int64_t i = 0; i < num; ++i) {
    float weight = row.heads[i];
    sure &= std::fabs(weight - least) > far;
    row.heads[i] = weight >= least ? weight : 0.0f;
  }
  return sure;
}

// Weights that may belong to the head, and whose they are: `num` of them. Returns all mass.
double find_heads(const Row& row, int64_t& num) {
  double total = 0;
  float run[RUN];
  for (int64_t start = num = 0; start < row.num; start += RUN) {
    total += weigh_run(row, start, run);
    float floor = lightest(row, total);  // of the mass so far: what comes only makes it heavier
    for (int64_t at = 0; at < RUN; at += LANES) {
      Floats weights = load<Floats>(run + at);
      Ints chosen = (weights >= floor) & (weights > 0);
      num += append(weights, chosen, (int32_t)(start + at), row.heads + num, row.ids + num);
    }
  }
  return total;
}

double sum_run(const float* run) {
  Floats sums[4] = {};
  for (int64_t at = 0; at < RUN; at += LANES) sums[at / LANES % 4] += load<Floats>(run + at);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

int64_t draw_of_head(const Row& row) {
  int64_t num = 0;
  double total = find_heads(row, num);
  if (row.top_p < 1) {
    Cut cut = end_of_head(row, num, total);
    if (!cut.num || !keep_head(row, num, cut)) return NOT_SURE;
  }
  if (row.min_p > 0 && !keep_likely(row, num)) return NOT_SURE;
  int64_t num_runs = (num + RUN - 1) / RUN;
  std::fill(row.heads + num, row.heads + num_runs * RUN, 0.0f);
  for (int64_t i = 0; i < num_runs; ++i) row.sums[i] = sum_run(row.heads + i * RUN);
  Place place = find_run(row, num_runs);
  int64_t at = place_in(row.heads + place.run * RUN, place);
  return at == NOT_SURE ? NOT_SURE : row.ids[place.run * RUN + at];
}

float largest_of(const float* values, int64_t num, int64_t block, int64_t length) {
  Floats most = all(NOTHING);
  for (int64_t at = block * length; at < (block + 1) * length; at += LANES) {
    Floats some = load_some(values + at, num - at, NOTHING);
    most = some > most ? some : most;
  }
  float one = NOTHING;
  for (int lane = 0; lane < LANES; ++lane) one = std::max(one, most[lane]);
  return one;
}

}  // namespace

// The token that numpy would draw, or -1: ask numpy.
extern "C" int64_t banyan_draw(const Row* row) {
  return row->top_p < 1 || row->min_p > 0 ? draw_of_head(*row) : draw_of_all(*row);
}

// Ids of the k largest of `num` numbers, of equals the lowest, in order of id: exact, as nothing is
// computed. `part` and `ids` have room for all, and LANES more.
extern "C" void banyan_largest(const float* values, int64_t num, int64_t k, float* part,
                               int32_t* ids) {
  int64_t block = 4 * k * RUN <= num ? RUN : RUN / 8, num_blocks = (num + block - 1) / block;
  float* sorted = part + num_blocks;
  for (int64_t i = 0; i < num_blocks; ++i) part[i] = sorted[i] = largest_of(values, num, i, block);
  float least = NOTHING;  // k blocks have one that is as large, so the k-th largest is
  if (k <= num_blocks) {
    std::nth_element(sorted, sorted + (k - 1), sorted + num_blocks, std::greater<float>());
    least = sorted[k - 1];
  }
  int64_t found = 0;
  for (int64_t i = 0; i < num_blocks; ++i)
    for (int64_t at = i * block; part[i] >= least && at < (i + 1) * block; at += LANES) {
      Floats some = load_some(values + at, num - at, std::nanf(""));
      found += append(some, some >= least, (int32_t)at, sorted, ids + found);
    }
  auto before = [values](int32_t a, int32_t b) {
    return values[a] > values[b] || (values[a] == values[b] && a < b);
  };
  std::nth_element(ids, ids + (k - 1), ids + found, before);
  std::sort(ids, ids + k);
}
