// A stand-in for libcudart: lets host launch code (nvcc -cudart none) run, with kernels going to the simulator. Device
// addresses are host addresses.
#include <driver_types.h>
#include <vector_types.h>

#include "engine.h"
struct Fn {
  void* mod;
  string name;
};
static std::map<const void*, Fn> g_fn;
static std::map<const void*, std::pair<void*, string>> g_var;
static void* g_mod = nullptr;
static cudaError_t g_last = cudaSuccess;
static bool g_sticky = false;
static int g_sms = 108, g_smem_optin = 163 * 1024, g_cc = 80;
typedef int (*LaunchCb)(void* mod, const char* name, const u32* grid, const u32* block, u64 shmem, const u8* params,
                        u64 plen, int coop);
static LaunchCb g_cb = nullptr;
struct Cfg {
  dim3 g, b;
  size_t s;
  cudaStream_t st;
};
static vector<Cfg> g_cfg;
static std::map<void*, int> g_alloc;
static std::map<const void*, int> g_fsmem;
static cudaError_t ret(cudaError_t e) {
  if (e != cudaSuccess) {
    if (!g_sticky) g_last = e;
    if (e == cudaErrorLaunchFailure) g_sticky = true;
  }
  return g_sticky ? g_last : e;
}
static void mark(void* p, size_t n) {
  Range* r = g_mem.find((u64)p);
  if (r && (u64)p + n <= r->base + r->size)
    for (size_t i = 0; i < n; i++) r->shadow[(u64)p - r->base + i] |= 1;
}
static bool in_dev(const void* p, size_t n) {
  Range* r = g_mem.find((u64)p);
  return r && (u64)p + n <= r->base + r->size;
}
static cudaError_t cpy(void* d, const void* s, size_t n, cudaMemcpyKind k) {
  if (!n) return ret(cudaSuccess);
  if ((k == cudaMemcpyHostToDevice || k == cudaMemcpyDeviceToDevice) && !in_dev(d, n))
    return ret(cudaErrorInvalidValue);
  if ((k == cudaMemcpyDeviceToHost || k == cudaMemcpyDeviceToDevice) && !in_dev(s, n))
    return ret(cudaErrorInvalidValue);
  memmove(d, s, n);
  mark(d, n);
  return ret(cudaSuccess);
}
static cudaError_t launch(const void* f, dim3 g, dim3 b, void** args, size_t sh, int coop) {
  auto it = g_fn.find(f);
  if (it == g_fn.end()) return ret(cudaErrorInvalidDeviceFunction);
  Module& M = *(Module*)it->second.mod;
  auto fi = M.funcs.find(it->second.name);
  if (fi == M.funcs.end()) return ret(cudaErrorInvalidDeviceFunction);
  if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z || (u64)b.x * b.y * b.z > 1024 || b.z > 64 || g.y > 65535 ||
      g.z > 65535 || g.x > 0x7fffffffu)
    return ret(cudaErrorInvalidConfiguration);
  if (sh > 48 * 1024 && (int)sh > (g_fsmem.count(f) ? g_fsmem[f] : 48 * 1024))
    return ret(cudaErrorInvalidValue);  // needs cudaFuncSetAttribute
  u32 tot = 0;
  for (auto& p : fi->second.params) tot = std::max(tot, p.off + p.size);
  vector<u8> raw(tot + 8);
  for (size_t i = 0; i < fi->second.params.size(); i++)
    memcpy(raw.data() + fi->second.params[i].off, args[i], fi->second.params[i].size);
  u32 G[3] = {g.x, g.y, g.z}, Bk[3] = {b.x, b.y, b.z};
  if (!g_cb) return ret(cudaErrorNotSupported);
  return ret(g_cb(it->second.mod, it->second.name.c_str(), G, Bk, sh, raw.data(), tot, coop) ? cudaErrorLaunchFailure
                                                                                             : cudaSuccess);
}
extern "C" {
void px_rt_bind(void* mod, LaunchCb cb) {
  g_mod = mod;
  g_cb = cb;
}
void px_rt_device(int sms, int cc) {
  g_sms = sms;
  g_cc = cc;
  g_smem_optin = cc >= 90 ? 227 * 1024 : cc == 86 || cc == 89 ? 99 * 1024 : 163 * 1024;
}
void px_rt_reset() {
  g_last = cudaSuccess;
  g_sticky = false;
}
int px_add_at(void* host, u64 size, int init, const char* name) {
  Range* r = new Range;
  r->base = (u64)host;
  r->size = size;
  r->host = (u8*)host;
  r->shadow = (u8*)calloc(size ? size : 1, 1);
  if (init) memset(r->shadow, 1, size);
  r->id = g_mem.nextid++;
  r->name = name;
  auto it = std::lower_bound(g_mem.rs.begin(), g_mem.rs.end(), r, [](Range* a, Range* b) { return a->base < b->base; });
  g_mem.rs.insert(it, r);
  return r->id;
}
int px_overlaps(u64 a, u64 n) {
  for (auto r : g_mem.rs)
    if (a < r->base + r->size && r->base < a + n) return r->id;
  return 0;
}
void** __cudaRegisterFatBinary(void*) {
  static void* h;
  h = g_mod;
  return &h;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void**, const char* hf, char*, const char* dn, int, uint3*, uint3*, dim3*, dim3*, int*) {
  g_fn[hf] = Fn{g_mod, dn};
}
void __cudaRegisterVar(void**, char* hv, char*, const char* dn, int, size_t, int, int) { g_var[hv] = {g_mod, dn}; }
void __cudaRegisterManagedVar(void**, void** hv, char*, const char* dn, int, size_t, int, int) {
  g_var[hv] = {g_mod, dn};
}
cudaError_t __cudaGetKernel(const void** k, const void* f) {
  *k = f;
  return cudaSuccess;
}
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, cudaStream_t st) {
  g_cfg.push_back({g, b, s, st});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* g, dim3* b, size_t* s, void* st) {
  if (g_cfg.empty()) return cudaErrorMissingConfiguration;
  Cfg c = g_cfg.back();
  g_cfg.pop_back();
  *g = c.g;
  *b = c.b;
  *s = c.s;
  *(cudaStream_t*)st = c.st;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** a, size_t s, cudaStream_t) {
  return launch(f, g, b, a, s, 0);
}
cudaError_t __cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** a, size_t s, cudaStream_t) {
  return launch(f, g, b, a, s, 0);
}
cudaError_t cudaLaunchKernel_ptsz(const void* f, dim3 g, dim3 b, void** a, size_t s, cudaStream_t) {
  return launch(f, g, b, a, s, 0);
}
cudaError_t __cudaLaunchKernel_ptsz(const void* f, dim3 g, dim3 b, void** a, size_t s, cudaStream_t) {
  return launch(f, g, b, a, s, 0);
}
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 g, dim3 b, void** a, size_t s, cudaStream_t) {
  return launch(f, g, b, a, s, 1);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** a) {
  int coop = 0;
  for (unsigned i = 0; i < c->numAttrs; i++)
    if (c->attrs[i].id == cudaLaunchAttributeCooperative) coop = c->attrs[i].val.cooperative;
  return launch(f, c->gridDim, c->blockDim, a, c->dynamicSmemBytes, coop);
}
cudaError_t cudaMalloc(void** p, size_t n) {
  *p = nullptr;
  if (!n) return ret(cudaSuccess);
  size_t pad = 4096;
  char* q = (char*)aligned_alloc(512, (n + 2 * pad + 511) & ~511ull);
  if (!q) return ret(cudaErrorMemoryAllocation);
  memset(q, 0xaa, n + 2 * pad);
  *p = q + pad;
  g_alloc[*p] = px_add_at(*p, n, 0, "cudaMalloc");
  return ret(cudaSuccess);
}
cudaError_t cudaFree(void* p) {
  if (!p) return ret(cudaSuccess);
  auto it = g_alloc.find(p);
  if (it == g_alloc.end()) return ret(cudaErrorInvalidValue);
  g_mem.remove(it->second);
  g_alloc.erase(it);
  free((char*)p - 4096);
  return ret(cudaSuccess);
}
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) {
  cudaError_t e = cudaMalloc(p, n);
  return e;
}
cudaError_t cudaMallocHost(void** p, size_t n) { return cudaMalloc(p, n); }
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) { return cudaMalloc(p, n); }
cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind k) { return cpy(d, s, n, k); }
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind k, cudaStream_t) {
  return cpy(d, s, n, k);
}
cudaError_t cudaMemset(void* d, int v, size_t n) {
  if (n && !in_dev(d, n)) return ret(cudaErrorInvalidValue);
  memset(d, v, n);
  mark(d, n);
  return ret(cudaSuccess);
}
cudaError_t cudaMemsetAsync(void* d, int v, size_t n, cudaStream_t) { return cudaMemset(d, v, n); }
static u8* symp(const void* s, u64* sz, u64* addr) {
  auto it = g_var.find(s);
  if (it == g_var.end()) return nullptr;
  Module& M = *(Module*)it->second.first;
  auto v = M.vars.find(it->second.second);
  if (v == M.vars.end()) return nullptr;
  *sz = v->second.size;
  *addr = v->second.addr;
  Range* r = g_mem.find(v->second.addr);
  return r ? r->host : nullptr;
}
cudaError_t cudaMemcpyToSymbol(const void* s, const void* src, size_t n, size_t o, cudaMemcpyKind) {
  u64 z, a;
  u8* p = symp(s, &z, &a);
  if (!p || o + n > z) return ret(cudaErrorInvalidSymbol);
  memcpy(p + o, src, n);
  return ret(cudaSuccess);
}
cudaError_t cudaMemcpyToSymbolAsync(const void* s, const void* src, size_t n, size_t o, cudaMemcpyKind k,
                                    cudaStream_t) {
  return cudaMemcpyToSymbol(s, src, n, o, k);
}
cudaError_t cudaMemcpyFromSymbol(void* d, const void* s, size_t n, size_t o, cudaMemcpyKind) {
  u64 z, a;
  u8* p = symp(s, &z, &a);
  if (!p || o + n > z) return ret(cudaErrorInvalidSymbol);
  memcpy(d, p + o, n);
  return ret(cudaSuccess);
}
cudaError_t cudaMemcpyFromSymbolAsync(void* d, const void* s, size_t n, size_t o, cudaMemcpyKind k, cudaStream_t) {
  return cudaMemcpyFromSymbol(d, s, n, o, k);
}
cudaError_t cudaGetSymbolAddress(void** p, const void* s) {
  u64 z, a;
  if (!symp(s, &z, &a)) return ret(cudaErrorInvalidSymbol);
  *p = (void*)a;
  return ret(cudaSuccess);
}
cudaError_t cudaGetSymbolSize(size_t* p, const void* s) {
  u64 z, a;
  if (!symp(s, &z, &a)) return ret(cudaErrorInvalidSymbol);
  *p = z;
  return ret(cudaSuccess);
}
cudaError_t cudaGetLastError() {
  cudaError_t e = g_last;
  if (!g_sticky) g_last = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError() { return g_last; }
const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaSuccess                     ? "no error"
         : e == cudaErrorLaunchFailure        ? "unspecified launch failure (ptxsim reported an error)"
         : e == cudaErrorInvalidValue         ? "invalid argument"
         : e == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                              : "cuda error";
}
const char* cudaGetErrorName(cudaError_t e) { return cudaGetErrorString(e); }
cudaError_t cudaDeviceSynchronize() { return g_last; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return g_last; }
cudaError_t cudaStreamCreate(cudaStream_t* s) {
  *s = (cudaStream_t)1;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) {
  *s = (cudaStream_t)1;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* c) {
  *c = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* e) {
  *e = (cudaEvent_t)1;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
  *e = (cudaEvent_t)1;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* t, cudaEvent_t, cudaEvent_t) {
  *t = 1.0f;
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime_v2(float* t, cudaEvent_t, cudaEvent_t) {
  *t = 1.0f;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaGetDevice(int* d) {
  *d = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* d) {
  *d = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceReset() { return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = 13000;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* v) {
  *v = 13000;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
  *f = *t = 40ull << 30;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
  switch (a) {
    case cudaDevAttrMultiProcessorCount:
      *v = g_sms;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *v = 2048;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *v = 1024;
      break;
    case cudaDevAttrWarpSize:
      *v = 32;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *v = 48 * 1024;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *v = g_smem_optin;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *v = g_smem_optin + 1024;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *v = g_cc / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *v = g_cc % 10;
      break;
    case cudaDevAttrMaxGridDimX:
      *v = 0x7fffffff;
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      *v = 65535;
      break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      *v = 1024;
      break;
    case cudaDevAttrMaxBlockDimZ:
      *v = 64;
      break;
    case cudaDevAttrCooperativeLaunch:
      *v = 1;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *v = 32;
      break;
    case cudaDevAttrL2CacheSize:
      *v = 40 << 20;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *v = 65536;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *v = 1024;
      break;
    case cudaDevAttrMemoryPoolsSupported:
      *v = 1;
      break;
    default:
      *v = 0;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "ptxsim");
  p->totalGlobalMem = 40ull << 30;
  p->sharedMemPerBlock = 48 * 1024;
  p->sharedMemPerBlockOptin = g_smem_optin;
  p->sharedMemPerMultiprocessor = g_smem_optin + 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = g_cc / 10;
  p->minor = g_cc % 10;
  p->multiProcessorCount = g_sms;
  p->maxThreadsPerMultiProcessor = 2048;
  p->l2CacheSize = 40 << 20;
  p->maxBlocksPerMultiProcessor = 32;
  p->cooperativeLaunch = 1;
  p->unifiedAddressing = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* p, int d) { return cudaGetDeviceProperties(p, d); }
cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute a, int v) {
  if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (v > g_smem_optin) return ret(cudaErrorInvalidValue);
    g_fsmem[f] = v;
  }
  return ret(cudaSuccess);
}
cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) { return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->binaryVersion = a->ptxVersion = g_cc;
  auto it = g_fn.find(f);
  if (it != g_fn.end()) {
    auto& M = *(Module*)it->second.mod;
    auto& F = M.funcs[it->second.name];
    if (F.maxntid[0]) a->maxThreadsPerBlock = F.maxntid[0] * F.maxntid[1] * F.maxntid[2];
    try {
      a->sharedSizeBytes = build(M, it->second.name)->sstatic;
    } catch (...) {
    }
  }
  a->maxDynamicSharedSizeBytes = g_fsmem.count(f) ? g_fsmem[f] : 48 * 1024;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int bs, size_t sh, unsigned) {
  cudaFuncAttributes a;
  cudaFuncGetAttributes(&a, f);
  size_t s = sh + a.sharedSizeBytes + 1024;
  *n = bs > 0 ? std::max(0, std::min({2048 / ((bs + 31) / 32 * 32), 32, (int)((g_smem_optin + 1024) / s)})) : 0;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int bs, size_t sh) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, bs, sh, 0);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  memset(a, 0, sizeof *a);
  bool d = g_mem.find((u64)p);
  a->type = d ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  a->devicePointer = (void*)p;
  return cudaSuccess;
}
}
