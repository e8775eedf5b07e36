// Targets of the softmax losses, W at a time: reading them, checking them and adding up their weights. Included per
// ISA.

// Targets from position on; ignore_index beyond the first count.
FASTLOSS_LANE_FN i64 load_targets(const SoftmaxParams& params, int64_t position, int count) {
  const int64_t* wide = static_cast<const int64_t*>(params.target) + position;
  const int32_t* narrow = static_cast<const int32_t*>(params.target) + position;
  if (count == W) {
    return params.target_is_int64 ? load_bits<i64>(wide) : __builtin_convertvector(load_bits<i32>(narrow), i64);
  }
  i64 y = i64{} + params.ignore_index;
  for (int lane = 0; lane < count; ++lane) y[lane] = params.target_is_int64 ? wide[lane] : narrow[lane];
  return y;
}

template <class S>
inline TargetSum scan_targets_of(const SoftmaxParams& params, int64_t begin, int64_t end) {
  const S* weight = static_cast<const S*>(params.weight);  // [C] or null
  i64 valid_sum = {}, bad_sum = {};
  f64 weight_sum = {};
  for (int64_t position = begin; position < end; position += W) {
    i64 y = load_targets(params, position, int(std::min<int64_t>(end - position, W)));
    i64 valid = y != params.ignore_index;
    i64 bad = valid & ((y < 0) | (y >= params.C));
    valid_sum -= valid;  // true is -1
    bad_sum -= bad;
    if (weight && !any(bad)) {
      for (int lane = 0; lane < W; ++lane) weight_sum[lane] += valid[lane] ? double(weight[y[lane]]) : 0;
    }
  }
  if (any(bad_sum)) {
    for (int64_t position = begin;; ++position) {
      int64_t y = load_targets(params, position, 1)[0];
      if (y != params.ignore_index && (y < 0 || y >= params.C)) return {0, position};
    }
  }
  return {sum_lanes(weight ? weight_sum : __builtin_convertvector(valid_sum, f64)), -1};
}

// Of decisions [begin, end): their weights, or which target is out of range.
TargetSum scan_targets(const SoftmaxParams& params, int64_t begin, int64_t end) {
  return params.dtype == DType::float64 ? scan_targets_of<double>(params, begin, end)
                                        : scan_targets_of<float>(params, begin, end);
}
