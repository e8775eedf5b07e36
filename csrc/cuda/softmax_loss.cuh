// Softmax losses on CUDA: loss and gradient in one kernel, by three schedules, and the count of the targets before it.
//
// Fused: max, exponentials and their sum, nll, f and f', the gradient f'(nll) * (p - onehot), and the loss's sum. A
// thread reads every logit before it, or any thread after a barrier, writes that element of the gradient: the gradient
// may overwrite the logits.
//   tile       A thread per row, a tile of rows staged in shared memory; for few classes in contiguous rows.
//              Reads the logits once and writes the gradient once.
//   rows       Some threads, or a block, per row that is kept in shared memory; for many classes that lie side by side,
//              wherever the rows are. Read once; a row too long for shared memory twice.
//   positions  A thread per decision, coalesced across decisions; for any strides. Read once; more classes than shared
//              memory holds twice.
// Precondition: what scratch has to hold was written by an earlier launch (softmax_launch.cuh).
#pragma once

#undef NDEBUG  // the assertion on the targets is for users
#include <cassert>

#include "common.cuh"

namespace fastloss {

constexpr int kTileThreads = 128;
constexpr int kMaxTileClasses = 32;
constexpr int kMaxTileBlocks = (kMaxBlocks + 3) / 4;  // their beginning and end are a good part of small tiles' work
constexpr int kMaxRowThreads = 512;
constexpr int kPositionThreads = 128;
constexpr int kCountThreads = 256;

// One launch: the call's parameters and what the launcher chose.
struct SoftmaxLaunch {
  SoftmaxParams params;
  Scratch* scratch;
  int64_t* counts;        // [bins] where CountNorms leaves its histogram, or null: it becomes GHM-C's weights
  int denominator_parts;  // parts of the mean's denominator in scratch
  int tile_rows;          // tile: rows staged at a time
  int threads_per_row;    // rows
  int staged_bytes;       // rows: of shared memory for each row; positions: for the block; 0: logits are read twice
};

// Not a loss: counts where the decisions' gradient norms fall.
struct CountNorms {};
struct NoHistogram {
  __device__ NoHistogram(uint32_t*, Scratch*, int32_t) {}
};

// ---- targets

// The class of a decision, or -1 where it is ignored. A target out of range ends the kernel: nothing is read there.
__device__ __forceinline__ int32_t target_of(const SoftmaxParams& params, int64_t position) {
  int64_t y = params.target_is_int64 ? static_cast<const int64_t*>(params.target)[position]
                                     : static_cast<const int32_t*>(params.target)[position];
  if (y == params.ignore_index) return -1;
  assert(y >= 0 && y < params.C && "target should be in [0, C) or ignore_index");
  return int32_t(y);  // C is below 2^31
}

// Leaves in scratch: sum of weight[target] (or the number of targets) over the decisions that are not ignored, in
// parts; sum_k w_k; the loss's ticket at zero.
template <class S>
__global__ void __launch_bounds__(kCountThreads) count_targets(const __grid_constant__ SoftmaxLaunch launch) {
  const SoftmaxParams& params = launch.params;
  const S* weight = static_cast<const S*>(params.weight);  // [C]
  Scratch* scratch = launch.scratch;
  double sum = 0;
  int64_t step = int64_t(gridDim.x) * kCountThreads;
  for (int64_t i = int64_t(blockIdx.x) * kCountThreads + threadIdx.x; i < params.N; i += step) {
    int32_t y = target_of(params, i);
    if (y >= 0) sum += weight ? double(weight[y]) : 1.0;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) scratch->denominator[blockIdx.x] = sum;
  if (blockIdx.x == 0) {
    sum = 0;
    for (int32_t c = threadIdx.x; weight && c < params.C; c += kCountThreads) sum += double(weight[c]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
      scratch->class_weights = sum;
      scratch->loss_ticket = 0;
    }
  }
}

// ---- one decision

// What some classes of a decision come to.
template <class S>
struct ClassSum {
  S max = -INFINITY;
  S sum = 0;  // sum_k exp(x_k - max)

