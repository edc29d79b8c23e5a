// What the parts of a step take, where somebody asks: seconds of the thread that opened the region,
// each part up to where all threads have done it. CPU time where there is one thread, as neighbours
// do not count then; else time of the clock, waiting included.
#pragma once
#include <omp.h>
#include <time.h>

enum Part { PRODUCTS, BETWEEN, ATTENTION, EXPERTS, HEAD };  // as in whole_layers.py

class Clock {
 public:
  Clock(double* seconds, int threads)
      : seconds(seconds), id(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC) {
    if (seconds) last = now();
  }
  void end_of(Part part) {  // a copy in each thread, of which one tells
    if (!seconds || omp_get_thread_num()) return;
    const double at = now();
    seconds[part] += at - last;
    last = at;
  }

 private:
  double* seconds;
  clockid_t id;
  double last = 0;
  double now() const {
    timespec t;
    clock_gettime(id, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
  }
};
