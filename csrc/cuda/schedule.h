// Which kernels a call takes, and their grids. The launchers are driven by what schedule_of returns, and tests find
// shapes for every path by it. Plain host C++: neither CUDA nor torch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../losses/table.h"

namespace fastloss {

// Grids are capped, so that there is a bound on the partial sums; blocks then loop. The caps do not depend on the GPU:
// nor do the sums.
constexpr int kMaxBlocks = 8192;
constexpr int kMaxCountBlocks = 256;
constexpr int kMaxTileBlocks = 1024;  // all of them at work at once on a large GPU
constexpr int kMaxScaleBlocks = 1024;
// Tests lower it, so that small batches loop too.
inline int max_blocks = kMaxBlocks;

constexpr int kCountThreads = 256;
constexpr int kMaxTileClasses = 32;
// Each warp has two tiles of 32 rows in shared memory; those of float64 are large.
constexpr int tile_threads(size_t element) { return element == 8 ? 64 : 128; }
// Half as many where the registers of a multiprocessor would not do.
constexpr int max_row_threads(size_t element, bool mixes) { return element == 8 || mixes ? 512 : 1024; }
constexpr int kPositionThreads = 256;
constexpr int kSigmoidThreads = 256;
constexpr int kScaleThreads = 256;

constexpr int kPackBytes = 16;  // the widest access of a thread
// Shared memory of a block: what its static part takes at most, a histogram, and how much of the rest it may
// have without asking for it.
constexpr int kStaticSharedBytes = 9 * 1024;
constexpr int kDefaultSharedBytes = 48 * 1024 - kStaticSharedBytes;

struct DeviceLimits {
  int shared_bytes;  // that a block may ask for, beside kStaticSharedBytes
};

// A path has code of its own. Logits are read once where that is enough, because nothing is computed from them twice,
// or because they are kept in shared memory (staged); those that do not fit twice.
enum class SoftmaxPath : int32_t {
  tile_4,  // up to so many classes
  tile_8,
  tile_12,
  tile_16,
  tile_24,
  tile_32,
  part_rows,  // a row for a part of a warp
  part_rows_staged,
  block_rows,
  block_rows_staged,
  block_rows_partly,  // staged, as much as fits
  positions,
  positions_staged,
  positions_partly,
  wide_positions,  // 16 bytes of decisions that lie side by side
  wide_positions_staged,
  wide_positions_partly,
  count,
};
// Sigmoid decisions in runs of 16 bytes of logits, or one by one where the tensors that are written are not aligned
// alike.
enum class SigmoidPath : int32_t { runs, singles, count };
// A gradient without gaps times a number, decisions whose classes lie side by side, or anything else.
enum class ScalePath : int32_t { dense, rows, positions };

// What a launch computes. GHM-C counts its gradient norms before its loss.
enum class Pass : int32_t { gradient_norms, loss };

struct SoftmaxSchedule {
  SoftmaxPath path;
  int blocks, threads;
  int shared_bytes;     // of a block, dynamic
  int rows;             // of a block at a time
  int tile_bytes;       // tiles, positions: of shared memory for a tile
  int threads_per_row;  // part_rows, block_rows
  int row_bytes;        // part_rows, block_rows: of shared memory for each row
  int warps;            // positions: that share a tile's classes
  int kept_classes;     // positions
  int32_t code() const { return int32_t(path); }
};

struct SigmoidSchedule {
  SigmoidPath path;
  int blocks;
  int64_t head, runs;  // decisions before the first run, and how many runs; the others go one by one
  // By how many bytes the logits and targets of a run begin after 16 aligned ones: the GPU loads no other.
  int input_shift, target_shift;
  bool mask_in_runs;
  int32_t code() const { return int32_t(SoftmaxPath::count) + int32_t(path); }
};

struct ScaleSchedule {
  ScalePath path;
  int blocks;
  int threads_per_decision;  // 1: positions
  int32_t code() const { return int32_t(SoftmaxPath::count) + int32_t(SigmoidPath::count) + int32_t(path); }
};

// By code.
constexpr const char* kCudaScheduleNames[] = {
    "cuda softmax tile of 4 classes",
    "cuda softmax tile of 8 classes",
    "cuda softmax tile of 12 classes",
    "cuda softmax tile of 16 classes",
    "cuda softmax tile of 24 classes",
    "cuda softmax tile of 32 classes",
    "cuda softmax part of a warp a row",
    "cuda softmax part of a warp a row, staged",
    "cuda softmax block a row",
    "cuda softmax block a row, staged",
    "cuda softmax block a row, partly staged",
    "cuda softmax positions",
    "cuda softmax positions, staged",
    "cuda softmax positions, partly staged",
    "cuda softmax wide positions",
    "cuda softmax wide positions, staged",
    "cuda softmax wide positions, partly staged",
    "cuda sigmoid runs",
    "cuda sigmoid singles",
    "cuda scale dense",
    "cuda scale rows",
    "cuda scale positions",
};

inline int bytes_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return 4;
    case DType::float64:
      return 8;
    case DType::bfloat16:
    case DType::float16:
      return 2;
  }
  return 0;
}