  template <int n>
  __device__ __forceinline__ void add(const S (&x)[n]) {
    S high = max;
#pragma unroll
    for (int i = 0; i < n; ++i) high = fmax(high, x[i]);  // a nan comes in by its exponential
    S reference = finite(high);
    S part = 0;  // added in one: a long sum gets inexact by its number of additions
#pragma unroll
    for (int i = 0; i < n; ++i) part += exp_nonpositive(x[i] - reference);
    sum = sum * exp_nonpositive(max - reference) + part;
    max = high;
  }

  __device__ __forceinline__ void merge(S other_max, S other_sum) {
    S high = fmax(max, other_max);
    S reference = finite(high);
    // Symmetric, so that both sides of a butterfly get the same bits.
    sum = sum * exp_nonpositive(max - reference) + other_sum * exp_nonpositive(other_max - reference);
    max = high;
  }

  // No class above -inf yet: exponentials are to be 0, not exp(-inf - -inf).
  static __device__ __forceinline__ S finite(S high) { return high == S(-INFINITY) ? S(0) : high; }
};

// Gradient of class k, smoothing and scales included: exp(x_k - max) * probability - (k == y) * onehot - w_k * smooth.
template <class S>
struct SoftmaxDecision {
  int32_t y;  // -1: ignored
  S max;
  S log_sum;
  S probability;
  S onehot;
  S value;
};

// What the schedules share. Constructed and concluded by all threads of a block.
template <class T, class LossOf, bool smooths>
struct SoftmaxBlock {
  using S = Compute<T>;
  static constexpr bool counts = std::is_same_v<LossOf, CountNorms>;

  const SoftmaxLaunch& launch;
  const SoftmaxParams& params;
  const LossOf& loss_of;
  const S* weight;  // [C] or null
  S class_weights;  // sum_k w_k
  S smooth;         // label_smoothing / C
  S scale;          // of the gradient: grad_scale / denominator
  double denominator;
  double total = 0;  // of this thread's losses

  std::conditional_t<counts, BlockHistogram, NoHistogram> histogram;

  // storage: shared memory of storage_size.
  static constexpr int storage_size = counts ? BlockHistogram::kEntries : 1;
  __device__ SoftmaxBlock(const SoftmaxLaunch& l, const LossOf& loss, uint32_t* storage)
      : launch(l),
        params(l.params),
        loss_of(loss),
        weight(static_cast<const S*>(l.params.weight)),
        histogram(storage, l.scratch, l.params.ghm.bins) {
    denominator = !counts && params.reduction == Reduction::mean ? mean_denominator() : 1;
    scale = S(params.grad_scale / denominator);
    if constexpr (smooths) {
      class_weights = weight ? S(launch.scratch->class_weights) : S(params.C);
      smooth = S(params.label_smoothing / double(params.C));
    }
    stage_loss(loss_of);
  }

  // The parts that an earlier launch left, in a fixed order.
  __device__ double mean_denominator() const {
    __shared__ double shared_sum;
    if (threadIdx.x < 32) {  // one warp: every block of the grid does this
      double sum = 0;
      for (int i = threadIdx.x; i < launch.denominator_parts; i += 32) sum += launch.scratch->denominator[i];
      sum = warp_sum(sum);
      if (threadIdx.x == 0) shared_sum = sum;
    }
    __syncthreads();  // it is written
    return shared_sum;
  }

  __device__ const T* input() const { return static_cast<const T*>(params.input); }
  __device__ T* grad() const { return static_cast<T*>(params.grad); }
  __device__ S weight_of(int32_t c) const { return weight ? weight[c] : S(1); }

