"""Self-tests of the emulator: nvcc and pytest, no GPU. `make test-emulator` runs them."""

import ctypes as C
import importlib.util
import os
import sys

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import ptxsim
from ptxsim import Arg, Buffer, CheckError, Out, SimError

ARCHS = ["sm_80", "sm_90"]
_cache = {}


def mod(src, arch="sm_80", **kw):
    k = (src, arch, str(kw))
    if k not in _cache:
        _cache[k] = ptxsim.compile(src, arch=arch, **kw)
    return _cache[k]


def f32_to_bf16(x):
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_to_f32(b):
    return (b.astype(np.uint32) << 16).view(np.float32)


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


SRC = r"""
#include <cfloat>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cassert>
#include <cstdio>
namespace cg = cooperative_groups;
__global__ void vadd(const float* a, const float* b, float* c, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) c[i] = a[i] + b[i]; }

__device__ float warp_sum(float v) { for (int o = 16; o; o >>= 1) v += __shfl_down_sync(~0u, v, o); return v; }
__global__ void block_reduce(const float* x, float* out, int n) {
  __shared__ float s[32]; float v = 0; for (int i = threadIdx.x; i < n; i += blockDim.x) v += x[blockIdx.x * n + i];
  v = warp_sum(v); int w = threadIdx.x / 32; if (threadIdx.x % 32 == 0) s[w] = v; __syncthreads();
  if (w == 0) { v = threadIdx.x < blockDim.x / 32 ? s[threadIdx.x] : 0.f; v = warp_sum(v); if (threadIdx.x == 0) out[blockIdx.x] = v; }
}
template <int BINS> __global__ void histogram(const unsigned char* x, unsigned* h, int n) {
  __shared__ unsigned s[BINS]; for (int i = threadIdx.x; i < BINS; i += blockDim.x) s[i] = 0; __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&s[x[i] % BINS], 1u);
  __syncthreads(); for (int i = threadIdx.x; i < BINS; i += blockDim.x) if (s[i]) atomicAdd(&h[i], s[i]);
}
template __global__ void histogram<64>(const unsigned char*, unsigned*, int);

template <typename T> struct Vec; 
template <> struct Vec<float> { static constexpr int N = 4; using V = float4; static __device__ void ld(const V& v, float* f) { f[0] = v.x; f[1] = v.y; f[2] = v.z; f[3] = v.w; } static __device__ V st(const float* f) { return make_float4(f[0], f[1], f[2], f[3]); } };
template <> struct Vec<__half> { static constexpr int N = 8; using V = uint4; static __device__ void ld(const V& v, float* f) { const __half2* h = (const __half2*)&v; for (int i = 0; i < 4; i++) { float2 q = __half22float2(h[i]); f[2 * i] = q.x; f[2 * i + 1] = q.y; } } static __device__ V st(const float* f) { V v; __half2* h = (__half2*)&v; for (int i = 0; i < 4; i++) h[i] = __floats2half2_rn(f[2 * i], f[2 * i + 1]); return v; } };
template <> struct Vec<__nv_bfloat16> { static constexpr int N = 8; using V = uint4; static __device__ void ld(const V& v, float* f) { const __nv_bfloat162* h = (const __nv_bfloat162*)&v; for (int i = 0; i < 4; i++) { float2 q = __bfloat1622float2(h[i]); f[2 * i] = q.x; f[2 * i + 1] = q.y; } } static __device__ V st(const float* f) { V v; __nv_bfloat162* h = (__nv_bfloat162*)&v; for (int i = 0; i < 4; i++) h[i] = __floats2bfloat162_rn(f[2 * i], f[2 * i + 1]); return v; } };
template <typename Op> __device__ float block_all(float v, Op op, float* s) { for (int o = 16; o; o >>= 1) v = op(v, __shfl_xor_sync(~0u, v, o)); __syncthreads(); if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v; __syncthreads(); v = s[0]; for (int i = 1; i < blockDim.x / 32; i++) v = op(v, s[i]); return v; }
template <typename T> __global__ void row_softmax(const T* __restrict__ x, T* __restrict__ y, int cols) {
  using W = Vec<T>; __shared__ float s[32]; const typename W::V* xv = (const typename W::V*)(x + (size_t)blockIdx.x * cols); typename W::V* yv = (typename W::V*)(y + (size_t)blockIdx.x * cols); int nv = cols / W::N; float f[W::N]; float mx = -FLT_MAX, sum = 0;
  for (int i = threadIdx.x; i < nv; i += blockDim.x) { W::ld(xv[i], f); for (int k = 0; k < W::N; k++) mx = fmaxf(mx, f[k]); }
  mx = block_all(mx, [](float a, float b) { return fmaxf(a, b); }, s);
  for (int i = threadIdx.x; i < nv; i += blockDim.x) { W::ld(xv[i], f); for (int k = 0; k < W::N; k++) sum += expf(f[k] - mx); }
  sum = block_all(sum, [](float a, float b) { return a + b; }, s);
  for (int i = threadIdx.x; i < nv; i += blockDim.x) { W::ld(xv[i], f); for (int k = 0; k < W::N; k++) f[k] = expf(f[k] - mx) / sum; yv[i] = W::st(f); }
}
template __global__ void row_softmax<float>(const float*, float*, int);
template __global__ void row_softmax<__half>(const __half*, __half*, int);
template __global__ void row_softmax<__nv_bfloat16>(const __nv_bfloat16*, __nv_bfloat16*, int);

template <bool FENCE> __global__ void last_block(const float* x, float* part, unsigned* cnt, float* out, int n) {
  __shared__ float s[32]; __shared__ bool last; float v = 0; for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
  v = block_all(v, [](float a, float b) { return a + b; }, s);
  if (threadIdx.x == 0) { part[blockIdx.x] = v; if (FENCE) __threadfence(); unsigned t = atomicInc(cnt, gridDim.x - 1); last = t == gridDim.x - 1; }
  __syncthreads(); if (!last) return;
  __threadfence(); v = 0; for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) v += part[i];
  v = block_all(v, [](float a, float b) { return a + b; }, s); if (threadIdx.x == 0) *out = v;
}
template __global__ void last_block<true>(const float*, float*, unsigned*, float*, int);
template __global__ void last_block<false>(const float*, float*, unsigned*, float*, int);
template <int T> __global__ void tiled(const float* x, float* out) { auto t = cg::tiled_partition<T>(cg::this_thread_block()); float v = x[blockIdx.x * blockDim.x + threadIdx.x]; v = cg::reduce(t, v, cg::plus<float>()); if (t.thread_rank() == 0) out[(blockIdx.x * blockDim.x + threadIdx.x) / T] = v; }
template __global__ void tiled<8>(const float*, float*); template __global__ void tiled<16>(const float*, float*); template __global__ void tiled<32>(const float*, float*);
__global__ void grid_sync(float* a, float* b) { int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x; a[i] = i; cg::this_grid().sync(); b[i] = a[n - 1 - i] + 1; cg::this_grid().sync(); a[i] = b[(i + blockDim.x) % n]; }
__global__ void spin(volatile int* flag, int* out) { if (blockIdx.x == 0) { if (threadIdx.x == 0) { while (*flag != gridDim.x - 1) { } } __syncthreads(); out[threadIdx.x] = 7; } else if (threadIdx.x == 0) { __threadfence(); atomicAdd((int*)flag, 1); } }
__global__ void lock_in_warp(int* lock, int* v) { bool done = false; while (!done) { if (atomicCAS(lock, 0, 1) == 0) { *(volatile int*)v = *(volatile int*)v + 1; __threadfence(); atomicExch(lock, 0); done = true; } } }

__global__ void oob(const float* a, float* b, int n) { int i = blockIdx.x * blockDim.x + threadIdx.x; if (i <= n) b[i] = a[i]; }
__global__ void oob_shared(float* b) { __shared__ float s[32]; s[threadIdx.x + 1] = threadIdx.x; __syncthreads(); b[threadIdx.x] = s[threadIdx.x]; }
__global__ void race(const float* a, float* b, int sync) { __shared__ float s[256]; s[threadIdx.x] = a[threadIdx.x]; if (sync) __syncthreads(); b[threadIdx.x] = s[255 - threadIdx.x]; }
__global__ void race_warp(float* b, int sync) { __shared__ volatile int s[64]; int* p = (int*)s; p[threadIdx.x] = threadIdx.x; if (sync) __syncwarp(); b[threadIdx.x] = p[threadIdx.x ^ 1]; }
__global__ void benign(int* b) { __shared__ int s; if (threadIdx.x == 0) s = 0; __syncthreads(); if (threadIdx.x > 5) s = 1; __syncthreads(); b[threadIdx.x] = s; }
__global__ void volatile_warp(const float* a, float* b) { __shared__ float s[64]; volatile float* v = s; v[threadIdx.x] = a[threadIdx.x]; v[threadIdx.x + 32] = 0; v[threadIdx.x] += v[threadIdx.x + 16]; v[threadIdx.x] += v[threadIdx.x + 8]; v[threadIdx.x] += v[threadIdx.x + 4]; v[threadIdx.x] += v[threadIdx.x + 2]; v[threadIdx.x] += v[threadIdx.x + 1]; b[threadIdx.x] = v[0]; }
__global__ void reuse(const float* a, float* b, int sync) { __shared__ float s[32]; float t = 0; for (int r = 0; r < 4; r++) { float v = a[r * blockDim.x + threadIdx.x]; v = warp_sum(v); if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v; __syncthreads(); for (int i = 0; i < blockDim.x / 32; i++) t += s[i]; if (sync) __syncthreads(); } if (threadIdx.x == 0) *b = t; }
__global__ void shfl_war(const float* a, float* b) { __shared__ float s[32]; s[threadIdx.x] = a[threadIdx.x]; __syncwarp(); float v = s[31 - threadIdx.x]; v = warp_sum(v); if (threadIdx.x == 0) s[5] = v; __syncwarp(); b[threadIdx.x] = s[5]; }
__global__ void race_ww(int* b) { __shared__ int s; s = threadIdx.x; __syncthreads(); b[threadIdx.x] = s; }
__global__ void uninit_shared(float* b, int n) { __shared__ float s[64]; if (threadIdx.x < n) s[threadIdx.x] = 1; __syncthreads(); b[threadIdx.x] = s[threadIdx.x]; }
__global__ void copy1(const float* a, float* b) { b[threadIdx.x] = a[threadIdx.x]; }
__global__ void div_bar(float* b) { __shared__ float s[64]; if (threadIdx.x < 16) { s[threadIdx.x] = 1; __syncthreads(); b[threadIdx.x] = s[15 - threadIdx.x]; } else { s[threadIdx.x] = 2; b[threadIdx.x] = s[threadIdx.x]; __syncthreads(); b[threadIdx.x] += 1; } }
__global__ void part_bar(float* b) { __shared__ float s[64]; s[threadIdx.x] = 1; if (threadIdx.x < 32) return; __syncthreads(); b[threadIdx.x] = s[threadIdx.x - 32]; }
__global__ void dead(int* f) { if (threadIdx.x == 0) { while (atomicAdd(f, 0) == 0) { } } __syncthreads(); f[threadIdx.x] = 1; }
__global__ void bad_shfl(int* o) { int v = threadIdx.x; if (threadIdx.x < 16) v = __shfl_xor_sync(~0u, v, 1); o[threadIdx.x] = v; }
__global__ void bad_shfl2(int* o) { int v = threadIdx.x; if (threadIdx.x < 16) { v = __shfl_xor_sync(~0u, v, 1); o[threadIdx.x] = v; } else o[threadIdx.x] = 1; __syncwarp(); o[threadIdx.x] += o[threadIdx.x ^ 1]; }
__global__ void misaligned(const float* a, float4* b) { b[threadIdx.x] = *(const float4*)(a + 4 * threadIdx.x); }
__global__ void asserts(int n) { assert(threadIdx.x < n); }
__global__ void prints(int n) { if (threadIdx.x == 1) printf("n=%d f=%.2f %s\n", n, 1.5, "ok"); }
__global__ void inplace_nc(const float* __restrict__ a, float* __restrict__ b) { b[threadIdx.x] = 3; __syncthreads(); b[threadIdx.x + 32] = a[31 - threadIdx.x]; }
__global__ void grace(int* g, int* o, int sync) { g[threadIdx.x] = threadIdx.x; if (sync) __syncthreads(); o[threadIdx.x] = g[63 - threadIdx.x]; }
__global__ void two_blocks_write(int* o) { o[threadIdx.x] = blockIdx.x; }
struct Pars { const float* a; float* b; int n; float s; };
__global__ void bystruct(Pars p, int k) { int i = threadIdx.x; if (i < p.n) p.b[i] = p.a[i] * p.s + k; }
__device__ int counter; __constant__ float table[4]; __device__ float gl[8] = {1, 2, 3};
__global__ void symbols(float* o) { atomicAdd(&counter, 2); o[threadIdx.x] = table[threadIdx.x & 3] + gl[threadIdx.x & 7]; }
extern __shared__ float dyn[];
__global__ void dynsh(float* o, int n) { __shared__ float st[8]; if (threadIdx.x < 8) st[threadIdx.x] = 10; float* p = dyn; int* q = (int*)(dyn + n); p[threadIdx.x] = threadIdx.x; q[threadIdx.x] = 100; __syncthreads(); o[threadIdx.x] = p[n - 1 - threadIdx.x] + q[threadIdx.x ^ 1] + st[threadIdx.x & 7]; }
__device__ __noinline__ float helper(float a, int* k, float4 v) { *k += 1; return a > 0 ? sqrtf(a) + v.w : -a; }
__global__ void calls(const float* a, float* o) { int k = threadIdx.x; float r = 0; if (threadIdx.x % 3) r = helper(a[threadIdx.x], &k, make_float4(1, 2, 3, 4)); o[threadIdx.x] = r + k; }
__global__ void swtch(int* o) { int r; switch (threadIdx.x) { case 0: r = 5; break; case 1: r = 77; break; case 2: r = 3; break; case 3: r = o[40]; break; case 4: r = 8; break; case 5: r = clock() > 0; break; case 6: r = 19; break; default: r = -1; } o[threadIdx.x] = r; }
__global__ void bank(float* o, int stride) { __shared__ float s[1024]; s[threadIdx.x * stride] = threadIdx.x; __syncwarp(); o[threadIdx.x] = s[threadIdx.x * stride]; }
__global__ void strided(const float* a, float* o, int st) { o[threadIdx.x] = a[threadIdx.x * st]; }
__global__ void votes(const int* x, int* o) { int v = x[threadIdx.x]; unsigned b = __ballot_sync(~0u, v & 1); int c = __syncthreads_count(v > 5), a = __syncthreads_and(v >= 0), r = __syncthreads_or(v == 9); unsigned mm = __match_any_sync(~0u, v); int p; unsigned ma = __match_all_sync(~0u, v >> 30, &p); int* q = o + 8 * threadIdx.x; q[0] = b; q[1] = c; q[2] = a; q[3] = r; q[4] = mm; q[5] = ma * p; q[6] = __all_sync(~0u, v < 100) * 2 + __any_sync(~0u, v == 3); q[7] = __reduce_add_sync(~0u, v); }
"""


