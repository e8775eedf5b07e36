// Which path a call takes, decided in one place: device.cpp asks here, and the kernels do what the answer says.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../losses/params.h"

namespace fastloss {

inline int64_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// How classes and decisions meet the lanes of a vector.
enum class Path : int32_t {
  transposed,  // W decisions, their rows of classes side by side in memory: transposed in registers
  positions,   // W decisions side by side in memory, class by class
  gathered,    // W decisions, one element after the other, wherever they lie
  rows,        // one decision, W of its classes: many classes side by side
};

// What becomes of the gradient.
enum class Output : int32_t {
  loss_only,
  stored,
  streamed,  // past the caches: it is too large for them
  // GHM-C of short rows: cross entropy's gradient is stored first, and multiplied by beta while it is in cache. Its
  // other gradients are computed anew from the logits: large ones, as that moves less; in half precision, as they would
  // be rounded twice; long rows and classes far apart, where it is as fast.
  multiplied,
};

struct Schedule {
  Path path;
  Output output;
  int64_t block_size;  // decisions, the unit of work and of summation
};

// can_stream: the instruction set has such stores for the dtype.
inline Output output_of(const void* grad, const void* input, int64_t bytes, bool can_stream, int64_t large) {
  if (!grad) return Output::loss_only;
  // What is written over the logits is in the caches already.
  return can_stream && grad != input && bytes >= large ? Output::streamed : Output::stored;
}

inline Path path_of(const SoftmaxParams& params) {
  const Layout& layout = params.layout;
  const bool side_by_side = layout.class_stride == 1 && (!has_second_tensor(params) || layout.grad_class_stride == 1);
  const int inner = layout.ndim - 1;
  if (side_by_side && params.C > 200) return Path::rows;
  if (layout.stride[inner] == 1 && (!has_second_tensor(params) || layout.grad_stride[inner] == 1))
    return Path::positions;
  return side_by_side && params.C >= 4 ? Path::transposed : Path::gathered;
}

inline Schedule schedule_of(const SoftmaxParams& params, bool can_stream) {
  const int64_t logits = params.N * params.C, bytes = logits * size_of(params.dtype);
  const Layout& layout = params.layout;
  Schedule schedule{path_of(params), Output::stored, 0};
  const bool rows = schedule.path == Path::rows;
  // Where classes lie far apart, every line that is not streamed is read from far away first: it pays earlier. A tile
  // that is transposed or gathered writes a part of a line here and there, which streaming is slow at.
  const int64_t large = (rows ? 24 : 8) << 20;
  can_stream &= rows || schedule.path == Path::positions;
  schedule.output = output_of(params.grad, params.input, bytes, can_stream, large);
  if (params.ghmc && params.grad && !rows && size_of(params.dtype) >= 4 && layout.class_stride == 1 &&
      layout.grad_class_stride == 1 && logits <= int64_t(1) << 21) {
    schedule.output = Output::multiplied;
  }
  // 4096 to 65536 logits, in whole tiles of the widest vectors. Small enough for many threads to share, large enough
  // that starting one costs nothing. Never a function of the threads: that is what makes the sums the same at any
  // number of them.
  const int64_t decisions = std::clamp<int64_t>(logits / 256, 4096, 65536) / std::max<int64_t>(params.C, 1);
  schedule.block_size = rows ? std::max<int64_t>(decisions, 1) : std::max<int64_t>(decisions / 16 * 16, 16);
  return schedule;
}

// The path of GHM-C's first pass, cross entropy: with its gradient, or without.
inline Schedule first_pass_of(Schedule schedule) {
  schedule.output = schedule.output == Output::multiplied ? Output::stored : Output::loss_only;
  return schedule;
}

// Decisions side by side, each a vector's lane.
inline Schedule schedule_of(const SigmoidParams& params, bool can_stream) {
  const int64_t bytes = params.N * size_of(params.dtype);
  return {Path::positions, output_of(params.grad, params.input, bytes, can_stream, 24 << 20), 8192};
}

inline Schedule schedule_of(const ScaleParams& params) {
  const Layout& layout = params.layout;
  const int inner = layout.ndim - 1;
  Path path = Path::gathered;
  if (layout.class_stride == 1 && layout.grad_class_stride == 1) path = Path::rows;
  if (layout.stride[inner] == 1 && layout.grad_stride[inner] == 1) path = Path::positions;
  const int64_t decisions = 32768 / std::max<int64_t>(params.C, 1);
  return {path, Output::stored, std::max<int64_t>(decisions / 16 * 16, 16)};
}

// Every path that a loss can take. GHM-C's second pass has code of its own.
struct NamedSchedule {
  const char* name;
  bool sigmoid, ghmc;
  Path path;
  Output output;
};
constexpr NamedSchedule kSchedules[] = {
    {"softmax transposed, loss only", false, false, Path::transposed, Output::loss_only},
    {"softmax transposed", false, false, Path::transposed, Output::stored},
    {"softmax positions, loss only", false, false, Path::positions, Output::loss_only},
    {"softmax positions", false, false, Path::positions, Output::stored},
    {"softmax positions streamed", false, false, Path::positions, Output::streamed},
    {"softmax gathered, loss only", false, false, Path::gathered, Output::loss_only},
    {"softmax gathered", false, false, Path::gathered, Output::stored},
    {"softmax rows, loss only", false, false, Path::rows, Output::loss_only},
    {"softmax rows", false, false, Path::rows, Output::stored},
    {"softmax rows streamed", false, false, Path::rows, Output::streamed},
    {"softmax GHM-C transposed, loss only", false, true, Path::transposed, Output::loss_only},
    {"softmax GHM-C transposed", false, true, Path::transposed, Output::stored},
    {"softmax GHM-C transposed multiplied", false, true, Path::transposed, Output::multiplied},
    {"softmax GHM-C positions, loss only", false, true, Path::positions, Output::loss_only},
    {"softmax GHM-C positions", false, true, Path::positions, Output::stored},
    {"softmax GHM-C positions streamed", false, true, Path::positions, Output::streamed},
    {"softmax GHM-C positions multiplied", false, true, Path::positions, Output::multiplied},
    {"softmax GHM-C gathered, loss only", false, true, Path::gathered, Output::loss_only},
    {"softmax GHM-C gathered", false, true, Path::gathered, Output::stored},
    {"softmax GHM-C gathered multiplied", false, true, Path::gathered, Output::multiplied},
    {"softmax GHM-C rows, loss only", false, true, Path::rows, Output::loss_only},
    {"softmax GHM-C rows", false, true, Path::rows, Output::stored},
    {"softmax GHM-C rows streamed", false, true, Path::rows, Output::streamed},
    {"sigmoid, loss only", true, false, Path::positions, Output::loss_only},
    {"sigmoid", true, false, Path::positions, Output::stored},
    {"sigmoid streamed", true, false, Path::positions, Output::streamed},
    {"sigmoid GHM-C, loss only", true, true, Path::positions, Output::loss_only},
    {"sigmoid GHM-C", true, true, Path::positions, Output::stored},
    {"sigmoid GHM-C streamed", true, true, Path::positions, Output::streamed},
};

}  // namespace fastloss
