// GHM-C on W decisions at a time: the look-up of beta and the count of the gradient norms. Included per ISA.

// beta of each bin, in the compute type.
template <class S>
struct BinWeights {
  std::unique_ptr<S[]> table;  // [bins]
  int32_t bins;

  explicit BinWeights(const double* bin_weight, int32_t num_bins) : table(new S[num_bins]), bins(num_bins) {
    for (int32_t b = 0; b < bins; ++b) table[b] = S(bin_weight[b]);
  }

  template <class V>
  FASTLOSS_LANE_FN V operator()(V gradient_norm) const {
    auto bin = ghm_bin(gradient_norm, S(bins));
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

  template <class V, class M>
  FASTLOSS_LANE_FN void add(V gradient_norm, M valid) const {
    auto bin = ghm_bin(gradient_norm, ScalarOf<V>(bins));
    for (int lane = 0; lane < W; ++lane) counts[int64_t(bin[lane]) * W + lane] -= valid[lane];  // true is -1
  }

  void add_to(int64_t* totals) const {
    for (int64_t i = 0; i < int64_t(bins) * W; ++i) totals[i / W] += counts[i];
  }
};