@pytest.fixture(scope="module", params=ARCHS)
def m(request):
    return mod(SRC, request.param)


rng = np.random.default_rng(0)


def test_no_unsupported(m):
    for k in m.kernels:
        assert m[k].unsupported() == [], k


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_vadd(m, seed):
    a, b, c = (
        rng.standard_normal(1000, dtype=np.float32),
        rng.standard_normal(1000, dtype=np.float32),
        np.zeros(1000, np.float32),
    )
    s = m["vadd"].launch(4, 256, [a, b, Out(c), 1000], schedule_seed=seed, check_races=True)
    assert (
        np.array_equal(c, a + b)
        and s.dram_bytes == 12000
        and (seed or (s.gld_sectors == 250 and s.load_efficiency == 1.0))
    )


@pytest.mark.parametrize("block", [32, 128, 1024])
def test_block_reduce(m, block):
    x, o = rng.standard_normal((7, 333), dtype=np.float32), np.zeros(7, np.float32)
    m["block_reduce"].launch(7, block, [x, Out(o), 333], schedule_seed=3, check_races=True)
    assert np.allclose(o, x.sum(1), atol=1e-4)


@pytest.mark.parametrize("seed", [0, 5])
def test_histogram(m, seed):
    x, h = rng.integers(0, 256, 10007, dtype=np.uint8), np.zeros(64, np.uint32)
    s = m["histogram<64>"].launch(6, 192, [x, h, x.size], schedule_seed=seed, check_races=True)
    assert np.array_equal(h, np.bincount(x % 64, minlength=64)) and s.satom_ops == x.size


