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
constexpr int kMaxTileBlocks = 2048;  // their beginning and end are a good part of small tiles' work
constexpr int kMaxScaleBlocks = 1024;
// Tests lower it, so that small batches loop too.
inline int max_blocks = kMaxBlocks;

constexpr int kCountThreads = 256;
constexpr int kTileThreads = 128;
constexpr int kMaxTileClasses = 32;
constexpr int kMaxRowThreads = 512;
constexpr int kPositionThreads = 128;
constexpr int kSigmoidThreads = 256;
constexpr int kScaleThreads = 256;

constexpr int kPackBytes = 16;  // the widest access of a thread
// Shared memory of a block: what its static part takes at most where rows are staged, and how much of the rest it may
// have without asking for it.
constexpr int kStaticSharedBytes = 1024;
constexpr int kDefaultSharedBytes = 48 * 1024 - kStaticSharedBytes;

struct DeviceLimits {
  int shared_bytes;  // that a block may ask for, beside kStaticSharedBytes
};

// A path has code of its own. Logits are read once where that is enough, because nothing is computed from them twice,
// or because they are kept in shared memory; else twice.
enum class SoftmaxPath : int32_t {
  tile,
  part_rows,  // a row for a part of a warp
  part_rows_staged,
  block_rows,
  block_rows_staged,
  block_rows_twice,
  positions,
  positions_staged,
  positions_twice,
  count,
};
// Sigmoid decisions in runs of 16 bytes, or one by one where a tensor is not aligned for that.
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
  int threads_per_row;  // part_rows, block_rows
  int row_bytes;        // part_rows, block_rows: of shared memory for each row
  int32_t code() const { return int32_t(path); }
};

struct SigmoidSchedule {
  SigmoidPath path;
  int blocks;
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
    "cuda softmax tile",
    "cuda softmax part of a warp a row",
    "cuda softmax part of a warp a row, staged",
    "cuda softmax block a row",
    "cuda softmax block a row, staged",
    "cuda softmax block a row, read twice",
    "cuda softmax positions",
    "cuda softmax positions, staged",
    "cuda softmax positions, read twice",
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

// Both passes of GHM-C sum a decision's classes in the same order: a rounding error may not move it to another bin. So
// what order that is depends on the layout alone.
inline SoftmaxSchedule schedule_of(const SoftmaxParams& params, Pass pass, const DeviceLimits& device) {
  const Layout& layout = params.layout;
  const int64_t C = params.C, element = bytes_of(params.dtype);
  const bool smooths = !params.ghmc && with_loss<float>(params, [](auto loss_of) { return loss_of.smooths; });
  const bool second_pass = pass == Pass::loss && (params.grad || smooths);
  const bool class_contiguous = C == 1 || (layout.class_stride == 1 && (!params.grad || layout.grad_class_stride == 1));
  const bool row_contiguous =
      layout.ndim == 1 && (params.N == 1 || (layout.stride[0] == C && (!params.grad || layout.grad_stride[0] == C)));
  SoftmaxSchedule schedule{};

  if (C <= kMaxTileClasses && class_contiguous && row_contiguous) {
    // Of many rows, several for each thread: a block has more bytes in flight, and begins and ends less often.
    int64_t rows = params.N < (1 << 17) ? 1 : std::clamp<int64_t>(12288 / (kTileThreads * C * element), 1, 8);
    schedule.path = SoftmaxPath::tile;
    schedule.threads = kTileThreads;
    schedule.rows = kTileThreads * int(rows);
    schedule.shared_bytes = int(schedule.rows * C * element) + kPackBytes;
    schedule.blocks = num_blocks(params.N, schedule.rows, kMaxTileBlocks);
    return schedule;
  }

  if (class_contiguous) {
    // About 16 packs for each thread at most, up to a block of kMaxRowThreads.
    const int64_t packs = (C * element + kPackBytes - 1) / kPackBytes;
    const bool whole_block = packs > 32 * 16;
    int threads = 1;
    if (whole_block) {
      threads = 128;
      while (threads < kMaxRowThreads && threads * 8 < packs) threads *= 2;
    } else {
      while (threads < 32 && threads * 4 < packs) threads *= 2;
    }
    schedule.threads_per_row = threads;
    schedule.threads = std::max(threads, 128);
    schedule.rows = schedule.threads / threads;
    schedule.blocks = num_blocks(params.N, schedule.rows);
    schedule.path = whole_block ? SoftmaxPath::block_rows : SoftmaxPath::part_rows;
    if (!second_pass) return schedule;
    const int64_t row_bytes = (C * element + 2 * kPackBytes - 1) / kPackBytes * kPackBytes;  // wherever packs start
    if (schedule.rows * row_bytes > std::max(device.shared_bytes, kDefaultSharedBytes)) {
      schedule.path = SoftmaxPath::block_rows_twice;  // at most 32 KB where a block has several rows
      return schedule;
    }
    schedule.path = whole_block ? SoftmaxPath::block_rows_staged : SoftmaxPath::part_rows_staged;
    schedule.row_bytes = int(row_bytes);
    schedule.shared_bytes = schedule.rows * schedule.row_bytes;
    return schedule;
  }

  schedule.path = SoftmaxPath::positions;
  schedule.threads = kPositionThreads;
  schedule.rows = kPositionThreads;
  schedule.blocks = num_blocks(params.N, kPositionThreads);
  if (!second_pass) return schedule;
  const int64_t bytes = C * kPositionThreads * element;
  schedule.path = bytes <= kDefaultSharedBytes ? SoftmaxPath::positions_staged : SoftmaxPath::positions_twice;
  if (schedule.path == SoftmaxPath::positions_staged) schedule.shared_bytes = int(bytes);
  return schedule;
}

inline SigmoidSchedule schedule_of(const SigmoidParams& params) {
  const int64_t element = bytes_of(params.dtype), run = kPackBytes / element;
  auto aligned = [](const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  const bool runs = aligned(params.input, kPackBytes) && aligned(params.grad, kPackBytes) &&
                    aligned(params.target, kPackBytes) && aligned(params.mask, run) &&
                    (params.reduction != Reduction::none || aligned(params.loss, kPackBytes));
  // Many decisions: several runs a thread, so that what a block does at its end weighs less.
  const int64_t runs_per_thread = params.N < (1 << 20) ? 1 : 4;
  return {runs ? SigmoidPath::runs : SigmoidPath::singles,
          num_blocks(params.N, kSigmoidThreads * run * runs_per_thread)};
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