  // leader: the one of the decision's threads that counts it.
  __device__ SoftmaxDecision<S> decide(const ClassSum<S>& classes, S target_logit, int32_t y, bool leader) const {
    SoftmaxDecision<S> decision{y, classes.max, 0, 0, 0, 0};
    if (y < 0) return decision;
    S inverse_sum = 1 / classes.sum;
    S log_sum = log(classes.sum);
    S shifted = target_logit - classes.max;
    S nll = log_sum - shifted;
    nll = nll < 0 ? S(0) : nll;  // a rounding error at p = 1; nan stays
    S p = exp(shifted) * inverse_sum;
    S q = one_minus_p(nll);
    if constexpr (counts) {
      if (leader) histogram.add(ghm_bin(q, params.ghm.bins));
    } else {
      ValueSlope<S> f = loss_of(nll, p, q);
      S row_weight = weight_of(y);
      S slope = row_weight * f.slope;
      S mass = slope;  // what the probabilities are multiplied by: the slope, and all the smoothed targets
      decision.value = row_weight * f.value;
      if constexpr (smooths) {
        S hard = S(1 - params.label_smoothing);
        decision.value *= hard;
        slope *= hard;
        mass = slope + smooth * class_weights;
        decision.log_sum = log_sum;
      }
      decision.onehot = slope * scale;
      decision.probability = mass * scale * inverse_sum;
    }
    return decision;
  }

  // Gradient of class k, but for the target's onehot; e = exp(shifted), shifted = x_k - max. Adds w_k * shifted to
  // weighted, if smoothed.
  __device__ __forceinline__ S gradient(const SoftmaxDecision<S>& decision, S shifted, S e, int32_t k,
                                        S& weighted) const {
    S g = e * decision.probability;
    if constexpr (smooths) {
      S w = weight_of(k);
      weighted += w * shifted;
      g -= w * (smooth * scale);
    }
    return g;
  }

  // Of the target's class: the same, and onehot.
  __device__ __forceinline__ T target_gradient(const SoftmaxDecision<S>& decision, S x) const {
    S shifted = x - decision.max, unused = 0;
    return to_storage<T>(gradient(decision, shifted, exp_nonpositive(shifted), decision.y, unused) - decision.onehot);
  }

  // Called by one thread for each decision. weighted: sum_k w_k (x_k - max), if smoothed.
  __device__ void finish(const SoftmaxDecision<S>& decision, int64_t position, S weighted) {
    S value = decision.value;
    if constexpr (smooths) {
      if (decision.y >= 0) value += smooth * (class_weights * decision.log_sum - weighted);
    }
    if (params.reduction == Reduction::none) static_cast<S*>(params.loss)[position] = value;
    total += double(value);
  }

  __device__ bool writes() const { return !counts && params.grad != nullptr; }
  // Whether a decision's classes are walked a second time.
  __device__ bool second_pass() const { return smooths || writes(); }

  __device__ void conclude() const {
    if constexpr (counts) {
      histogram.flush();
      if (!is_last_block(&launch.scratch->histogram_ticket)) return;
      if (launch.counts) {
        for (int b = threadIdx.x; b < params.ghm.bins; b += blockDim.x) {
          launch.counts[b] = int64_t(__ldcg(launch.scratch->counts() + b));  // not from L1: other blocks added
        }
      } else {
        finish_histogram(params.ghm, launch.scratch, params.bin_weight);
      }
    } else if (params.reduction != Reduction::none) {
      reduce_loss(total, denominator, launch.scratch, static_cast<S*>(params.loss));
    }
  }
};

// ---- tile

// A thread walks its row from class `first` on and around, so that the 32 rows of a warp are in 32 banks: rows that
// share banks are gcd(row length in banks, banks) in number, and start at different ones.
template <class T>
__device__ __forceinline__ int first_class(int lane, int C) {
  constexpr int bank_bytes = sizeof(T) < 4 ? 4 : sizeof(T);  // 8-byte elements are read by half a warp at a time
  constexpr int banks = 128 / bank_bytes;
  int row_bytes = C * int(sizeof(T));
  if (row_bytes % bank_bytes != 0) return 0;  // an odd number of halves
  int stride = row_bytes / bank_bytes;
  int shared_by = min(stride & -stride, banks);
  return lane % banks / (banks / shared_by) * (bank_bytes / int(sizeof(T)));
}

template <class T, class LossOf, bool smooths>
__global__ void __launch_bounds__(kTileThreads, sizeof(T) == 8 ? 5 : 7)
    softmax_tile(const __grid_constant__ SoftmaxLaunch launch, const LossOf loss_of) {
  using S = Compute<T>;
  using Softmax = SoftmaxBlock<T, LossOf, smooths>;
  constexpr int batch = 4;           // packs that a thread loads before it stores the first: bytes in flight
  extern __shared__ uint4 shared[];  // [tile_rows, C] of T, and up to one pack before
  __shared__ uint32_t counters[Softmax::storage_size];
  Softmax softmax(launch, loss_of, counters);
  const SoftmaxParams& params = launch.params;
  const int C = int(params.C);
  const int start = first_class<T>(threadIdx.x % 32, C);

  int64_t step = int64_t(gridDim.x) * launch.tile_rows;
  for (int64_t first = int64_t(blockIdx.x) * launch.tile_rows; first < params.N; first += step) {
    const int rows = int(min(int64_t(launch.tile_rows), params.N - first));
    const T* x = softmax.input() + first * C;  // [rows, C]
    // Aligned like x, so that packs are packs in shared memory too.
    T* tile = reinterpret_cast<T*>(shared) + (reinterpret_cast<uintptr_t>(x) & 15) / sizeof(T);  // [rows, C]
    Split<T, int> in(x, rows * C, true);
    for (int i = threadIdx.x; i < in.packs; i += batch * kTileThreads) {
      Pack<T> loaded[batch];
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (i + b * kTileThreads < in.packs) loaded[b] = load_pack(x + in.pack(i + b * kTileThreads));
      }
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (i + b * kTileThreads < in.packs) store_shared_pack(tile + in.pack(i + b * kTileThreads), loaded[b]);
      }
    }
    for (int i = threadIdx.x; i < in.scalars; i += kTileThreads) tile[in.scalar(i)] = x[in.scalar(i)];
    __syncthreads();  // the tile is staged, and all of x read

