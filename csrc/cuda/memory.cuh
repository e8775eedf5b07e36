// How the kernels see memory: the type that a tensor is stored in and the one that is computed in, accesses of 16
// bytes, and where a decision lies.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../losses/params.h"

namespace fastloss {

// ---- storage (T) and computation (Compute<T>)

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

__device__ __forceinline__ float to_compute(float x) { return x; }
__device__ __forceinline__ double to_compute(double x) { return x; }
__device__ __forceinline__ float to_compute(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_compute(__half x) { return __half2float(x); }

// Rounds to nearest even, once.
template <class T>
__device__ __forceinline__ T to_storage(Compute<T> x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

// 16 bytes of elements: one load or store of a thread.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};

template <class T>
__device__ __forceinline__ Pack<T> pack_of(uint4 raw) {
  Pack<T> pack;
  memcpy(&pack, &raw, 16);
  return pack;
}

template <class T>
__device__ __forceinline__ uint4 bits_of(const Pack<T>& pack) {
  uint4 raw;
  memcpy(&raw, &pack, 16);
  return raw;
}

// Accesses of 16 aligned bytes. In PTX, because the compiler splits some of them where they are written in C++. Global
// loads do not take the read-only path: the gradient may be the input.
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* global) {
  uint4 raw;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
               : "l"(__cvta_generic_to_global(global))
               : "memory");
  return pack_of<T>(raw);
}

template <class T>
__device__ __forceinline__ void store_pack(T* global, const Pack<T>& pack) {
  uint4 raw = bits_of(pack);
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(global)), "r"(raw.x),
               "r"(raw.y), "r"(raw.z), "r"(raw.w)
               : "memory");
}

template <class T>
__device__ __forceinline__ Pack<T> load_shared_pack(const T* shared) {
  uint4 raw;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
               : "r"(uint32_t(__cvta_generic_to_shared(shared)))
               : "memory");
  return pack_of<T>(raw);
}

template <class T>
__device__ __forceinline__ void store_shared_pack(T* shared, const Pack<T>& pack) {
  uint4 raw = bits_of(pack);
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(uint32_t(__cvta_generic_to_shared(shared))), "r"(raw.x),
               "r"(raw.y), "r"(raw.z), "r"(raw.w)
               : "memory");
}

// K elements side by side: one, or a run of them in accesses of 16 bytes (of fewer for the mask).
template <class U, int K>
struct alignas(K * sizeof(U) < 16 ? K * sizeof(U) : 16) Run {
  U at[K];
};

template <int K, class U>
__device__ __forceinline__ Run<U, K> load_run(const U* source) {
  if constexpr (K * sizeof(U) < 16) {
    return *reinterpret_cast<const Run<U, K>*>(source);
  } else {
    Run<U, K> run;
#pragma unroll
    for (int k = 0; k < K; k += Pack<U>::kSize) reinterpret_cast<Pack<U>&>(run.at[k]) = load_pack(source + k);
    return run;
  }
}

template <int K, class U>
__device__ __forceinline__ void store_run(U* target, const Run<U, K>& run) {
  if constexpr (K * sizeof(U) < 16) {
    *reinterpret_cast<Run<U, K>*>(target) = run;
  } else {
#pragma unroll
    for (int k = 0; k < K; k += Pack<U>::kSize) store_pack(target + k, reinterpret_cast<const Pack<U>&>(run.at[k]));
  }
}

// A run that begins `shift` bytes after 16 aligned ones, out of the 16 bytes more that it lies in.
template <int K, class U>
__device__ __forceinline__ Run<U, K> load_shifted_run(const U* source, int shift) {
  constexpr int packs = K * sizeof(U) / 16;
  const char* aligned = reinterpret_cast<const char*>(source) - shift;
  uint32_t words[4 * packs + 4];
#pragma unroll
  for (int p = 0; p <= packs; ++p) {
    uint4 raw = bits_of(load_pack(reinterpret_cast<const uint32_t*>(aligned) + 4 * p));
    memcpy(words + 4 * p, &raw, 16);
  }
  // By 8, 4 and 2 bytes: an array that is indexed by a variable would not be in registers.
#pragma unroll
  for (int w = 0; w < 4 * packs + 2; ++w) words[w] = shift & 8 ? words[w + 2] : words[w];
#pragma unroll
  for (int w = 0; w < 4 * packs + 1; ++w) words[w] = shift & 4 ? words[w + 1] : words[w];
  if constexpr (sizeof(U) == 2) {
#pragma unroll
    for (int w = 0; w < 4 * packs; ++w) words[w] = shift & 2 ? __byte_perm(words[w], words[w + 1], 0x5432) : words[w];
  }
  Run<U, K> run;
  memcpy(&run, words, sizeof(run));
  return run;
}

