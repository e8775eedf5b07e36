// GHM-C on W decisions at a time: the look-up of beta and the count of the gradient norms. Included per ISA.

// beta of each bin, in the compute type.
template <class S>
struct BinWeights {
  using V = typename VectorOf<S>::V;
  using M = typename VectorOf<S>::M;

  std::unique_ptr<S[]> table;  // [bins], at least two vectors
  int32_t bins;
  V low, high;  // the first two vectors of the table: few bins are looked up without memory

  explicit BinWeights(const double* bin_weight, int32_t num_bins) : table(new S[num_bins + 2 * W]()), bins(num_bins) {
    for (int32_t b = 0; b < bins; ++b) table[b] = S(bin_weight[b]);
    low = load(table.get());
    high = load(table.get() + W);
  }

  FASTLOSS_LANE_FN V operator()(M bin) const {
    if (bins <= 2 * W) {
      M lane = bin & (W - 1);
      return select(bin < W, permute(low, lane), permute(high, lane));
    }
    S beta[W];
    for (int lane = 0; lane < W; ++lane) beta[lane] = table[bin[lane]];
    return load(beta);
  }
};

// How many decisions fall into each bin. Each lane has counts of its own: neighbours that fall into one bin do not wait
// for each other's store.
struct LaneCounts {
  std::unique_ptr<int64_t[]> counts;  // [bins, W]
  int32_t bins;

  explicit LaneCounts(int32_t num_bins) : counts(new int64_t[int64_t(num_bins) * W]()), bins(num_bins) {}

  template <class M>
  FASTLOSS_LANE_FN void add(M bin, M valid) const {
    for (int lane = 0; lane < W; ++lane) counts[int64_t(bin[lane]) * W + lane] -= valid[lane];  // true is -1
  }

  void add_to(int64_t* totals) const {
    for (int64_t i = 0; i < int64_t(bins) * W; ++i) totals[i / W] += counts[i];
  }
};