    for (int r = threadIdx.x; r < rows; r += kTileThreads) {
      T* row = tile + r * C;  // [C]
      auto for_each_class = [C, start](auto&& visit) {
        int c = start;
#pragma unroll 4
        for (int i = 0; i < C; ++i) {
          visit(c);
          c = c + 1 == C ? 0 : c + 1;
        }
      };
      const int32_t y = target_of(params, first + r);
      const S target_logit = y < 0 ? S(0) : to_compute(row[y]);
      ClassSum<S> classes;
      for_each_class([&](int c) { classes.max = fmax(classes.max, to_compute(row[c])); });
      for_each_class([&](int c) { classes.sum += exp_nonpositive(to_compute(row[c]) - classes.max); });
      SoftmaxDecision<S> decision = softmax.decide(classes, target_logit, y, true);
      S weighted = 0;
      if (softmax.second_pass()) {
        for_each_class([&](int c) {
          S shifted = to_compute(row[c]) - classes.max;
          S g = softmax.gradient(decision, shifted, exp_nonpositive(shifted), c, weighted);
          row[c] = to_storage<T>(y < 0 ? S(0) : g);  // ignored: 0, whatever the logits
        });
        if (y >= 0) row[y] = softmax.target_gradient(decision, target_logit);
      }
      if constexpr (!Softmax::counts) softmax.finish(decision, first + r, weighted);
    }
    __syncthreads();  // the gradient is in the tile, or no row is read any more
    if (softmax.writes()) {
      T* g = softmax.grad() + first * C;  // [rows, C]
      Split<T, int> out(g, rows * C, same_alignment(g, tile));
      for (int i = threadIdx.x; i < out.packs; i += kTileThreads) {
        store_pack(g + out.pack(i), load_shared_pack(tile + out.pack(i)));
      }
      for (int i = threadIdx.x; i < out.scalars; i += kTileThreads) g[out.scalar(i)] = tile[out.scalar(i)];
      __syncthreads();  // the tile is written out before the next one comes
    }
  }
  softmax.conclude();
}

// ---- rows

