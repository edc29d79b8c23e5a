// A layer's mixture of experts as a part of a parallel region, see parts.h.
#pragma once
#include <vector>

#include "lanes.h"

struct ExpertsArgs {  // as in grouped.py
  const void *x, *router;             // x [rows, hidden], router [experts, hidden]
  const int64_t *gate_ups, *downs;    // [experts] addresses of [2 inner, hidden], [hidden, inner]
  const void *shared_gate_up, *shared_down, *shared_gate;  // an expert of all rows, or null
  void* out;                          // [rows, hidden]
  int64_t rows, hidden, experts, chosen, inner, shared_inner;
  int renormalise, is_silu, threads;
};

// What the threads of a mixture share; made before the region, for one mixture after the other.
struct MixtureRoom {
  struct Expert {  // with its rows of x, ascending, and their shares; what it makes begins at `place`
    const bf16 *gate_up, *down;
    int64_t inner, place;
    std::vector<int64_t> rows;
    std::vector<float> shares;
  };
  std::vector<int64_t> chosen, first_item;
  std::vector<float> shares;
  std::vector<Expert> experts;
  std::vector<bf16>& made;
  int64_t num_items = 0;
  explicit MixtureRoom(int64_t num_shares);  // rows times (chosen + 1)
};

void mixture_part(const ExpertsArgs& args, MixtureRoom& room);
