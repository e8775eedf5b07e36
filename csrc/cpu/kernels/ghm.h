// GHM-C on W decisions at a time: the look-up of beta and the count of the gradient norms.
#pragma once

#include "losses.h"
#include "storage.h"

namespace FASTLOSS_NAMESPACE {

// beta of each bin, in the compute type.
template <class S>
struct BinWeights {
  using V = typename VectorOf<S>::V;
  using M = typename VectorOf<S>::M;

  const double* bin_weight;  // [bins]
  int32_t bins;
  V low = {}, high = {};  // of the first 2 W bins: few bins are looked up without memory

  explicit BinWeights(const double* weights, int32_t num_bins) : bin_weight(weights), bins(num_bins) {
    for (int32_t b = 0; b < std::min(bins, W); ++b) low[b] = S(bin_weight[b]);
    for (int32_t b = W; b < std::min(bins, 2 * W); ++b) high[b - W] = S(bin_weight[b]);
  }

  FASTLOSS_LANE_FN V at(M bin) const {
    if (bins <= 2 * W) {
      M lane = bin & (W - 1);
      return select(bin < W, permute(low, lane), permute(high, lane));
    }
    V beta;
    for (int lane = 0; lane < W; ++lane) beta[lane] = S(bin_weight[bin[lane]]);
    return beta;
  }
};

// beta by the gradient norm: the look-up of losses/ghmc_loss.h.
template <class S>
struct BetaOfNorm {
  const BinWeights<S>& beta_of;

  template <class V>
  FASTLOSS_LANE_FN V operator()(V gradient_norm) const {
    return beta_of.at(ghm_bin(gradient_norm, S(beta_of.bins)));
  }
};

// How many decisions fall into each bin, added to counts [bins].
//
// Up to 32 bins are counted without memory for each decision: a lane's 32 bits are counters of four bins, 8 bits each,
// which go to the counts before they overflow. More bins are counted in memory, each lane in numbers of its own:
// neighbours that fall into one bin would wait for each other's store.
struct BinCounts {
  int64_t* counts;
  const int32_t bins;
  u32 counters[8] = {};                    // those of bins 4 w to 4 w + 3 are counters[w]
  int most = 0;                            // no counter is larger
  std::unique_ptr<int64_t[]> lane_counts;  // [bins, W]

  BinCounts(int32_t num_bins, int64_t* into)
      : counts(into), bins(num_bins), lane_counts(bins > 32 ? new int64_t[int64_t(bins) * W]() : nullptr) {}

  template <class M>
  FASTLOSS_LANE_FN void add(M bin, M valid) {
    if (lane_counts) {
      for (int lane = 0; lane < W; ++lane) lane_counts[int64_t(bin[lane]) * W + lane] -= valid[lane];  // true is -1
      return;
    }
    i32 b = __builtin_convertvector(bin, i32);
    u32 one = (u32)(__builtin_convertvector(valid, i32) & 1) << (u32)((b & 3) * 8);
    for (int w = 0; 4 * w < bins; ++w) counters[w] += b >> 2 == w ? one : u32{};
    if (++most == 255) finish();
  }

  // Brings counts up to date.
  void finish() {
    for (int32_t b = 0; b < bins; ++b) {
      for (int lane = 0; lane < W; ++lane) {
        counts[b] += lane_counts ? lane_counts[int64_t(b) * W + lane] : counters[b / 4][lane] >> b % 4 * 8 & 255;
      }
    }
    for (u32& counter : counters) counter = u32{};
    most = 0;
  }
};

// The first n bins of W decisions; the others read as -1 and are not written.
template <class M>
FASTLOSS_LANE_FN M load_bins(const int32_t* source, int n) {
  i32 bins = i32{} - 1;
  __builtin_memcpy(&bins, source, n == W ? sizeof(bins) : n * sizeof(int32_t));
  return __builtin_convertvector(bins, M);
}
template <class M>
FASTLOSS_LANE_FN void store_bins(int32_t* target, M bin, int n) {
  i32 bins = __builtin_convertvector(bin, i32);
  __builtin_memcpy(target, &bins, n == W ? sizeof(bins) : n * sizeof(int32_t));
}

}  // namespace FASTLOSS_NAMESPACE