// Blocks for `work` items at `per_block` each: at least one, so that an empty batch still has its loss written.
inline int num_blocks(int64_t work, int64_t per_block, int limit = kMaxBlocks) {
  return int(std::clamp<int64_t>((work + per_block - 1) / per_block, 1, std::min(limit, max_blocks)));
}

// Fewer of float64, which is seldom. An extended loss has one, which does not hold a row in registers.
inline SoftmaxPath tile_path(int64_t C, int64_t element, bool extended) {
  if (extended) return SoftmaxPath::tile_32;
  if (C <= 4 && element < 8) return SoftmaxPath::tile_4;
  if (C <= 8) return SoftmaxPath::tile_8;
  if (C <= 12 && element < 8) return SoftmaxPath::tile_12;
  if (C <= 16) return SoftmaxPath::tile_16;
  return C <= 24 && element < 8 ? SoftmaxPath::tile_24 : SoftmaxPath::tile_32;
}

// What a loss's functor says of itself.
struct LossKind {
  bool mixes, probabilities, extended;
};
inline LossKind kind_of(const SoftmaxParams& params) {
  if (params.ghmc) return {};
  return with_loss<float>(
      params, [](auto loss_of) { return LossKind{loss_of.mixes, loss_of.probabilities, loss_of.extended}; });
}

// Whether decisions lie side by side, 16 aligned bytes of them at a time, in the input and in the gradient.
inline bool positions_are_wide(const SoftmaxParams& params) {
  const Layout& layout = params.layout;
  const int64_t width = kPackBytes / bytes_of(params.dtype);
  const int last = layout.ndim - 1;
  auto wide = [&](const void* at, const int64_t* stride, int64_t class_stride) {
    if (reinterpret_cast<uintptr_t>(at) % kPackBytes || class_stride % width || stride[last] != 1) return false;
    return std::all_of(stride, stride + last, [&](int64_t s) { return s % width == 0; });
  };
  return layout.size[last] % width == 0 && wide(params.input, layout.stride, layout.class_stride) &&
         (!params.grad || wide(params.grad, layout.grad_stride, layout.grad_class_stride)) &&
         (!params.probabilities || wide(params.target, layout.grad_stride, layout.grad_class_stride));
}

