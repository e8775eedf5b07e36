#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/scan.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cub/cub.cuh>
#include <cuda/atomic>
#include <cuda/barrier>
#include <cuda/pipeline>
namespace cg = cooperative_groups;
__global__ void a1(float* o) {
  auto g = cg::coalesced_threads();
  if (threadIdx.x & 1) {
    auto c = cg::coalesced_threads();
    o[threadIdx.x] = c.thread_rank() + c.size() * 100;
  }
  auto t = cg::tiled_partition<32>(cg::this_thread_block());
  o[threadIdx.x + 64] = cg::inclusive_scan(t, (int)threadIdx.x);
}
__global__ void a2(const float* x, float* o) {
  __shared__ float s[64];
  auto b = cg::this_thread_block();
  cg::memcpy_async(b, s, x, sizeof(float) * 64);
  cg::wait(b);
  o[threadIdx.x] = s[63 - threadIdx.x];
}
__global__ void a3(const float* x, float* o) {
  __shared__ cuda::barrier<cuda::thread_scope_block> bar;
  __shared__ float s[64];
  if (threadIdx.x == 0) init(&bar, blockDim.x);
  __syncthreads();
  s[threadIdx.x] = x[threadIdx.x];
  bar.arrive_and_wait();
  o[threadIdx.x] = s[63 - threadIdx.x];
}
__global__ void a4(unsigned* o, const float* x) {
  atomicMax(o, __float_as_uint(fabsf(x[threadIdx.x])));
  cuda::atomic_ref<unsigned, cuda::thread_scope_device> r(o[1]);
  r.fetch_add(1, cuda::memory_order_acq_rel);
  r.fetch_max(3);
  cuda::atomic_ref<float, cuda::thread_scope_block> f(((float*)o)[2]);
  f.fetch_add(x[threadIdx.x]);
}
__global__ void a5(const __nv_bfloat16* x, __nv_bfloat16* o) {
  int i = threadIdx.x;
  __nv_bfloat162 v = ((const __nv_bfloat162*)x)[i];
  v = __hmax2(v, __float2bfloat162_rn(0.f));
  v = h2exp(v);
  v = __hadd2(v, __hmul2(v, v));
  ((__nv_bfloat162*)o)[i] = v;
  o[100] = hlog(x[1]);
  o[101] = hsqrt(x[2]);
  o[102] = __hdiv(x[3], x[4]);
  if (__hgt(x[5], x[6])) o[103] = hrcp(x[5]);
  if (__hbgt2(v, v)) o[104] = x[1];
  o[105] = __hfma_relu(x[1], x[2], x[3]);
  o[106] = htanh(x[2]);
}
__global__ void a6(const __half* x, __half* o) {
  int i = threadIdx.x;
  __half2 v = ((const __half2*)x)[i];
  v = h2exp(v);
  v = __hfma2_relu(v, v, v);
  v = __hmax2_nan(v, h2log(v));
  ((__half2*)o)[i] = v;
  o[100] = hexp10(x[1]);
  o[101] = hrsqrt(x[2]);
  o[102] = __hdiv(x[3], x[4]);
  o[103] = hsin(x[5]);
  o[104] = __h2div(v, v).x;
  {
    __half sv = __shfl_xor_sync(~0u, x[i], 1);
    if (i == 0) o[105] = sv;
  }
  o[106] = __hmin(x[1], x[2]);
  short s = __half2short_rn(x[3]);
  o[107] = __ushort2half_rn(s);
  o[108] = __hsub_sat(x[1], x[2]);
  if (__hltu(x[1], x[2])) o[109] = __habs(x[3]);
  o[110] = hfloor(x[4]);
}
__global__ void a7(double* o, const double* x) {
  int i = threadIdx.x;
  o[i] = exp(x[i]) + log(fabs(x[i]) + 1) + pow(fabs(x[i]), 1.7) + sin(x[i]) + tanh(x[i]) + erf(x[i]) +
         log1p(fabs(x[i])) + rsqrt(fabs(x[i]) + .5) + cbrt(x[i]);
}
__global__ void a8(float* o, const float* x) {
  int i = threadIdx.x;
  float v = x[i];
  o[i] = powf(fabsf(v), 2.3f) + log1pf(fabsf(v)) + expm1f(v) + tanhf(v) + sinf(v * 1e4f) + erff(v) +
         __logf(fabsf(v) + 1) + __powf(fabsf(v), 1.5f) + exp2f(v) + log2f(fabsf(v) + .1f) + rsqrtf(fabsf(v) + 1) +
         fmodf(v, .7f) + __fdividef(v, 3.f) + cosf(v) + normcdff(v) + rcbrtf(fabsf(v) + 1) + lgammaf(fabsf(v) + 1) +
         hypotf(v, 2) + atan2f(v, .3f) + roundf(v) + ldexpf(v, 3) + __saturatef(v) + logbf(fabsf(v) + 1) + __expf(v) +
         __sinf(v) + exp10f(v);
}
__global__ void a9(const float4* x, float4* o, float* g) {
  float4 v = __ldg(x + threadIdx.x), w = __ldcs(x + threadIdx.x), u = __ldcg(x + threadIdx.x);
  v.x += w.y + u.z;
  __stcs(o + threadIdx.x, v);
  __stwt(o + threadIdx.x + 32, v);
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(x + threadIdx.x));
  o[threadIdx.x + 64] = v;
  asm volatile("prefetch.global.L2 [%0];" ::"l"(x));
  __nanosleep(10);
  g[threadIdx.x] = __reduce_max_sync(~0u, (unsigned)threadIdx.x);
#if __CUDA_ARCH__ >= 900
  atomicAdd((float4*)g, v);
  atomicAdd((float2*)(g + 4), make_float2(1, 2));
#endif
}
__global__ void a10(int* o, int n) {
  extern __shared__ char sm[];
  using BR = cub::BlockReduce<int, 128>;
  auto& t = *(typename BR::TempStorage*)sm;
  int v = BR(t).Sum((int)threadIdx.x);
  using WS = cub::WarpScan<int>;
  __shared__ typename WS::TempStorage ws[4];
  int q;
  WS(ws[threadIdx.x / 32]).ExclusiveSum(threadIdx.x, q);
  __syncthreads();
  using BH = cub::BlockHistogram<unsigned char, 128, 2, 16, cub::BLOCK_HISTO_SORT>;
  __shared__ typename BH::TempStorage bh;
  __shared__ int h[16];
  unsigned char d[2] = {(unsigned char)(threadIdx.x & 15), 3};
  BH(bh).Histogram(d, h);
  __syncthreads();
  if (threadIdx.x == 0) o[200] = v;
  o[threadIdx.x] = q;
  if (threadIdx.x < 16) o[128 + threadIdx.x] = h[threadIdx.x];
}
__global__ void a11(int* o) {
#if __CUDA_ARCH__ >= 900
  auto c = cg::this_cluster();
  c.sync();
  o[threadIdx.x] = c.block_rank();
#endif
}
__global__ void a12(const float* x, float* o) {
  auto b = cg::this_thread_block();
  __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> st;
  auto p = cuda::make_pipeline(b, &st);
  __shared__ __align__(16) float s[2][64];
  for (int k = 0; k < 4; k++) {
    p.producer_acquire();
    cuda::memcpy_async(b, s[k & 1], x + 64 * k, cuda::aligned_size_t<16>(256), p);
    p.producer_commit();
    p.consumer_wait();
    b.sync();
    o[64 * k + threadIdx.x] = s[k & 1][63 - threadIdx.x];
    b.sync();
    p.consumer_release();
  }
}