// The same in shared memory.
template <int K, class U>
__device__ __forceinline__ Run<U, K> load_shared_run(const U* source) {
  if constexpr (K * sizeof(U) < 16) {
    return *reinterpret_cast<const Run<U, K>*>(source);
  } else {
    Run<U, K> run;
    reinterpret_cast<Pack<U>&>(run) = load_shared_pack(source);
    return run;
  }
}

template <int K, class U>
__device__ __forceinline__ void store_shared_run(U* target, const Run<U, K>& run) {
  if constexpr (K * sizeof(U) < 16) {
    *reinterpret_cast<Run<U, K>*>(target) = run;
  } else {
    store_shared_pack(target, reinterpret_cast<const Pack<U>&>(run));
  }
}

// Copies of 16 aligned bytes to shared memory that go on while the thread does; in order, they are waited for in
// groups. A Turing GPU waits for each.
template <class T>
__device__ __forceinline__ void copy_pack(T* shared, const T* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(global))
               : "memory");
#else
  store_shared_pack(shared, load_pack(global));
#endif
}

// The copies since the last call are a group.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies but those of the last `groups` groups.
template <int groups>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

__device__ __forceinline__ bool same_alignment(const void* a, const void* b) {
  return ((reinterpret_cast<uintptr_t>(a) ^ reinterpret_cast<uintptr_t>(b)) & 15) == 0;
}

// Elements at `at` before the next 16 aligned bytes, and before the next 32.
template <class T>
__device__ __forceinline__ int elements_before_pack(const T* at) {
  return int((16 - (reinterpret_cast<uintptr_t>(at) & 15)) % 16 / sizeof(T));
}
template <class T>
__device__ __forceinline__ int elements_before_sector(const T* at) {
  return int((32 - (reinterpret_cast<uintptr_t>(at) & 31)) % 32 / sizeof(T));
}

// Cuts elements [0, count) into aligned 16-byte packs and the elements before and after them:
//   for (i < packs) access pack(i) .. pack(i) + Pack<T>::kSize - 1;  for (i < scalars) access scalar(i)
template <class T, class Index>
struct Split {
  Index head, packs, scalars;

  // before: elements_before_pack of the first; or count, and all are scalars: for buffers that are not aligned alike.
  __device__ Split(Index before, Index count) : head(min(before, count)) {
    packs = (count - head) / Index(Pack<T>::kSize);
    scalars = count - packs * Index(Pack<T>::kSize);
  }
  __device__ Split(const T* at, Index count, bool vectorize)
      : Split(vectorize ? Index(elements_before_pack(at)) : count, count) {}
  __device__ Index pack(Index i) const { return head + i * Pack<T>::kSize; }
  __device__ Index scalar(Index i) const { return i < head ? i : i + packs * Pack<T>::kSize; }
};

// Offsets of a decision's first class.
struct Offsets {
  int64_t input = 0, grad = 0;  // 64 bits: tensors of more than 2^31 elements

  __device__ Offsets(const Layout& layout, int64_t position) {
#pragma unroll 1  // 64-bit divisions are long
    for (int d = layout.ndim - 1; d > 0; --d) {
      int64_t index = position % layout.size[d];
      position /= layout.size[d];
      input += index * layout.stride[d];
      grad += index * layout.grad_stride[d];
    }
    input += position * layout.stride[0];
    grad += position * layout.grad_stride[0];
  }
};

}  // namespace fastloss