@pytest.mark.parametrize("ty", ["float", "__half", "__nv_bfloat16"])
@pytest.mark.parametrize("seed,noise", [(0, False), (4, True)])
def test_softmax(m, ty, seed, noise):
    x = (3 * rng.standard_normal((5, 1000))).astype(np.float32)
    if ty == "float":
        xi, get, tol = x, lambda y: y, 2e-6
    elif ty == "__half":
        xi = x.astype(np.float16)
        x = xi.astype(np.float32)
        get, tol = lambda y: y.astype(np.float32), 1.1e-3
    else:
        xi = f32_to_bf16(x)
        x = bf16_to_f32(xi)
        get, tol = bf16_to_f32, 8e-3
    y = np.zeros_like(xi)
    m["row_softmax<%s>" % ty].launch(
        5, 128, [xi, Out(y), 1000], schedule_seed=seed, check_races=True, approx_noise=noise
    )
    r = softmax(x)
    assert (np.abs(get(y) - r) <= tol * r + 6e-8).all()


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("order", ["linear", "random", "reverse"])
def test_last_block(m, seed, order):
    x, part, cnt, o = (
        rng.standard_normal(5000, dtype=np.float32),
        np.zeros(13, np.float32),
        np.zeros(1, np.uint32),
        np.zeros(1, np.float32),
    )
    m["last_block<.*true|last_block<\\(bool\\)1"].launch(
        13,
        96,
        [x, Out(part), cnt, Out(o), 5000],
        schedule_seed=seed,
        check_races=True,
        weak_memory=True,
        block_order=order,
    )
    assert abs(o[0] - x.sum()) < 1e-2 and cnt[0] == 0


def test_last_block_missing_fence(m):
    x, part, cnt, o = (
        rng.standard_normal(5000, dtype=np.float32),
        np.zeros(13, np.float32),
        np.zeros(1, np.uint32),
        np.zeros(1, np.float32),
    )
    for seed in range(4):
        cnt[:] = 0
        with pytest.raises(CheckError, match="uninit"):
            m["last_block<.*false|last_block<\\(bool\\)0"].launch(
                13, 96, [x, Out(part), cnt, Out(o), 5000], schedule_seed=seed, weak_memory=True
            )


