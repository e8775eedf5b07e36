#pragma once
#include <bit>

#include "engine.h"
#define LANES(...)                                                       \
  do {                                                                   \
    if (m == FULL) {                                                     \
      _Pragma("GCC ivdep") for (int l = 0; l < 32; l++) { __VA_ARGS__; } \
    } else {                                                             \
      for (u32 t_ = m; t_; t_ &= t_ - 1) {                               \
        int l = __builtin_ctz(t_);                                       \
        __VA_ARGS__;                                                     \
      }                                                                  \
    }                                                                    \
  } while (0)
template <class D, class A, class F>
ExecFn mk1(F) {
  return [](Warp& w, const Inst& I, u32 m) {
    D* d = w.D<D>(I.d[0]);
    const A* a = w.S<A>(I.s[0]);
    LANES(d[l] = F{}(a[l]));
  };
}
template <class D, class A, class B, class F>
ExecFn mk2(F) {
  return [](Warp& w, const Inst& I, u32 m) {
    D* d = w.D<D>(I.d[0]);
    const A* a = w.S<A>(I.s[0]);
    const B* b = w.S<B>(I.s[1]);
    LANES(d[l] = F{}(a[l], b[l]));
  };
}
template <class D, class A, class B, class C, class F>
ExecFn mk3(F) {
  return [](Warp& w, const Inst& I, u32 m) {
    D* d = w.D<D>(I.d[0]);
    const A* a = w.S<A>(I.s[0]);
    const B* b = w.S<B>(I.s[1]);
    const C* c = w.S<C>(I.s[2]);
    LANES(d[l] = F{}(a[l], b[l], c[l]));
  };
}
// with instruction access
template <class D, class A, class F>
ExecFn mk1i(F) {
  return [](Warp& w, const Inst& I, u32 m) {
    D* d = w.D<D>(I.d[0]);
    const A* a = w.S<A>(I.s[0]);
    LANES(d[l] = F{}(a[l], I, w));
  };
}
template <class D, class A, class B, class F>
ExecFn mk2i(F) {
  return [](Warp& w, const Inst& I, u32 m) {
    D* d = w.D<D>(I.d[0]);
    const A* a = w.S<A>(I.s[0]);
    const B* b = w.S<B>(I.s[1]);
    LANES(d[l] = F{}(a[l], b[l], I, w));
  };
}
template <class D, class A, class B, class C, class F>
ExecFn mk3i(F) {
  return [](Warp& w, const Inst& I, u32 m) {
    D* d = w.D<D>(I.d[0]);
    const A* a = w.S<A>(I.s[0]);
    const B* b = w.S<B>(I.s[1]);
    const C* c = w.S<C>(I.s[2]);
    LANES(d[l] = F{}(a[l], b[l], c[l], I, w));
  };
}

static inline float fz(float x) {
  u32 u = std::bit_cast<u32>(x);
  return (u & 0x7f800000u) ? x : std::bit_cast<float>(u & 0x80000000u);
}
static inline float cn(float x) { return x != x ? std::bit_cast<float>(0x7fffffffu) : x; }
static inline float h2f(u16 h) {
#ifdef __F16C__
  return _cvtsh_ss(h);
#else
  u32 s = (h & 0x8000u) << 16, e = h >> 10 & 31, f = h & 1023;
  if (e == 31) return std::bit_cast<float>(s | 0x7f800000u | f << 13);
  if (!e) {
    float v = std::ldexp((float)f, -24);
    return s ? -v : v;
  }
  return std::bit_cast<float>(s | (e + 112) << 23 | f << 13);
#endif
}
// round double to a small float format; mode 0 rn,1 rz,2 rm,3 rp,4 rna ; returns value as double (inf on overflow)
static inline double rnd_fmt(double x, int mant, int emin, double maxv, int mode) {
  if (x != x || std::isinf(x) || x == 0) return x;
  int e;
  std::frexp(x, &e);
  e -= 1;
  if (e < emin) e = emin;
  double ulp = std::ldexp(1.0, e - mant);
  double q = x / ulp, r;
  switch (mode) {
    case 1:
      r = std::trunc(q);
      break;
    case 2:
      r = std::floor(q);
      break;
    case 3:
      r = std::ceil(q);
      break;
    case 4:
      r = std::round(q);
      break;
    default:
      r = std::nearbyint(q);
  }
  r *= ulp;
  if (std::fabs(r) > maxv) {
    if (mode == 1 || (mode == 2 && r > 0) || (mode == 3 && r < 0))
      r = std::copysign(maxv, r);
    else
      r = std::copysign(INFINITY, r);
  }
  if (r == 0) r = std::copysign(0.0, x);
  return r;
}
static inline u16 d2h(double x, int mode = 0) {  // double -> f16 bits
  if (x != x) return 0x7fff;
  double r = rnd_fmt(x, 10, -14, 65504.0, mode);
  u16 s = std::signbit(r) ? 0x8000 : 0;
  r = std::fabs(r);
  if (std::isinf(r)) return s | 0x7c00;
  if (r == 0) return s;
  int e;
  std::frexp(r, &e);
  e--;
  if (e < -14) return s | (u16)std::ldexp(r, 24);
  return s | (u16)((e + 15) << 10) | (u16)(std::ldexp(r, 10 - e) - 1024);
}
static inline u16 f2h(float x) {
  if (x != x) return 0x7fff;
#ifdef __F16C__
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
  return d2h(x);
#endif
}
static inline float b2f(u16 h) { return std::bit_cast<float>((u32)h << 16); }
static inline u16 f2b(float x) {
  u32 u = std::bit_cast<u32>(x);
  if (x != x) return 0x7fff;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
static inline u16 d2b(double x, int mode = 0) {  // double -> bf16
  if (x != x) return 0x7fff;
  double r = rnd_fmt(x, 7, -126, 3.3895313892515355e38, mode);
  return std::bit_cast<u32>((float)r) >> 16;
}
static inline u32 pk(u16 a, u16 b) { return a | (u32)b << 16; }
struct H {
  static float f(u16 x) { return h2f(x); }
  static u16 p(float x) { return f2h(x); }
  static u16 pd(double x) { return d2h(x); }
};
struct B {
  static float f(u16 x) { return b2f(x); }
  static u16 p(float x) { return f2b(x); }
  static u16 pd(double x) { return d2b(x); }
};
static inline float fmn(float a, float b) {
  if (a != a) return cn(b);
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
static inline float fmx(float a, float b) {
  if (a != a) return cn(b);
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
static inline float fmnN(float a, float b) {
  if (a != a || b != b) return std::bit_cast<float>(0x7fffffffu);
  return fmn(a, b);
}
static inline float fmxN(float a, float b) {
  if (a != a || b != b) return std::bit_cast<float>(0x7fffffffu);
  return fmx(a, b);
}
static inline double dmn(double a, double b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
static inline double dmx(double a, double b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
// deterministic perturbation of approximate functions: rel in units, abs absolute
static inline float noise(float r, float in, const Inst& I, Warp& w, double rel, double ab) {
  if (!w.L->o.approx_noise || r != r || std::isinf(r) || r == 0) return r;
  u64 h = (std::bit_cast<u32>(in) + 0x9E3779B97F4A7C15ull * (w.L->fp_seed + 1));
  h ^= h >> 29;
  h *= 0xBF58476D1CE4E5B9ull;
  h ^= h >> 32;
  double u = ((double)(h & 0xffff) / 65535.0) * 2 - 1;
  float o = (float)((double)r * (1 + u * rel) + u * ab);
  return o;
}