// Merges what the threads of a row have; all of them get the same bits. threads: a power of two; beyond 32, the block.
template <class S>
__device__ __forceinline__ void merge_threads(ClassSum<S>& classes, int threads) {
#pragma unroll 1
  for (int offset = min(threads, 32) / 2; offset > 0; offset /= 2) {
    S max = __shfl_xor_sync(0xffffffff, classes.max, offset);
    S sum = __shfl_xor_sync(0xffffffff, classes.sum, offset);
    classes.merge(max, sum);
  }
  if (threads <= 32) return;
  __shared__ S maxima[kMaxRowThreads / 32], sums[kMaxRowThreads / 32];
  if (threadIdx.x % 32 == 0) {
    maxima[threadIdx.x / 32] = classes.max;
    sums[threadIdx.x / 32] = classes.sum;
  }
  __syncthreads();  // every warp's part is there; and all of the row's logits were read
  classes = {maxima[0], sums[0]};
#pragma unroll 1
  for (int warp = 1; warp < threads / 32; ++warp) classes.merge(maxima[warp], sums[warp]);
  __syncthreads();  // the parts may be written again
}

// Sum over the threads of a row, in its first.
template <class S>
__device__ __forceinline__ S add_threads(S value, int threads) {
  if (threads > 32) return S(block_sum(double(value)));
#pragma unroll 1
  for (int offset = threads / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
  return value;
}

template <class T, class LossOf, bool smooths>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    softmax_rows(const __grid_constant__ SoftmaxLaunch launch, const LossOf loss_of) {
  using S = Compute<T>;
  using Softmax = SoftmaxBlock<T, LossOf, smooths>;
  constexpr uint32_t size = Pack<T>::kSize;
  constexpr int batch = 4;           // packs that a thread loads before it uses the first: bytes in flight
  extern __shared__ uint4 shared[];  // [rows of the block, staged_bytes]
  __shared__ uint32_t counters[Softmax::storage_size];
  Softmax softmax(launch, loss_of, counters);
  const SoftmaxParams& params = launch.params;
  const uint32_t C = uint32_t(params.C);  // below 2^31: indices past the end still fit
  const uint32_t threads = launch.threads_per_row;
  const uint32_t lane = threadIdx.x % threads;
  const uint32_t row_in_block = threadIdx.x / threads;
  const uint32_t rows = blockDim.x / threads;
  const bool staged = launch.staged_bytes > 0;

  int64_t step = int64_t(gridDim.x) * rows;
  // The loop is the block's, not the row's: every thread comes to every shuffle and barrier.
  for (int64_t first = int64_t(blockIdx.x) * rows; first < params.N; first += step) {
    const int64_t position = first + row_in_block;
    const bool exists = position < params.N;
    const Offsets offsets(params.layout, exists ? position : first);
    const T* x = softmax.input() + offsets.input;                       // [C]
    T* g = softmax.writes() ? softmax.grad() + offsets.grad : nullptr;  // [C]
    const int32_t y = exists ? target_of(params, position) : -1;
    // Elements of x and g that are 16 bytes in both.
    const Split<T, uint32_t> split(x, C, !g || same_alignment(x, g));
    const uint32_t packs = y < 0 ? 0 : split.packs;
    const uint32_t scalars = y < 0 ? 0 : split.scalars;
    // A warp takes packs from the start of a 32-byte sector on, else its accesses have half a sector at both ends. Pack
    // -1, where the first is a sector's second half, is none: unsigned, it is past the end.
    const int32_t first_pack = int32_t(lane) - int32_t(reinterpret_cast<uintptr_t>(x + split.head) / 16 % 2);
    // Shifted so that packs are packs in shared memory too. A thread reads there only what it wrote: no barrier.
    T* row = reinterpret_cast<T*>(reinterpret_cast<char*>(shared) + row_in_block * launch.staged_bytes) +
             (size - split.head % size) % size;  // [C]

    S target_logit = y < 0 ? S(0) : to_compute(x[y]);
    ClassSum<S> classes;
    for (int32_t i = first_pack; i < int32_t(packs); i += batch * threads) {
      Pack<T> loaded[batch];
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (i + b * threads < packs) loaded[b] = load_pack(x + split.pack(i + b * threads));
      }
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (i + b * threads >= packs) continue;
        if (staged) store_shared_pack(row + split.pack(i + b * threads), loaded[b]);
        S logits[size];
#pragma unroll
        for (uint32_t j = 0; j < size; ++j) logits[j] = to_compute(loaded[b].at[j]);
        classes.add(logits);
      }
    }
    for (uint32_t i = lane; i < scalars; i += threads) {
      T loaded = x[split.scalar(i)];
      if (staged) row[split.scalar(i)] = loaded;
      S logits[1] = {to_compute(loaded)};
      classes.add(logits);
    }
    merge_threads(classes, threads);  // and orders all reads of the row, target_logit's too, before its writes

    SoftmaxDecision<S> decision = softmax.decide(classes, target_logit, y, lane == 0);
    S weighted = 0;
    if (softmax.second_pass() && y >= 0) {
      for (int32_t i = first_pack; i < int32_t(packs); i += threads) {
        if (i < 0) continue;
        uint32_t at = split.pack(i);
        Pack<T> pack = staged ? load_shared_pack(row + at) : load_pack(x + at);
#pragma unroll
        for (uint32_t j = 0; j < size; ++j) {
          S shifted = to_compute(pack.at[j]) - classes.max;
          pack.at[j] = to_storage<T>(softmax.gradient(decision, shifted, exp_nonpositive(shifted), at + j, weighted));
        }
        if (y - at < size) {  // seldom
#pragma unroll
          for (uint32_t j = 0; j < size; ++j) {
            if (at + j == uint32_t(y)) pack.at[j] = softmax.target_gradient(decision, target_logit);
          }
        }
        if (g) store_pack(g + at, pack);
      }
      for (uint32_t i = lane; i < scalars; i += threads) {
        uint32_t c = split.scalar(i);
        S shifted = to_compute(staged ? row[c] : x[c]) - classes.max;
        S value = softmax.gradient(decision, shifted, exp_nonpositive(shifted), c, weighted);
        if (g) g[c] = c == uint32_t(y) ? softmax.target_gradient(decision, target_logit) : to_storage<T>(value);
      }
    } else if (g && exists) {  // ignored: 0, whatever the logits
      Pack<T> zeros{};
      for (int32_t i = first_pack; i < int32_t(split.packs); i += threads) {
        if (i >= 0) store_pack(g + split.pack(i), zeros);
      }
      for (uint32_t i = lane; i < split.scalars; i += threads) g[split.scalar(i)] = zeros.at[0];
    }
    if constexpr (smooths) weighted = add_threads(weighted, threads);
    if constexpr (!Softmax::counts) {
      if (exists && lane == 0) softmax.finish(decision, position, weighted);
    }
  }
  softmax.conclude();
}

