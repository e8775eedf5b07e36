// Softmax of any strides: a thread a decision, coalesced across decisions that lie side by side.
//
// Logits are read once and kept in shared memory; more classes than it holds are read twice. A thread reads every logit
// before it writes that element of the gradient: the gradient may overwrite the logits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "memory.cuh"
#include "softmax_decision.cuh"

namespace fastloss {

template <class T, class LossOf>
__global__ void __launch_bounds__(kPositionThreads, 6)
    softmax_positions(const __grid_constant__ SoftmaxLaunch launch, const LossOf loss_of) {
  using S = Compute<T>;
  using Softmax = SoftmaxBlock<T, LossOf>;
  constexpr uint32_t batch = 4;      // classes loaded before the first is used
  extern __shared__ uint4 shared[];  // [C, threads] of T; a thread reads only what it wrote there: no barrier
  __shared__ uint32_t counters[Softmax::storage_size];
  Softmax softmax(launch, loss_of, counters);
  const SoftmaxParams& params = launch.params;
  const uint32_t C = uint32_t(params.C);  // below 2^31: indices past the end still fit
  const bool staged = launch.schedule.shared_bytes > 0;
  T* column = reinterpret_cast<T*>(shared) + threadIdx.x;

  int64_t step = int64_t(gridDim.x) * kPositionThreads;
  for (int64_t position = int64_t(blockIdx.x) * kPositionThreads + threadIdx.x; position < params.N; position += step) {
    const Offsets offsets(params.layout, position);
    const T* x = softmax.input() + offsets.input;                       // [C] at class_stride
    T* g = softmax.writes() ? softmax.grad() + offsets.grad : nullptr;  // [C] at grad_class_stride
    const int32_t y = target_of(params, position);
    ClassSum<S> classes;
    S target_logit = 0;
    for (uint32_t c = 0; y >= 0 && c < C; c += batch) {
      S logits[batch];
#pragma unroll
      for (uint32_t b = 0; b < batch; ++b) {
        T loaded = x[min(c + b, C - 1) * params.layout.class_stride];  // the last again: loads need no branch
        if (staged && c + b < C) column[(c + b) * kPositionThreads] = loaded;
        logits[b] = c + b < C ? to_compute(loaded) : S(-INFINITY);
        target_logit = c + b == uint32_t(y) ? logits[b] : target_logit;
      }
      classes.add(logits);
    }
    if constexpr (Softmax::counts) {
      softmax.count(classes, target_logit, y, position);
      continue;
    }
    SoftmaxDecision<S> decision = softmax.decide(classes, target_logit, y);
    S weighted = 0;
    if (softmax.second_pass() && y >= 0) {
#pragma unroll 4
      for (uint32_t c = 0; c < C; ++c) {
        T logit = staged ? column[c * kPositionThreads] : x[c * params.layout.class_stride];
        S shifted = to_compute(logit) - classes.max;
        T value = to_storage<T>(softmax.gradient(decision, shifted, c, weighted));
        if (c == uint32_t(y)) value = softmax.target_gradient(decision, to_compute(logit));
        if (g) g[c * params.layout.grad_class_stride] = value;
      }
    } else if (g) {  // ignored: 0, whatever the logits
      for (uint32_t c = 0; c < C; ++c) g[c * params.layout.grad_class_stride] = to_storage<T>(S(0));
    }
    softmax.finish(decision, position, weighted);
  }
  softmax.conclude_launch();
}

}  // namespace fastloss
