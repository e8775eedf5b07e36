// Softmax of any strides: a lane for each decision, or for as many side by side as 16 bytes have; several warps share
// the classes of their decisions.
//
// Fused in one launch: each warp adds up its classes, a thread for each decision merges the parts and comes to its
// loss, and each warp writes the gradient of its classes. Logits are read once and kept in shared memory; those of the
// classes that it does not hold are read again. A thread reads every logit before it, or any thread after a barrier,
// writes that element of the gradient: the gradient may overwrite the logits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "memory.cuh"
#include "softmax_decision.cuh"

namespace fastloss {

// What a tile of decisions has in shared memory, width of them for each lane. schedule.h knows its size.
template <class T, class LossOf, int width>
struct PositionTile {
  using S = Compute<T>;
  static constexpr int size = 32 * width;

  ClassSum<S>* parts;             // [warps, size]
  SoftmaxGradient<S>* gradients;  // [size] probability and onehot, in the place of the first warp's parts
  S* maxima;                      // [size]
  // If the target mixes classes:
  S *values, *log_sums, *shares, *all_terms;  // [size]
  S* weighted;                                // [warps, size]
  S* terms;                                   // [warps, size], of class probabilities

  int32_t* targets;  // [size]
  T* kept;           // [kept classes, size]

  __device__ PositionTile(char* own, int warps) {
    parts = reinterpret_cast<ClassSum<S>*>(own);
    gradients = reinterpret_cast<SoftmaxGradient<S>*>(parts);
    maxima = reinterpret_cast<S*>(parts + warps * size);
    values = maxima + size;
    log_sums = values + size;
    shares = log_sums + size;
    all_terms = shares + size;
    weighted = all_terms + size;
    terms = weighted + warps * size;
    targets = reinterpret_cast<int32_t*>(LossOf::probabilities ? terms + warps * size : LossOf::mixes ? terms : values);
    kept = reinterpret_cast<T*>(targets + size);
  }
};

template <class T, class LossOf, int width>
__global__ void __launch_bounds__(kPositionThreads, LossOf::extended ? 1 : 2)
    softmax_positions(const __grid_constant__ SoftmaxLaunch launch, const LossOf loss_of) {
  using S = Compute<T>;
  using Softmax = SoftmaxBlock<T, LossOf>;
  using Tile = PositionTile<T, LossOf, width>;
  // Classes that a warp loads before it uses the first: bytes in flight, as many as there are registers for.
  constexpr int batch = LossOf::extended ? 2 : 4;
  extern __shared__ uint4 shared[];  // [tiles of the block, tile_bytes]
  __shared__ uint32_t counters[Softmax::storage_size];
  Softmax softmax(launch, loss_of, counters);
  const SoftmaxParams& params = launch.params;
  const SoftmaxSchedule& schedule = launch.schedule;
  const int C = int(params.C), kept_classes = schedule.kept_classes;
  const int warps = schedule.warps;  // of a tile
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % warps, tile_in_block = threadIdx.x / 32 / warps;
  const Tile tile(reinterpret_cast<char*>(shared) + tile_in_block * schedule.tile_bytes, warps);
  const int tiles = kPositionThreads / 32 / warps;  // of the block at a time

  const int64_t step = int64_t(gridDim.x) * tiles * Tile::size;
  // The loop is the block's: every thread comes to every barrier.
  for (int64_t block_first = int64_t(blockIdx.x) * tiles * Tile::size; block_first < params.N; block_first += step) {
    const int64_t first = block_first + tile_in_block * Tile::size;  // decision of the tile
    const bool exists = first + lane * width < params.N;
    const Offsets offsets(params.layout, exists ? first + lane * width : 0);
    const T* x = softmax.input() + offsets.input;  // [C, width] at class_stride
    const int64_t class_stride = params.layout.class_stride;
    // The terms of class k, of this lane's decisions: their probabilities lie as the gradient does.
    auto terms_of = [&](int k, S(&out)[width]) {
      softmax.terms(k, 0, offsets.grad + k * params.layout.grad_class_stride, width > 1 && softmax.reads_like_input(),
                    out);
    };

    ClassSum<S> classes[width];
    S terms[width] = {};
    for (int c = warp; exists && c < C; c += batch * warps) {
      Run<T, width> loaded[batch];
#pragma unroll
      for (int b = 0; b < batch; ++b) {  // the first again where there is none: loads need no branch
        loaded[b] = load_run<width>(x + (c + b * warps < C ? c + b * warps : c) * class_stride);
      }
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (c + b * warps < kept_classes) {
          store_shared_run(tile.kept + (c + b * warps) * Tile::size + lane * width, loaded[b]);
        }
      }
#pragma unroll
      for (int j = 0; j < width; ++j) {
        S logits[batch];
#pragma unroll
        for (int b = 0; b < batch; ++b) {
          logits[b] = c + b * warps < C ? softmax.logit(loaded[b].at[j]) : S(-INFINITY);
        }
        classes[j].add(logits);
      }
      if constexpr (Softmax::probabilities) {
        for (int k = c; k < C && k < c + batch * warps; k += warps) {
          S term[width];
          terms_of(k, term);
#pragma unroll
          for (int j = 0; j < width; ++j) terms[j] += term[j];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < width; ++j) {
      tile.parts[warp * Tile::size + lane * width + j] = classes[j];
      if constexpr (Softmax::probabilities) tile.terms[warp * Tile::size + lane * width + j] = terms[j];
    }
    __syncthreads();  // every warp's part is there, and what is kept

    const int thread = warp * 32 + lane;  // of the tile
    for (int p = thread; p < Tile::size && first + p < params.N; p += warps * 32) {
      ClassSum<S> all = tile.parts[p];
#pragma unroll 1
      for (int w = 1; w < warps; ++w) all.merge(tile.parts[w * Tile::size + p].max, tile.parts[w * Tile::size + p].sum);
      const int32_t y = softmax.target(first + p);
      S target_logit = 0;
      if (y >= kept_classes) {
        target_logit = to_compute(softmax.input()[Offsets(params.layout, first + p).input + y * class_stride]);
      } else if (y >= 0) {
        target_logit = to_compute(tile.kept[y * Tile::size + p]);
      }
      if constexpr (Softmax::counts) {
        softmax.count(all, target_logit, y, first + p);
        continue;
      }
      S all_terms = 0;
      if constexpr (Softmax::probabilities) {
        for (int w = 0; w < warps; ++w) all_terms += tile.terms[w * Tile::size + p];
      }
      const SoftmaxDecision<S> decision = softmax.decide(all, softmax.logit_of(target_logit), y, first + p, all_terms);
      tile.targets[p] = y;
      tile.maxima[p] = decision.max;
      tile.gradients[p] = decision.gradient;
      if constexpr (LossOf::mixes) {
        tile.values[p] = decision.value;
        tile.log_sums[p] = decision.log_sum;
        tile.shares[p] = decision.share;
        tile.all_terms[p] = decision.terms;
      } else {
        softmax.finish(decision, first + p, 0);
      }
    }
    __syncthreads();  // decisions are there, and parts may be written again

    if (softmax.second_pass() && exists) {
      int32_t y[width];
      S max[width], weighted[width] = {};
      SoftmaxGradient<S> gradient[width];
      S share[width] = {};  // of a mixture
#pragma unroll
      for (int j = 0; j < width; ++j) {
        y[j] = tile.targets[lane * width + j];
        max[j] = tile.maxima[lane * width + j];
        gradient[j] = tile.gradients[lane * width + j];
        if constexpr (LossOf::mixes) share[j] = tile.shares[lane * width + j] * softmax.scale.gradient;
      }
      T* g = softmax.writes() ? softmax.grad() + offsets.grad : nullptr;  // [C, width] at grad_class_stride
      for (int first_class = warp; first_class < C; first_class += batch * warps) {
        Run<T, width> run[batch];  // read before the first is written: the compiler cannot know that they are others
#pragma unroll
        for (int b = 0; b < batch; ++b) {
          const int c = first_class + b * warps < C ? first_class + b * warps : first_class;
          run[b] = c < kept_classes ? load_shared_run<width>(tile.kept + c * Tile::size + lane * width)
                                    : load_run<width>(x + c * class_stride);
        }
#pragma unroll
        for (int b = 0; b < batch; ++b) {
          const int c = first_class + b * warps;
          if (c >= C) break;
          S term[width];
          terms_of(c, term);
#pragma unroll
          for (int j = 0; j < width; ++j) {
            const S element = to_compute(run[b].at[j]);
            const S shifted = softmax.logit_of(element) - max[j];
            if constexpr (Softmax::mixes) weighted[j] += term[j] * shifted;
            const S value =
                softmax.gradient(gradient[j], exp_nonpositive(shifted), element, term[j] * share[j], c == y[j]);
            run[b].at[j] = to_storage<T>(y[j] < 0 ? S(0) : value);  // ignored: 0, whatever the logits
          }
          if (g) store_run(g + c * params.layout.grad_class_stride, run[b]);
        }
      }
      if constexpr (LossOf::mixes) {
#pragma unroll
        for (int j = 0; j < width; ++j) tile.weighted[warp * Tile::size + lane * width + j] = weighted[j];
      }
    }
    if constexpr (LossOf::mixes) {
      __syncthreads();  // every warp's part of weighted is there
      for (int p = thread; p < Tile::size && first + p < params.N; p += warps * 32) {
        S sum = 0;
        for (int w = 0; w < warps; ++w) sum += tile.weighted[w * Tile::size + p];
        softmax.finish({tile.targets[p],
                        tile.maxima[p],
                        tile.log_sums[p],
                        tile.values[p],
                        tile.shares[p],
                        tile.all_terms[p],
                        {},
                        0},
                       first + p, sum);
      }
    }
    __syncthreads();  // the tile is free
  }
  softmax.conclude_launch();
}

}  // namespace fastloss