// ---- positions

template <class T, class LossOf, bool smooths>
__global__ void __launch_bounds__(kPositionThreads, 6)
    softmax_positions(const __grid_constant__ SoftmaxLaunch launch, const LossOf loss_of) {
  using S = Compute<T>;
  using Softmax = SoftmaxBlock<T, LossOf, smooths>;
  constexpr uint32_t batch = 4;      // classes loaded before the first is used
  extern __shared__ uint4 shared[];  // [C, threads] of T; a thread reads only what it wrote there: no barrier
  __shared__ uint32_t counters[Softmax::storage_size];
  Softmax softmax(launch, loss_of, counters);
  const SoftmaxParams& params = launch.params;
  const uint32_t C = uint32_t(params.C);  // below 2^31: indices past the end still fit
  const bool staged = launch.staged_bytes > 0;
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
    SoftmaxDecision<S> decision = softmax.decide(classes, target_logit, y, true);
    S weighted = 0;
    if (softmax.second_pass() && y >= 0) {
#pragma unroll 4
      for (uint32_t c = 0; c < C; ++c) {
        T logit = staged ? column[c * kPositionThreads] : x[c * params.layout.class_stride];
        S shifted = to_compute(logit) - classes.max;
        S value = softmax.gradient(decision, shifted, exp_nonpositive(shifted), c, weighted);
        if (c == uint32_t(y)) value -= decision.onehot;
        if (g) g[c * params.layout.grad_class_stride] = to_storage<T>(value);
      }
    } else if (g) {  // ignored: 0, whatever the logits
      for (uint32_t c = 0; c < C; ++c) g[c * params.layout.grad_class_stride] = to_storage<T>(S(0));
    }
    if constexpr (!Softmax::counts) softmax.finish(decision, position, weighted);
  }
  softmax.conclude();
}

}  // namespace fastloss
