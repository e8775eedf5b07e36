#include <cub/cub.cuh>
extern "C" int dev(const float* x, int n, float* sum, float* scan, int* hist, float* sorted) {
  void* t = nullptr;
  size_t b = 0;
  cudaError_t e;
  cub::DeviceReduce::Sum(t, b, x, sum, n);
  cudaMalloc(&t, b);
  if ((e = cub::DeviceReduce::Sum(t, b, x, sum, n))) return 1000 + e;
  cudaFree(t);
  t = nullptr;
  cub::DeviceScan::InclusiveSum(t, b, x, scan, n);
  cudaMalloc(&t, b);
  if ((e = cub::DeviceScan::InclusiveSum(t, b, x, scan, n))) return 2000 + e;
  cudaFree(t);
  t = nullptr;
  cub::DeviceHistogram::HistogramEven(t, b, x, hist, 11, -3.f, 3.f, n);
  cudaMalloc(&t, b);
  if ((e = cub::DeviceHistogram::HistogramEven(t, b, x, hist, 11, -3.f, 3.f, n))) return 3000 + e;
  cudaFree(t);
  t = nullptr;
  cub::DeviceRadixSort::SortKeys(t, b, x, sorted, n);
  cudaMalloc(&t, b);
  if ((e = cub::DeviceRadixSort::SortKeys(t, b, x, sorted, n))) return 4000 + e;
  cudaFree(t);
  return 0;
}