// Both passes of GHM-C sum a decision's classes in the same order: a rounding error may not move it to another bin. So
// what order that is depends on the layout alone.
inline SoftmaxSchedule schedule_of(const SoftmaxParams& params, Pass pass, const DeviceLimits& device) {
  const Layout& layout = params.layout;
  const int64_t C = params.C, element = bytes_of(params.dtype);
  const auto [mixes, probabilities, extended] = kind_of(params);
  const bool second_pass = pass == Pass::loss && (params.grad || mixes);
  const bool two = has_second_tensor(params);
  const bool class_contiguous = C == 1 || (layout.class_stride == 1 && (!two || layout.grad_class_stride == 1));
  const bool row_contiguous =
      layout.ndim == 1 && (params.N == 1 || (layout.stride[0] == C && (!two || layout.grad_stride[0] == C)));
  SoftmaxSchedule schedule{};

  if (C <= kMaxTileClasses && class_contiguous && row_contiguous) {
    schedule.path = tile_path(C, element, extended);
    schedule.threads = schedule.rows = tile_threads(element);
    schedule.tile_bytes = int(32 * C * element) + kPackBytes;  // wherever packs start
    schedule.shared_bytes = schedule.threads / 32 * 2 * schedule.tile_bytes;
    schedule.blocks = num_blocks(params.N, schedule.rows, kMaxTileBlocks);
    return schedule;
  }

  if (class_contiguous) {
    // About 16 packs for each thread; at least 40 KB are in flight on a multiprocessor, four packs a thread, however
    // few rows fit its memory.
    const int64_t packs = (C * element + kPackBytes - 1) / kPackBytes;
    const bool whole_block = packs > 32 * 16;
    int threads = 1;
    if (whole_block) {
      threads = packs <= 1024 ? 128 : packs <= 3200 ? 256 : packs <= 6400 ? 512 : max_row_threads(element, mixes);
    } else {
      while (threads < 32 && threads * 4 < packs) threads *= 2;
    }
    schedule.threads_per_row = threads;
    schedule.threads = std::max(threads, 128);
    schedule.rows = schedule.threads / threads;
    schedule.blocks = num_blocks(params.N, schedule.rows);
    schedule.path = whole_block ? SoftmaxPath::block_rows : SoftmaxPath::part_rows;
    if (!second_pass) return schedule;
    const int64_t row_bytes = packs * kPackBytes;  // at most 32 KB where a block has several rows
    schedule.path = whole_block ? SoftmaxPath::block_rows_staged : SoftmaxPath::part_rows_staged;
    if (row_bytes > device.shared_bytes) schedule.path = SoftmaxPath::block_rows_partly;
    schedule.row_bytes = int(std::min<int64_t>(row_bytes, device.shared_bytes / kPackBytes * kPackBytes));
    schedule.shared_bytes = schedule.rows * schedule.row_bytes;
    return schedule;
  }

  // At least eight classes for each warp; up to eight tiles for a block.
  schedule.warps = 1;
  while (schedule.warps < kPositionThreads / 32 && schedule.warps * 16 <= C) schedule.warps *= 2;
  const int64_t tiles = kPositionThreads / 32 / schedule.warps, compute = element == 8 ? 8 : 4;
  // Of each decision in a PositionTile, without what is kept.
  int64_t fixed = (2 * schedule.warps + 1) * compute + 4;
  if (mixes) fixed += (schedule.warps + 4) * compute;
  if (probabilities) fixed += schedule.warps * compute;
  const int64_t width = kPackBytes / element;
  const bool wide = positions_are_wide(params) && 32 * width * tiles * fixed <= device.shared_bytes;
  const int64_t tile = wide ? 32 * width : 32;
  if (second_pass) {  // two blocks on a multiprocessor
    const int64_t most = (device.shared_bytes / 2 / tiles - tile * fixed) / (tile * element);
    schedule.kept_classes = int(std::clamp<int64_t>(most, 0, C));
  }
  schedule.path = !second_pass                 ? SoftmaxPath::positions
                  : schedule.kept_classes == C ? SoftmaxPath::positions_staged
                                               : SoftmaxPath::positions_partly;
  if (wide) schedule.path = SoftmaxPath(int(schedule.path) + 3);
  schedule.threads = kPositionThreads;
  schedule.rows = int(tile * tiles);
  schedule.tile_bytes = int(tile * (fixed + schedule.kept_classes * element));
  schedule.shared_bytes = int(tiles) * schedule.tile_bytes;
  schedule.blocks = num_blocks(params.N, schedule.rows);
  return schedule;
}

