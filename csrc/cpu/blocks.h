// Cuts the decisions of a call into blocks for torch's threads, and adds what the blocks return, in order.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

namespace fastloss {

// Calls work(first_block, last_block) for ranges of the blocks of [0, total), a range a thread.
template <class Work>
void for_each_range(int64_t total, int64_t block_size, const Work& work) {
  const int64_t blocks = (total + block_size - 1) / block_size;
  if (blocks == 1) return work(int64_t(0), blocks);
  torch::stable::parallel_for(0, blocks, 1, work);
}

// Calls work(block, begin, end) for each block of [0, total) on torch's threads.
template <class Work>
void for_each_block(int64_t total, int64_t block_size, const Work& work) {
  for_each_range(total, block_size, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      work(block, block * block_size, std::min((block + 1) * block_size, total));
    }
  });
}

// Adds up sum_of(begin, end) in the order of the blocks.
template <class SumOf>
double sum_of_blocks(int64_t total, int64_t block_size, const SumOf& sum_of) {
  std::vector<double> sums((total + block_size - 1) / block_size);
  for_each_block(total, block_size,
                 [&](int64_t block, int64_t begin, int64_t end) { sums[block] = sum_of(begin, end); });
  double sum = 0;
  for (double part : sums) sum += part;
  return sum;
}

// Counts [bins] that threads add to, in any order: they are integers.
struct SharedCounts {
  std::vector<int64_t> counts;
  std::mutex mutex;

  explicit SharedCounts(int32_t bins) : counts(bins) {}

  // count(own) adds to a thread's own counts [bins].
  template <class Count>
  void add(const Count& count) {
    std::vector<int64_t> own(counts.size());
    count(own.data());
    std::lock_guard<std::mutex> lock(mutex);
    for (size_t b = 0; b < counts.size(); ++b) counts[b] += own[b];
  }
};

}  // namespace fastloss