@pytest.mark.parametrize("T", [8, 16, 32])
def test_tiled(m, T):
    x = rng.standard_normal(256, dtype=np.float32)
    o = np.zeros(256 // T, np.float32)
    m["tiled<%d>" % T].launch(2, 128, [x, Out(o)], schedule_seed=2, check_races=True)
    assert np.allclose(o, x.reshape(-1, T).sum(1), atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_grid_sync(m, seed):
    a, b = np.zeros(10 * 64, np.float32), np.zeros(640, np.float32)
    m["grid_sync"].launch(10, 64, [Out(a), Out(b)], cooperative=True, schedule_seed=seed, weak_memory=True)
    w = np.arange(640)[::-1] + 1
    assert np.array_equal(b, w) and np.array_equal(a, np.roll(w, -64))


@pytest.mark.parametrize("seed", [0, 1])
def test_spin(m, seed):  # block 0 waits for all the others, more of them than are resident at first
    f, o = np.zeros(1, np.int32), np.zeros(32, np.int32)
    m["spin"].launch(40, 32, [f, Out(o)], schedule_seed=seed, max_instr=10**9)
    assert (o == 7).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_lock_in_warp(m, seed):  # needs independent thread scheduling
    l, v = np.zeros(1, np.int32), np.zeros(1, np.int32)
    m["lock_in_warp"].launch(3, 64, [l, v], schedule_seed=seed, max_instr=10**8)
    assert v[0] == 192 and l[0] == 0


# ---------------------------------------------------------------- deliberate errors
def test_oob(m):
    a, b = np.zeros(100, np.float32), np.zeros(100, np.float32)
    with pytest.raises(
        SimError, match=r"out-of-bounds global (read|write) of 4 bytes.*thread\(100,0,0\).*(ld|st)\.global"
    ):
        m["oob"].launch(1, 128, [a, b, 100])


def test_oob_shared(m):
    with pytest.raises(SimError, match="out-of-bounds shared"):
        m["oob_shared"].launch(1, 32, [np.zeros(32, np.float32)])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_race(m, seed):
    a, b = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    m["race"].launch(1, 256, [a, b, 1], check_races=True, schedule_seed=seed)
    assert np.array_equal(b, a[::-1])
    with pytest.raises(CheckError, match="shared-memory race"):
        m["race"].launch(1, 256, [a, b, 0], check_races=True, check_uninit=False, schedule_seed=seed)


def test_race_warp(m):
    b = np.zeros(32, np.float32)
    m["race_warp"].launch(1, 32, [b, 1], check_races=True)
    with pytest.raises(CheckError, match="shared-memory race"):
        m["race_warp"].launch(1, 32, [b, 0], check_races=True)


def test_race_ww(m):
    with pytest.raises(CheckError, match="write after unordered write"):
        m["race_ww"].launch(1, 64, [np.zeros(64, np.int32)], check_races=True)


def test_race_more(m):
    a, b = rng.standard_normal(1024, dtype=np.float32), np.zeros(32, np.float32)
    with pytest.raises(CheckError, match="race"):
        m["volatile_warp"].launch(1, 32, [a, b], check_races=True)
    bad = 0
    for seed in range(1, 30):
        m["volatile_warp"].launch(1, 32, [a, b], schedule_seed=seed, check_uninit=False)
        bad += abs(b[0] - a[:32].sum()) > 1e-3
    assert bad  # lanes that run ahead break warp-synchronous code by value, too
    m["reuse"].launch(1, 256, [a, b, 1], check_races=True, schedule_seed=1)
    assert abs(b[0] - a.sum()) < 1e-3
    with pytest.raises(CheckError, match="after unordered"):
        m["reuse"].launch(1, 256, [a, b, 0], check_races=True)
    m["shfl_war"].launch(1, 32, [a, b], check_races=True, schedule_seed=2)


def test_benign(m):
    b = np.zeros(64, np.int32)
    m["benign"].launch(1, 64, [Out(b)], check_races=True)
    assert (b == 1).all()


def test_uninit(m):
    b = np.zeros(64, np.float32)
    m["uninit_shared"].launch(1, 64, [b, 64])
    with pytest.raises(CheckError, match="uninitialised shared"):
        m["uninit_shared"].launch(1, 64, [b, 63])
    with pytest.raises(CheckError, match="uninitialised global"):
        m["copy1"].launch(1, 64, [Buffer(nbytes=256), b])
    with pytest.raises(CheckError, match="never written"):
        m["copy1"].launch(1, 63, [b, Out(np.zeros(64, np.float32))])


def test_divergent_barrier(m):
    with pytest.raises(SimError, match="divergent barrier"):
        m["div_bar"].launch(1, 64, [np.zeros(64, np.float32)])
    b = np.zeros(64, np.float32)
    s = m["part_bar"].launch(1, 64, [b])
    assert any(r.kind == "warn-early-exit" for r in s.reports)
    with pytest.raises(SimError, match="early exit"):
        m["part_bar"].launch(1, 64, [b], early_exit="error")


def test_deadlock_livelock(m):
    with pytest.raises(SimError, match="livelock"):
        m["dead"].launch(1, 64, [np.zeros(64, np.int32)], max_instr=200000)
    s = m["bad_shfl"].launch(1, 32, [np.zeros(32, np.int32)])
    assert any(r.kind == "warn-mask-exited" for r in s.reports)
    with pytest.raises(SimError, match="have exited"):
        m["bad_shfl"].launch(1, 32, [np.zeros(32, np.int32)], early_exit="error")
    with pytest.raises(SimError, match="deadlock"):
        m["bad_shfl2"].launch(1, 32, [np.zeros(32, np.int32)])


def test_misaligned(m):
    a, b = np.arange(132, dtype=np.float32), np.zeros((32, 4), np.float32)
    m["misaligned"].launch(1, 32, [a, b])
    assert np.array_equal(b.ravel(), a[:128])
    with pytest.raises(SimError, match="misaligned global read of 16"):
        m["misaligned"].launch(1, 32, [Arg(a, offset=4), b])


def test_assert_printf(m):
    m["asserts"].launch(1, 32, [32])
    with pytest.raises(SimError, match="device assert failed: threadIdx.x < n"):
        m["asserts"].launch(1, 33, [32])
    assert m["prints"].launch(1, 2, [5]).printf == "n=5 f=1.50 ok\n"


def test_nc_and_cross_block(m):
    a = np.zeros(64, np.float32)
    with pytest.raises(CheckError, match="ld.global.nc"):
        m["inplace_nc"].launch(1, 32, [a, a], check_races=True)
    g, o = np.zeros(64, np.int32), np.zeros(64, np.int32)
    m["grace"].launch(1, 64, [g, o, 1], check_races=True)
    with pytest.raises(CheckError, match="global-memory race"):
        m["grace"].launch(1, 64, [g, o * 0 + 9, 0], check_races=True)
    g[:] = 0
    with pytest.raises(CheckError, match="two blocks"):
        m["two_blocks_write"].launch(2, 32, [np.zeros(32, np.int32)], check_races=True)


def test_struct_symbols_dyn_calls(m):
    class Pars(C.Structure):
        _fields_ = [("a", C.c_uint64), ("b", C.c_uint64), ("n", C.c_int), ("s", C.c_float)]

    a, b = Buffer(np.arange(20, dtype=np.float32)), Buffer(np.zeros(20, np.float32))
    m["bystruct"].launch(1, 32, [Pars(a.addr, b.addr, 20, 2.5), 3])
    assert np.array_equal(b.array, np.arange(20) * 2.5 + 3)
    m.symbol("table", np.float32)[:] = [10, 20, 30, 40]
    m.symbol("counter", np.int32)[0] = 0
    o = np.zeros(32, np.float32)
    m["symbols"].launch(2, 32, [o])
    assert m.symbol("counter", np.int32)[0] == 128 and np.array_equal(o[:8], [11, 22, 33, 40, 10, 20, 30, 40])
    o = np.zeros(64, np.float32)
    m["dynsh"].launch(1, 64, [Out(o), 64], shared=512, check_races=True)
    assert np.array_equal(o, 63 - np.arange(64) + 110)
    with pytest.raises(SimError, match="out-of-bounds shared"):
        m["dynsh"].launch(1, 64, [o, 64], shared=508)
    a = rng.standard_normal(64, dtype=np.float32)
    m["calls"].launch(1, 64, [a, Out(o)])
    k = np.arange(64)
    assert np.allclose(o, np.where(k % 3 != 0, np.where(a > 0, np.sqrt(np.abs(a)) + 4, -a) + k + 1, k))
    o = np.zeros(41, np.int32)
    o[40] = 6
    m["swtch"].launch(1, 32, [o])
    assert list(o[:8]) == [5, 77, 3, 6, 8, 1, 19, -1]


def test_stats(m):
    o = np.zeros(32, np.float32)
    assert (
        m["bank"].launch(1, 32, [o, 1]).shared_conflict == 1
        and m["bank"].launch(1, 32, [o, 32]).shared_conflict == 32
        and m["bank"].launch(1, 32, [o, 8]).shared_conflict == 8
    )
    a = np.zeros(32 * 16, np.float32)
    assert (
        m["strided"].launch(1, 32, [a, o, 16]).gld_sectors == 32
        and m["strided"].launch(1, 32, [a, o, 2]).gld_sectors == 8
    )


def test_votes(m):
    x, o = rng.integers(0, 10, 64).astype(np.int32), np.zeros((64, 8), np.int32)
    m["votes"].launch(1, 64, [x, Out(o)], schedule_seed=1)
    for t in range(64):
        w = x[t // 32 * 32 : t // 32 * 32 + 32]
        ballot = lambda c: int(np.uint32(sum(1 << i for i in range(32) if c[i])).view(np.int32))
        assert list(o[t]) == [
            ballot(w & 1),
            (x > 5).sum(),
            1,
            int((x == 9).any()),
            ballot(w == x[t]),
            -1,
            2 + int((w == 3).any()),
            w.sum(),
        ]


# ---------------------------------------------------------------- single instructions against numpy
def run_asm(op, ins, outc, outt, extra="", arch="sm_80"):
    """op: asm text with %0 = out, %1.. = ins; ins: list of (constraint, ctype, array)"""
    src = (
        '__global__ void k(%s %s* o) { int i = threadIdx.x; %s r; %s asm volatile("%s" : "=%s"(r) : %s); o[i] = r; }\n'
        % (
            "".join("const %s* a%d, " % (t, j) for j, (c, t, a) in enumerate(ins)),
            outt,
            outt,
            extra,
            op,
            outc,
            ", ".join('"%s"(a%d[i])' % (c, j) for j, (c, t, a) in enumerate(ins)),
        )
    )
    mm = mod(src, arch)
    n = len(ins[0][2])
    o = np.zeros(
        n,
        {
            "unsigned": np.uint32,
            "int": np.int32,
            "float": np.float32,
            "double": np.float64,
            "unsigned long long": np.uint64,
            "long long": np.int64,
            "unsigned short": np.uint16,
            "short": np.int16,
        }[outt],
    )
    assert mm["k"].unsupported() == []
    mm["k"].launch(1, n, [a for _, _, a in ins] + [Out(o)])
    return o


U = np.concatenate(
    [
        np.array([0, 1, 2, 31, 32, 33, 63, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32),
        rng.integers(0, 2**32, 246, dtype=np.uint32),
    ]
)
V = np.roll(U, 7)
W = np.concatenate([rng.integers(0, 40, 256, dtype=np.uint32)])
FL = np.concatenate(
    [
        np.array(
            [
                0,
                -0.0,
                1,
                -1,
                0.5,
                -0.5,
                1.5,
                2.5,
                -2.5,
                np.inf,
                -np.inf,
                np.nan,
                1e-40,
                -1e-40,
                3e9,
                -3e9,
                1e20,
                65504,
                65520,
                7e4,
                6e-8,
                448,
                300.7,
            ],
            np.float32,
        ),
        (rng.standard_normal(233) * 100).astype(np.float32),
    ]
).astype(np.float32)
GL = np.roll(FL, 3)
u64 = lambda a: a.astype(np.uint64)
i32 = lambda a: a.view(np.int32)


def test_int_ops():
    A, B, Cc = ("r", "unsigned", U), ("r", "unsigned", V), ("r", "unsigned", W)
    ck = lambda op, ins, ref, c="r", t="unsigned": np.testing.assert_array_equal(
        run_asm(op, ins, c, t), ref, err_msg=op
    )
    ck("add.u32 %0, %1, %2;", [A, B], U + V)
    ck("sub.s32 %0, %1, %2;", [A, B], U - V)
    ck("mul.lo.u32 %0, %1, %2;", [A, B], U * V)
    ck("mul.hi.u32 %0, %1, %2;", [A, B], ((u64(U) * u64(V)) >> 32).astype(np.uint32))
    ck("mul.hi.s32 %0, %1, %2;", [A, B], ((i32(U).astype(np.int64) * i32(V)) >> 32).astype(np.int32).view(np.uint32))
    ck("mad.lo.s32 %0, %1, %2, %3;", [A, B, Cc], U * V + W)
    ck("mul.wide.u32 %0, %1, %2;", [A, B], u64(U) * u64(V), "l", "unsigned long long")
    ck("mul.wide.s32 %0, %1, %2;", [A, B], i32(U).astype(np.int64) * i32(V), "l", "long long")
    ck("shl.b32 %0, %1, %2;", [A, Cc], np.where(W > 31, 0, U << (W & 31)).astype(np.uint32))
    ck("shr.u32 %0, %1, %2;", [A, Cc], np.where(W > 31, 0, U >> (W & 31)).astype(np.uint32))
    ck("shr.s32 %0, %1, %2;", [A, Cc], (i32(U) >> np.minimum(W, 31).astype(np.int32)).view(np.uint32))
    ck("min.s32 %0, %1, %2;", [A, B], np.minimum(i32(U), i32(V)).view(np.uint32))
    ck("max.u32 %0, %1, %2;", [A, B], np.maximum(U, V))
    ck("abs.s32 %0, %1;", [A], np.abs(i32(U)).view(np.uint32))
    ck("neg.s32 %0, %1;", [A], -U)
    ck("popc.b32 %0, %1;", [A], np.array([bin(x).count("1") for x in U]))
    ck("clz.b32 %0, %1;", [A], np.array([32 - int(x).bit_length() for x in U]))
    ck("brev.b32 %0, %1;", [A], np.array([int("{:032b}".format(x)[::-1], 2) for x in U], np.uint32))
    ck("bfind.u32 %0, %1;", [A], np.array([(int(x).bit_length() - 1) & 0xFFFFFFFF for x in U], np.uint32))
    for lut, f in (
        (0xE8, lambda a, b, c: (a & b) | (a & c) | (b & c)),
        (0x96, lambda a, b, c: a ^ b ^ c),
        (0x1A, None),
    ):
        if f:
            ck("lop3.b32 %%0, %%1, %%2, %%3, 0x%x;" % lut, [A, B, Cc], f(U, V, W))
    ck(
        "shf.l.wrap.b32 %0, %1, %2, %3;",
        [A, B, Cc],
        np.array(
            [((int(b) << 32 | int(a)) << (int(c) & 31)) >> 32 & 0xFFFFFFFF for a, b, c in zip(U, V, W)], np.uint32
        ),
    )
    ck(
        "shf.r.clamp.b32 %0, %1, %2, %3;",
        [A, B, Cc],
        np.array([((int(b) << 32 | int(a)) >> min(int(c), 32)) & 0xFFFFFFFF for a, b, c in zip(U, V, W)], np.uint32),
    )
    ck("bfe.u32 %0, %1, %2, 5;", [A, Cc], np.array([(int(a) >> int(c)) & 31 for a, c in zip(U, W)], np.uint32))
    sx = lambda v, n: v - (1 << n) if v >> (n - 1) & 1 else v
    ck(
        "bfe.s32 %0, %1, %2, 5;",
        [A, ("r", "unsigned", W % 27)],
        np.array([sx((int(a) >> int(c)) & 31, 5) & 0xFFFFFFFF for a, c in zip(U, W % 27)], np.uint32),
    )
    ck("bfi.b32 %0, %1, %2, 4, 9;", [A, B], (V & ~np.uint32(511 << 4)) | ((U & 511) << 4))
    ck("prmt.b32 %0, %1, %2, 0x5410;", [A, B], (U & 0xFFFF) | (V << 16))
    ck("prmt.b32 %0, %1, %2, 0x7632;", [A, B], (U >> 16) | (V & 0xFFFF0000))
    ck("prmt.b32 %0, %1, %2, 0x0123;", [A, B], U.byteswap())
    ck(
        "prmt.b32 %0, %1, %2, 0x888b;",
        [A, B],
        np.array([(0xFF if a >> 31 else 0) | (0xFFFFFF00 if a >> 7 & 1 else 0) for a in U], np.uint32),
    )
    nz = np.where(V == 0, 1, V).astype(np.uint32)
    N = ("r", "unsigned", nz)
    ck("div.u32 %0, %1, %2;", [A, N], U // nz)
    ck("rem.u32 %0, %1, %2;", [A, N], U % nz)
    ck("{.reg .u32 t; add.cc.u32 t, %1, %2; addc.u32 %0, 0, 0;}", [A, B], ((u64(U) + u64(V)) >> 32).astype(np.uint32))
    ck("sad.u32 %0, %1, %2, %3;", [A, B, Cc], (np.maximum(U, V) - np.minimum(U, V)) + W)
    ck(
        "dp4a.s32.s32 %0, %1, %2, %3;",
        [A, B, Cc],
        ((U.view(np.int8).reshape(-1, 4).astype(np.int32) * V.view(np.int8).reshape(-1, 4)).sum(1) + W).astype(
            np.uint32
        ),
    )
    ck("{.reg .pred p; setp.lt.s32 p, %1, %2; selp.u32 %0, 1, 2, p;}", [A, B], np.where(i32(U) < i32(V), 1, 2))
    ck("set.ge.u32.u32 %0, %1, %2;", [A, B], np.where(U >= V, 0xFFFFFFFF, 0))
    ck("slct.b32.s32 %0, %1, %2, %3;", [A, Cc, B], np.where(i32(V) >= 0, U, W))
    ck("not.b32 %0, %1;", [A], ~U)


def test_float_ops():
    A, B = ("f", "float", FL), ("f", "float", GL)
    old = np.seterr(all="ignore")
    ck = lambda op, ins, ref, c="f", t="float": np.testing.assert_array_equal(run_asm(op, ins, c, t), ref, err_msg=op)
    f = np.float32
    ck("add.f32 %0, %1, %2;", [A, B], FL + GL)
    ck("mul.rn.f32 %0, %1, %2;", [A, B], FL * GL)
    ck("div.rn.f32 %0, %1, %2;", [A, B], FL / GL)
    ck("sqrt.rn.f32 %0, %1;", [A], np.sqrt(FL))
    ck("rcp.rn.f32 %0, %1;", [A], f(1) / FL)
    ck("min.f32 %0, %1, %2;", [A, B], np.fmin(FL, GL))
    ck("max.f32 %0, %1, %2;", [A, B], np.fmax(FL, GL))
    ck("max.NaN.f32 %0, %1, %2;", [A, B], np.maximum(FL, GL))
    ck("abs.f32 %0, %1;", [A], np.abs(FL))
    ck("neg.f32 %0, %1;", [A], -FL)
    ck("copysign.f32 %0, %1, %2;", [A, B], np.copysign(GL, FL))
    z = lambda x: np.where(np.abs(x) < 2.0**-126, np.copysign(0, x), x).astype(f)
    ck("add.ftz.f32 %0, %1, %2;", [A, B], z(z(FL) + z(GL)))
    ck("add.sat.f32 %0, %1, %2;", [A, B], np.nan_to_num(np.clip(FL + GL, 0, 1), nan=0.0))
    d = FL.astype(np.float64) + GL.astype(np.float64)
    dn = d.astype(f)
    lo = np.where(dn.astype(np.float64) > d, np.nextafter(dn, f(-np.inf)), dn)
    hi = np.where(dn.astype(np.float64) < d, np.nextafter(dn, f(np.inf)), dn)
    fin = np.isfinite(FL) & np.isfinite(GL) & (np.abs(FL) > 1e-30) & (np.abs(GL) > 1e-30)
    assert np.array_equal(run_asm("add.rm.f32 %0, %1, %2;", [A, B], "f", "float")[fin], lo[fin]) and np.array_equal(
        run_asm("add.rp.f32 %0, %1, %2;", [A, B], "f", "float")[fin], hi[fin]
    )
    ex = np.array([float(np.float64(a) * np.float64(b)) for a, b in zip(FL, GL)])
    r = run_asm("fma.rz.f32 %0, %1, %2, 0f00000000;", [A, B], "f", "float")
    ok = np.isfinite(ex) & (np.abs(ex) < 3e38) & (np.abs(ex) > 1e-30)
    assert (np.abs(r[ok].astype(np.float64)) <= np.abs(ex[ok])).all() and np.allclose(r[ok], ex[ok], rtol=2e-7)
    ii = lambda x, lo, hi: np.array(
        [
            0
            if v != v
            else int(max(lo, min(hi, v if np.isinf(v) else v)))
            if not np.isinf(v)
            else (hi if v > 0 else lo)
            for v in x.astype(np.float64)
        ]
    )
    ck("cvt.rzi.s32.f32 %0, %1;", [A], ii(np.trunc(FL), -(2**31), 2**31 - 1), "r", "int")
    ck("cvt.rni.s32.f32 %0, %1;", [A], ii(np.rint(FL), -(2**31), 2**31 - 1), "r", "int")
    ck("cvt.rmi.s32.f32 %0, %1;", [A], ii(np.floor(FL), -(2**31), 2**31 - 1), "r", "int")
    ck("cvt.rpi.s32.f32 %0, %1;", [A], ii(np.ceil(FL), -(2**31), 2**31 - 1), "r", "int")
    ck("cvt.rzi.u32.f32 %0, %1;", [A], ii(np.trunc(FL), 0, 2**32 - 1).astype(np.uint32), "r", "unsigned")
    ck("{.reg .u16 t; cvt.rzi.u8.f32 t, %1; cvt.u32.u16 %0, t;}", [A], ii(np.trunc(FL), 0, 255), "r", "unsigned")
    ck("cvt.rni.f32.f32 %0, %1;", [A], np.rint(FL))
    ck("cvt.rmi.f32.f32 %0, %1;", [A], np.floor(FL))
    ck("cvt.sat.f32.f32 %0, %1;", [A], np.nan_to_num(np.clip(FL, 0, 1), nan=0.0))
    ck("cvt.rn.f32.s32 %0, %1;", [("r", "unsigned", U)], i32(U).astype(f))
    ck("cvt.rn.f32.u32 %0, %1;", [("r", "unsigned", U)], U.astype(f))
    ck("cvt.f64.f32 %0, %1;", [A], FL.astype(np.float64), "d", "double")
    E = np.clip(FL[23:], -120, 120)
    np.testing.assert_allclose(
        run_asm("ex2.approx.ftz.f32 %0, %1;", [("f", "float", E)], "f", "float"),
        np.exp2(E.astype(np.float64)),
        rtol=3e-7,
    )
    np.testing.assert_allclose(
        run_asm("lg2.approx.f32 %0, %1;", [("f", "float", np.abs(FL[23:]))], "f", "float"),
        np.log2(np.abs(FL[23:].astype(np.float64))),
        rtol=1e-6,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        run_asm("rsqrt.approx.f32 %0, %1;", [("f", "float", np.abs(FL[23:]))], "f", "float"),
        1 / np.sqrt(np.abs(FL[23:].astype(np.float64))),
        rtol=3e-7,
    )
    for op, fn in (
        ("lt", np.less),
        ("ge", np.greater_equal),
        ("ne", lambda a, b: (a < b) | (a > b)),
        ("equ", lambda a, b: ~((a < b) | (a > b))),
        ("ltu", lambda a, b: ~(a >= b)),
        ("neu", np.not_equal),
        ("num", lambda a, b: ~(np.isnan(a) | np.isnan(b))),
        ("nan", lambda a, b: np.isnan(a) | np.isnan(b)),
    ):
        ck("{.reg .pred p; setp.%s.f32 p, %%1, %%2; selp.u32 %%0, 1, 0, p;}" % op, [A, B], fn(FL, GL), "r", "unsigned")
    np.seterr(**old)


def test_half_ops():
    old = np.seterr(all="ignore")
    A = ("f", "float", FL)
    h = run_asm("cvt.rn.f16.f32 %0, %1;", [A], "h", "unsigned short")
    r = FL.astype(np.float16).view(np.uint16)
    ok = ~np.isnan(FL)
    assert np.array_equal(h[ok], r[ok]) and (h[~ok] == 0x7FFF).all()
    b = run_asm("cvt.rn.bf16.f32 %0, %1;", [A], "h", "unsigned short")
    assert np.array_equal(b[ok], f32_to_bf16(FL)[ok])
    p = run_asm("cvt.rn.f16x2.f32 %0, %1, %2;", [A, ("f", "float", GL)], "r", "unsigned")
    ok2 = ok & ~np.isnan(GL)
    assert np.array_equal(p[ok2], (r.astype(np.uint32) << 16 | GL.astype(np.float16).view(np.uint16))[ok2])
    z = run_asm("cvt.rz.f16.f32 %0, %1;", [A], "h", "unsigned short").view(np.float16)
    fin = np.isfinite(FL)
    assert (np.abs(z[fin].astype(np.float64)) <= np.abs(FL[fin])).all()
    H1 = FL.astype(np.float16)
    H2 = GL.astype(np.float16)
    a, c = ("h", "unsigned short", H1.view(np.uint16)), ("h", "unsigned short", H2.view(np.uint16))

    def ck(op, ins, ref):
        o = run_asm(op, ins, "h", "unsigned short").view(np.float16)
        np.testing.assert_array_equal(o, ref, err_msg=op)

    ck("add.f16 %0, %1, %2;", [a, c], H1 + H2)
    ck("mul.f16 %0, %1, %2;", [a, c], H1 * H2)
    ck("max.f16 %0, %1, %2;", [a, c], np.fmax(H1, H2))
    ck("fma.rn.f16 %0, %1, %2, %2;", [a, c], (H1.astype(np.float64) * H2 + H2).astype(np.float16))
    ck("neg.f16 %0, %1;", [a], -H1)
    assert np.array_equal(run_asm("cvt.f32.f16 %0, %1;", [a], "f", "float"), H1.astype(np.float32), equal_nan=True)
    x = (H1.view(np.uint16).astype(np.uint32) << 16) | H2.view(np.uint16)
    o = run_asm("add.f16x2 %0, %1, %1;", [("r", "unsigned", x)], "r", "unsigned")
    np.testing.assert_array_equal((o >> 16).astype(np.uint16).view(np.float16), H1 + H1)
    B1, B2 = bf16_to_f32(f32_to_bf16(FL)), bf16_to_f32(f32_to_bf16(GL))
    o = run_asm(
        "fma.rn.bf16 %0, %1, %2, %2;",
        [("h", "unsigned short", f32_to_bf16(FL)), ("h", "unsigned short", f32_to_bf16(GL))],
        "h",
        "unsigned short",
    )
    ref = f32_to_bf16((B1.astype(np.float64) * B2 + B2).astype(np.float32))
    k = np.isfinite(FL) & np.isfinite(GL) & (np.abs(B1 * B2) > 1e-30)
    assert (np.abs(o[k].astype(int) - ref[k]) <= 0).mean() > 0.99
    np.seterr(**old)


def test_atomics():
    src = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
__global__ void k(unsigned* u, float* f, double* d, int* s, unsigned long long* q, __half2* h, __nv_bfloat162* b, __half* h1, const float* x) { int i = blockIdx.x * blockDim.x + threadIdx.x; atomicAdd(f, x[i]); atomicAdd(d, (double)x[i]); atomicMin(s, -i); atomicMax(s + 1, i); atomicAnd(u, ~(1u << (i & 15))); atomicOr(u + 1, 1u << (i & 7)); atomicXor(u + 2, i); atomicInc(u + 3, 9); atomicDec(u + 4, 6); atomicAdd(q, 1ull << 33); atomicAdd(h, __floats2half2_rn(1, 2)); atomicAdd(b, __floats2bfloat162_rn(1, .5f)); atomicAdd(h1, __float2half(.5f));
 int* m = (int*)(f + 1); int old = *m, as; do { as = old; old = atomicCAS(m, as, __float_as_int(fmaxf(x[i], __int_as_float(as)))); } while (as != old); if (i == 5) u[5] = atomicExch(u + 6, 3); __shared__ float sf[2]; __shared__ unsigned su; if (threadIdx.x < 2) sf[threadIdx.x] = 0; if (!threadIdx.x) su = 0; __syncthreads(); atomicAdd(&sf[i & 1], 1.f); atomicAdd(&su, 1u); __syncthreads(); if (threadIdx.x == 0) { atomicAdd(f + 2, sf[0] + sf[1]); atomicAdd(u + 7, su); } }
"""
    for arch in ARCHS:
        for seed in (0, 1):
            x = rng.standard_normal(192, dtype=np.float32)
            u = np.zeros(8, np.uint32)
            u[0] = 0xFFFFFFFF
            u[6] = 4
            f = np.zeros(3, np.float32)
            f[1] = -9
            d = np.zeros(1)
            s = np.zeros(2, np.int32)
            q = np.zeros(1, np.uint64)
            h = np.zeros(2, np.float16)
            b = np.zeros(2, np.uint16)
            h1 = np.zeros(2, np.float16)
            mod(src, arch)["k"].launch(3, 64, [u, f, d, s, q, h, b, h1, x], schedule_seed=seed, check_races=True)
            assert (
                np.isclose(f[0], x.sum(), atol=1e-4)
                and np.isclose(d[0], x.astype(float).sum())
                and f[1] == x.max()
                and f[2] == 192
                and list(s) == [-191, 191]
                and u[0] == 0xFFFF0000
                and u[1] == 255
                and u[2] == np.bitwise_xor.reduce(np.arange(192))
                and u[3] == 192 % 10
                and u[5] == 4
                and u[6] == 3
                and u[7] == 192
                and q[0] == 192 << 33
                and list(h) == [192, 384]
                and bf16_to_f32(b)[0] == 192
                and h1[0] == 96
            )
            e = 0
            for _ in range(192):
                e = 6 if e == 0 or e > 6 else e - 1
            assert u[4] == e


CUB = r"""
#include <cub/cub.cuh>
#include <cuda/atomic>
template <int B> __global__ void sortscan(const unsigned* x, unsigned* y, unsigned* sc, float* mx) {
  using S = cub::BlockRadixSort<unsigned, B, 4>; using C = cub::BlockScan<unsigned, B>; using R = cub::BlockReduce<float, B>; using L = cub::BlockLoad<unsigned, B, 4, cub::BLOCK_LOAD_TRANSPOSE>;
  __shared__ union { typename S::TempStorage s; typename C::TempStorage c; typename R::TempStorage r; typename L::TempStorage l; } t; unsigned v[4], c[4]; L(t.l).Load(x + blockIdx.x * B * 4, v); __syncthreads(); for (int i = 0; i < 4; i++) c[i] = v[i] & 255;
  S(t.s).Sort(v); __syncthreads(); C(t.c).InclusiveSum(c, c); __syncthreads(); float m = R(t.r).Reduce((float)v[3], [](float a, float b) { return a > b ? a : b; });
  for (int i = 0; i < 4; i++) { y[(blockIdx.x * B + threadIdx.x) * 4 + i] = v[i]; sc[(blockIdx.x * B + threadIdx.x) * 4 + i] = c[i]; } if (threadIdx.x == 0) { cuda::atomic_ref<float, cuda::thread_scope_device> a(mx[blockIdx.x]); a.store(m, cuda::memory_order_release); }
}
template __global__ void sortscan<128>(const unsigned*, unsigned*, unsigned*, float*);
"""


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("seed", [0, 3])
def test_cub(arch, seed):
    mm = mod(CUB, arch)
    x = rng.integers(0, 2**32, (2, 512), dtype=np.uint32)
    y, c, mx = np.zeros_like(x), np.zeros_like(x), np.zeros(2, np.float32)
    k = mm["sortscan"]
    assert k.unsupported() == []
    k.launch(2, 128, [x, Out(y), Out(c), Out(mx)], schedule_seed=seed, check_races=True, check_uninit=False)
    assert (
        np.array_equal(y, np.sort(x, 1))
        and np.array_equal(c, np.cumsum(x & 255, 1))
        and np.array_equal(mx, x.max(1).astype(np.float32))
    )


CPA = r"""
#include <cuda_pipeline.h>
__global__ void cpa(const float4* a, float4* b, int wait) { __shared__ float4 s[64]; __pipeline_memcpy_async(&s[threadIdx.x], &a[threadIdx.x], 16); __pipeline_commit(); if (wait) __pipeline_wait_prior(0); __syncthreads(); b[threadIdx.x] = s[63 - threadIdx.x]; }
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_cp_async(arch):
    a, b = np.arange(256, dtype=np.float32).reshape(64, 4), np.zeros((64, 4), np.float32)
    k = mod(CPA, arch)["cpa"]
    k.launch(1, 64, [a, Out(b), 1], check_races=True)
    assert np.array_equal(b, a[::-1])
    with pytest.raises(CheckError, match="uninit"):
        k.launch(1, 64, [a, b, 0])


STY = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "styles_test.cu")).read()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("seed", [0, 2])
def test_styles(arch, seed):
    import math

    m = mod(STY, arch)
    kw = dict(schedule_seed=seed, check_races=True)
    F = np.float32
    for k in m.kernels:
        assert m[k].unsupported() == [], k
    t = np.arange(64)
    o = np.zeros(128, F)
    m["a1("].launch(1, 64, [o], **kw)
    assert np.array_equal(o[64:], np.concatenate([np.cumsum(t[:32]), np.cumsum(t[32:])]))
    if seed == 0:
        assert np.array_equal(o[1:64:2], 1600 + np.tile(np.arange(16), 2))
    x = rng.standard_normal(256, dtype=F)
    for k in ("a2(", "a3("):
        o = np.zeros(64, F)
        m[k].launch(1, 64, [x, Out(o)], **kw)
        assert np.array_equal(o, x[63::-1]), k
    o = np.zeros(4, np.uint32)
    m["a4("].launch(1, 64, [o, x], **kw)
    assert (
        o[0] == np.abs(x[:64]).max().view(np.uint32)
        and o[1] in range(64, 68)
        and np.isclose(o[2:3].view(F)[0], x[:64].sum(), atol=1e-4)
    )
    b = f32_to_bf16(rng.standard_normal(128))
    bo = np.zeros(128, np.uint16)
    bf = bf16_to_f32(b).astype(float)
    m["a5("].launch(1, 32, [b, bo], **kw)
    e = np.exp(np.maximum(bf[:64], 0))
    r = bf16_to_f32(bo)
    assert np.allclose(r[:64], e + e * e, rtol=2e-2)
    assert (
        np.allclose(
            r[100:103],
            [np.log(bf[1]) if bf[1] > 0 else np.nan, np.sqrt(bf[2]) if bf[2] >= 0 else np.nan, bf[3] / bf[4]],
            rtol=1e-2,
            equal_nan=True,
        )
        and np.isclose(r[106], np.tanh(bf[2]), rtol=1e-2)
        and np.isclose(r[105], max(0, bf[1] * bf[2] + bf[3]), rtol=1e-2, atol=1e-3)
    )
    h = np.abs(rng.standard_normal(128)).astype(np.float16) + np.float16(0.1)
    ho = np.zeros(128, np.float16)
    m["a6("].launch(1, 32, [h, ho], **kw)
    hf = h.astype(float)
    e = np.exp(hf[:64])
    e = np.maximum(e * e + e, 0)
    assert np.allclose(ho[:64], np.maximum(e, np.log(e)), rtol=5e-3)
    assert np.allclose(
        ho[100:108].astype(float),
        [
            10 ** hf[1],
            hf[2] ** -0.5,
            hf[3] / hf[4],
            np.sin(hf[5]),
            float(ho[0] / ho[0]),
            hf[1],
            min(hf[1], hf[2]),
            np.rint(hf[3]),
        ],
        rtol=5e-3,
    )
    d = rng.standard_normal(64) * 3
    do = np.zeros(64)
    m["a7("].launch(1, 64, [do, d], **kw)
    v = lambda f, a: np.array([f(float(q)) for q in a])
    A = np.abs(d)
    assert np.allclose(
        do,
        np.exp(d)
        + np.log(A + 1)
        + A**1.7
        + np.sin(d)
        + np.tanh(d)
        + v(math.erf, d)
        + np.log1p(A)
        + (A + 0.5) ** -0.5
        + np.cbrt(d),
        rtol=1e-12,
        atol=1e-13,
    )
    xo = np.zeros(64, F)
    xs = x[:64]
    m["a8("].launch(1, 64, [xo, xs.copy()], **kw)
    q = xs.astype(float)
    A = np.abs(q)
    n = lambda z: 0.5 * math.erfc(-z / math.sqrt(2))
    ref = (
        A**2.3
        + np.log1p(A)
        + np.expm1(q)
        + np.tanh(q)
        + np.sin((xs * F(1e4)).astype(float))
        + v(math.erf, q)
        + np.log(A + 1)
        + A**1.5
        + np.exp2(q)
        + np.log2((np.abs(xs) + F(0.1)).astype(float))
        + (A + 1) ** -0.5
        + np.fmod(q, float(F(0.7)))
        + q / 3
        + np.cos(q)
        + v(n, q)
        + np.cbrt(A + 1) ** -1
        + v(math.lgamma, A + 1)
        + np.hypot(q, 2)
        + np.arctan2(q, 0.3)
        + np.sign(q) * np.floor(A + 0.5)
        + q * 8
        + np.clip(q, 0, 1)
        + np.floor(np.log2((np.abs(xs) + F(1)).astype(float)))
        + np.exp(q)
        + np.sin(q)
        + 10**q
    )
    assert np.allclose(xo, ref, rtol=3e-6, atol=2e-5), np.abs(xo - ref).max()
    x4, o4, g = x[:128].reshape(32, 4).copy(), np.zeros((96, 4), F), np.zeros(32, np.uint32)
    m["a9("].launch(1, 32, [x4, Out(o4), g], schedule_seed=seed)
    w = x4.copy()
    w[:, 0] += x4[:, 1] + x4[:, 2]
    assert np.allclose(o4, np.concatenate([w, w, x4]))
    if arch == "sm_80":
        assert (g.view(F) == 31).all()
    o = np.zeros(201, np.int32)
    m["a10("].launch(1, 128, [o, 0], shared=4096, check_uninit=False, **kw)
    assert o[200] == 8128 and o[127] == sum(range(96, 127)) and list(o[128:144]) == [8, 8, 8, 136] + [8] * 12
    if arch == "sm_90":
        o = np.ones(32, np.int32)
        m["a11("].launch(1, 32, [Out(o)], **kw)
        assert (o == 0).all()
    o = np.zeros(256, F)
    m["a12("].launch(1, 64, [x, Out(o)], **kw)
    assert np.array_equal(o.reshape(4, 64), x.reshape(4, 64)[:, ::-1])


HOST = r"""
__constant__ float cc[4];
template <typename T> __global__ void kk(const T* a, T* b, int n) { extern __shared__ float sm[]; int i = blockIdx.x * blockDim.x + threadIdx.x; sm[threadIdx.x] = 1; if (i < n) b[i] = a[i] * cc[1] + sm[threadIdx.x]; }
extern "C" int run(const float* a, float* b, int n, int sh, cudaStream_t s) {
  float h[4] = {1, 2, 3, 4}; cudaMemcpyToSymbolAsync(cc, h, 16, 0, cudaMemcpyHostToDevice, s); float* t; if (cudaMalloc(&t, n * 4)) return -1; cudaMemcpyAsync(t, a, n * 4, cudaMemcpyDeviceToDevice, s);
  int d, sm; cudaGetDevice(&d); cudaDeviceGetAttribute(&sm, cudaDevAttrMultiProcessorCount, d); cudaDeviceProp p; cudaGetDeviceProperties(&p, d); if (p.multiProcessorCount != sm) return -2;
  kk<float><<<(n + 127) / 128, 128, sh, s>>>(t, b, n); cudaError_t e = cudaGetLastError(); int nb; cudaOccupancyMaxActiveBlocksPerMultiprocessor(&nb, kk<float>, 128, 0); if (nb != 16) return -3; void* args[] = {&t, &b, &n}; if (n) cudaLaunchCooperativeKernel((void*)kk<float>, dim3(1), dim3(32), args, 128, s); cudaFree(t); return e; }
"""


def test_host_launcher():
    lib = ptxsim.HostLib(HOST, sms=20)
    lib.options.update(check_races=True, schedule_seed=1)
    a, b = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    assert (
        lib.call("run", a, Out(b), 1000, 512, None) == 0
        and np.array_equal(b, a * 2 + 1)
        and lib.log[0][1:4] == ((8, 1, 1), (128, 1, 1), 512)
    )
    assert lib.call("run", a, b, 0, 512, None) == 9  # empty grid: cudaErrorInvalidConfiguration, as on a GPU
    with pytest.raises(SimError, match="out-of-bounds shared"):
        lib.call("run", a, b, 1000, 508, None)
    with pytest.raises(SimError, match="never written"):
        lib.call("run", a, Out(b), 999, 512, None)
    assert lib.call("run", a, b, 1000, 50000, None) == 1  # > 48 KB without cudaFuncSetAttribute


def test_cub_device_wide():  # host dispatch + kernels of CUB: reduce, decoupled look-back scan, histogram, onesweep sort
    lib = ptxsim.HostLib(os.path.join(os.path.dirname(os.path.abspath(__file__)), "cubdev_test.cu"), sms=4)
    x = rng.standard_normal(30000, dtype=np.float32)
    for kw in (dict(), dict(schedule_seed=2, check_races=True), dict(schedule_seed=3, weak_memory=True)):
        s, sc, h, so = np.zeros(1, np.float32), np.zeros_like(x), np.zeros(10, np.int32), np.zeros_like(x)
        lib.options.clear()
        lib.options.update(kw)
        assert lib.call("dev", x, x.size, Out(s), Out(sc), Out(h), Out(so)) == 0
        assert (
            abs(s[0] - x.sum()) < 1e-2
            and np.allclose(sc, np.cumsum(x.astype(float)), atol=1e-2)
            and np.array_equal(h, np.histogram(x, 10, (-3, 3))[0])
            and np.array_equal(so, np.sort(x))
        )


_spec = importlib.util.find_spec("torch")
TORCH = os.path.join(os.path.dirname(_spec.origin), "include") if _spec else "none"


@pytest.mark.skipif(not os.path.exists(TORCH + "/ATen/native/cuda/PersistentSoftmax.cuh"), reason="no torch headers")
def test_torch_persistent_softmax():  # PyTorch's own kernels
    sig = "(%s*,const %s*,int,int,int,const bool*,int,bool);\n"
    m = ptxsim.compile(
        "#include <ATen/native/cuda/PersistentSoftmax.cuh>\nnamespace {\ntemplate __global__ void softmax_warp_forward<float,float,float,4,false,false,16>"
        + sig % ("float", "float")
        + "template __global__ void softmax_warp_forward<c10::Half,c10::Half,float,10,true,false,32>"
        + sig % ("c10::Half", "c10::Half")
        + "}\n",
        includes=[TORCH, TORCH + "/torch/csrc/api/include"],
        flags=["--expt-relaxed-constexpr", "--expt-extended-lambda"],
    )
    x = rng.standard_normal((4096, 11), dtype=np.float32)
    y = np.zeros_like(x)
    m["softmax_warp_forward<float"].launch(
        512, (16, 8), [Out(y), x, 4096, 11, 11, None, 0, 0], schedule_seed=1, check_races=True
    )
    assert np.abs(y / softmax(x) - 1).max() < 2e-6
    x = rng.standard_normal((64, 1000)).astype(np.float16)
    y = np.zeros_like(x)
    m["c10::Half"].launch(16, (32, 4), [Out(y), x, 64, 1000, 1000, None, 0, 0])
    assert np.allclose(y, np.log(softmax(x)), atol=6e-3)


def test_speed():
    m = mod(SRC)
    x = rng.standard_normal((64, 32768), dtype=np.float32)
    y = np.zeros_like(x)
    s = m["row_softmax<float>"].launch(64, 256, [x, Out(y), 32768])
    r = softmax(x)
    assert np.abs(y / r - 1).max() < 3e-6
    mips = s.thread_instr / s.seconds / 1e6
    print("%.0f M PTX thread instructions/s, %.2f s" % (mips, s.seconds))
    assert mips > 20