// bin: [N] that is written too, or null.
inline SigmoidSchedule schedule_of(const SigmoidParams& params, const int32_t* bin = nullptr) {
  const int element = bytes_of(params.dtype), run = kPackBytes / element, compute = element == 8 ? 8 : 4;
  // What precedes 16 aligned bytes of the decisions from `from` on.
  auto shift_of = [](const void* at, int64_t from, int bytes) {
    return int((reinterpret_cast<uintptr_t>(at) + from * bytes) % kPackBytes);
  };
  const void* each_loss = params.reduction == Reduction::none ? params.loss : nullptr;
  SigmoidSchedule schedule{};
  // Many decisions: several runs a thread, so that what a block does at its end weighs less.
  const int64_t runs_per_thread = params.N < (1 << 20) ? 1 : 4;
  schedule.blocks = num_blocks(params.N, kSigmoidThreads * run * runs_per_thread);
  // Runs begin where those of what is written do; where nothing is, as the logits.
  const bool by_four = !params.grad && (each_loss || bin);  // of 4 bytes or, float64, 8
  const void* leader = params.grad ? params.grad : each_loss ? each_loss : bin ? bin : params.input;
  const int leader_bytes = !by_four ? element : each_loss ? compute : 4;
  const int64_t head = (kPackBytes - shift_of(leader, 0, 1)) % kPackBytes / leader_bytes;
  auto fits = [&](const void* at, int bytes) {
    return !at || shift_of(at, head, bytes) % std::min(kPackBytes, run * bytes) == 0;
  };
  if (!fits(params.grad, element) || !fits(each_loss, compute) || !fits(bin, 4)) {
    schedule.path = SigmoidPath::singles;
    return schedule;
  }
  schedule.path = SigmoidPath::runs;
  const int target_bytes = params.target_is_compute_type ? compute : element;
  schedule.input_shift = shift_of(params.input, head, element);
  schedule.target_shift = shift_of(params.target, head, target_bytes);
  // A shifted run is taken out of 16 bytes more, which are to lie in the tensor: not of the first and the last run.
  const int64_t apart = schedule.input_shift || schedule.target_shift ? 1 : 0;
  schedule.head = std::min(head + apart * run, params.N);
  schedule.runs = std::max<int64_t>((params.N - schedule.head) / run - apart, 0);
  schedule.mask_in_runs = (reinterpret_cast<uintptr_t>(params.mask) + schedule.head) % run == 0;
  return schedule;
}

// At most kMaxScaleBlocks: mostly they read a 1 and are through.
inline ScaleSchedule schedule_of(const ScaleParams& params) {
  const Layout& layout = params.layout;
  const int64_t count = params.N * params.C, element = bytes_of(params.dtype);
  // No gaps: as many elements as there are in memory from the first to the last; and both alike.
  bool dense = !params.per_decision && layout.extent == count && layout.class_stride == layout.grad_class_stride;
  for (int d = 0; d < layout.ndim; ++d) dense = dense && layout.stride[d] == layout.grad_stride[d];
  if (dense) {
    return {ScalePath::dense, num_blocks(count * element, 4 * kScaleThreads * kPackBytes, kMaxScaleBlocks), 0};
  }
  int threads = 1;
  if (layout.class_stride == 1 && layout.grad_class_stride == 1 && params.C > 1) {
    threads = 2;
    while (threads < 32 && threads * kPackBytes < params.C * element) threads *= 2;
  }
  return {threads > 1 ? ScalePath::rows : ScalePath::positions,
          num_blocks(params.N, kScaleThreads / threads, kMaxScaleBlocks), threads};
}

}  // namespace fastloss
