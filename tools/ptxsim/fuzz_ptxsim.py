"""differential fuzzing: random C functions, nvcc->PTX->ptxsim against g++ on the host.   python3 fuzz_ptxsim.py [n] [seed]"""

import ctypes as C
import os
import random
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import ptxsim

INT = ["int", "unsigned", "long long", "unsigned long long", "short", "unsigned char", "signed char", "unsigned short"]
FLT = ["float", "double"]
UNS = {
    "int": "unsigned",
    "unsigned": "unsigned",
    "long long": "unsigned long long",
    "unsigned long long": "unsigned long long",
    "short": "unsigned",
    "unsigned char": "unsigned",
    "signed char": "unsigned",
    "unsigned short": "unsigned",
}


class G:
    def __init__(s, seed):
        s.r = random.Random(seed)
        s.vars = []
        s.n = 0
        s.out = []

    def iexpr(s, d):
        r = s.r
        if d == 0 or r.random() < 0.15:
            c = [v for v, t in s.vars if t in INT]
            if c and r.random() < 0.8:
                return r.choice(c)
            return r.choice(["%d" % r.randint(-5, 300), "0x%xu" % r.getrandbits(32), "%dll" % (r.getrandbits(63))])
        t = r.choice(INT)
        u = UNS[t]
        a, b = s.iexpr(d - 1), s.iexpr(d - 1)
        w = 63 if "long" in u else 31
        k = r.randrange(20)
        if k < 3:
            return "((%s)((%s)(%s) %s (%s)(%s)))" % (t, u, a, r.choice("+-*"), u, b)
        if k < 5:
            return "((%s)((%s)(%s) %s (%s)(%s)))" % (t, u, a, r.choice("&|^"), u, b)
        if k == 5:
            return "((%s)((%s)(%s) << ((%s) & %d)))" % (t, u, a, b, w)
        if k == 6:
            st = r.choice(["int", "unsigned", "long long", "unsigned long long"])
            return "((%s)((%s)(%s) >> ((%s) & %d)))" % (t, st, a, b, 63 if "long" in st else 31)
        if k == 7:
            st = r.choice(["unsigned", "unsigned long long", "unsigned short"])
            return "((%s)((%s)(%s) %s ((%s)(%s) | 1)))" % (t, st, a, r.choice("/%"), st, b)
        if k == 8:
            return "((%s)((int)((%s) | 1) %s (int)(((%s) & 0xffff) | 1)))" % (t, a, r.choice("/%"), b)
        if k == 9:
            return "((%s)(%s) %s (%s)(%s))" % (t, a, r.choice(["<", "<=", ">", ">=", "==", "!="]), t, b)
        if k == 10:
            return "((%s) ? (%s)(%s) : (%s)(%s))" % (s.cond(d - 1), t, a, t, b)
        if k == 11:
            return "((%s)(%s))" % (t, a)
        if k == 12:
            return "((%s)(~(%s)(%s)))" % (t, u, a)
        if k == 13:
            return "f2i(%s)" % s.fexpr(d - 1)
        if k == 14:
            return "min_(%s, %s)" % (a, b)
        if k == 15:
            return "popc_((unsigned long long)(%s))" % a
        if k == 16:
            return "mulhi_((unsigned)(%s), (unsigned)(%s))" % (a, b)
        if k == 17:
            return "smulhi_((int)(%s), (int)(%s))" % (a, b)
        if k == 18:
            return "rot_((unsigned)(%s), (unsigned)(%s))" % (a, b)
        return "arr[(%s) & 7]" % a

    def fexpr(s, d):
        r = s.r
        if d <= 0 or r.random() < 0.15:
            c = [v for v, t in s.vars if t in FLT]
            if c and r.random() < 0.8:
                return r.choice(c)
            return "%.6gf" % (r.uniform(-100, 100)) if r.random() < 0.7 else "%.12g" % r.uniform(-10, 10)
        t = r.choice(FLT)
        k = r.randrange(11)
        if k < 4:
            return "((%s)(%s) %s (%s)(%s))" % (t, s.fexpr(d - 1), r.choice("+-*"), t, s.fexpr(d - 1))
        if k == 4:
            return "div_((%s)(%s), (%s)(%s))" % (t, s.fexpr(d - 1), t, s.fexpr(d - 1))
        if k == 5:
            return "((%s) ? (%s)(%s) : (%s)(%s))" % (s.cond(d - 1), t, s.fexpr(d - 1), t, s.fexpr(d - 1))
        if k == 6:
            return "((%s)(%s))" % (t, s.iexpr(d - 1))
        if k == 7:
            return "sqrt_((%s)(%s))" % (t, s.fexpr(d - 1))
        if k == 8:
            return "fabs_((%s)(%s))" % (t, s.fexpr(d - 1))
        if k == 9:
            return "%s((%s)(%s))" % (r.choice(["floor_", "ceil_", "rint_", "trunc_"]), t, s.fexpr(d - 1))
        return "fma_((%s)(%s), (%s)(%s), (%s)(%s))" % (t, s.fexpr(d - 1), t, s.fexpr(d - 1), t, s.fexpr(d - 1))

    def cond(s, d):
        op = s.r.choice(["<", "<=", ">", ">=", "==", "!="])
        k = s.r.random()
        if k < 0.6:
            return "(%s) %s (%s)" % (s.iexpr(d), op, s.iexpr(d))
        if k < 0.9:
            return "(%s) %s (%s)" % (s.fexpr(d), op, s.fexpr(d))
        return "(%s) %s (%s)" % (
            s.cond(d - 1) if d > 0 else "1",
            s.r.choice(["&&", "||"]),
            s.cond(d - 1) if d > 0 else "0",
        )

    def block(s, d, ind=1):
        o = []
        p = "  " * ind
        r = s.r
        keep = len(s.vars)
        for _ in range(r.randint(1, 4)):
            k = r.randrange(10)
            if k < 4:
                t = r.choice(INT + FLT)
                n = "v%d" % s.n
                s.n += 1
                o.append(p + "%s %s = (%s)(%s);" % (t, n, t if t in FLT else t, s.fexpr(3) if t in FLT else s.iexpr(3)))
                s.vars.append((n, t))
            elif k < 6 and s.vars:
                v, t = r.choice(s.vars)
                o.append(p + "%s = (%s)(%s);" % (v, t, s.fexpr(3) if t in FLT else s.iexpr(3)))
            elif k == 6:
                o.append(p + "arr[(%s) & 7] %s (int)(%s);" % (s.iexpr(2), r.choice(["=", "^="]), s.iexpr(3)))
            elif k == 7 and d:
                o.append(p + "if (%s) {" % s.cond(2))
                o += s.block(d - 1, ind + 1)
                o.append(p + "} else {")
                o += s.block(d - 1, ind + 1)
                o.append(p + "}")
            elif k == 8 and d:
                c = "c%d" % s.n
                s.n += 1
                o.append(
                    p
                    + "for (int %s = 0; %s < (int)((%s) & 7); %s++) {"
                    % (c, c, r.choice([v for v, t in s.vars if t in INT] or ["3"]), c)
                )
                o[-1] = p + "{ int lim%s = (int)((%s) & 7); for (int %s = 0; %s < lim%s; %s++) {" % (
                    c,
                    s.iexpr(1),
                    c,
                    c,
                    c,
                    c,
                )
                s.vars.append((c + "+0", "int")) if False else None
                o += s.block(d - 1, ind + 1)
                o.append(p + "} }")
            elif k == 9 and d:
                o.append(p + "switch ((%s) & 7) {" % s.iexpr(2))
                for q in r.sample(range(8), 5):
                    o.append(p + "case %d: {" % q)
                    o += s.block(0, ind + 1)
                    o.append(p + ("} break;" if r.random() < 0.7 else "}"))
                o.append(p + "default: h ^= 77; }")
            o.append(
                p + "h = mix(h, (unsigned long long)(%s));" % s.iexpr(2)
                if r.random() < 0.6
                else p + "h = mixf(h, %s);" % s.fexpr(2)
            )
        del s.vars[keep:]
        return o

    def func(s):
        s.vars = [("a", "int"), ("b", "unsigned long long"), ("x", "float"), ("y", "double")]
        return (
            "HD unsigned long long func(int a, unsigned long long b, float x, double y, int* arr) { unsigned long long h = 1469598103934665603ull;\n"
            + "\n".join(s.block(3))
            + "\n"
            + "\n".join(s.block(3))
            + "\n  for (int i = 0; i < 8; i++) h = mix(h, arr[i]); return h; }\n"
        )


PRE = r"""
#include <cmath>
#include <cstring>
#ifdef __CUDACC__
#define HD __host__ __device__ __forceinline__
#define NI __host__ __device__ __noinline__
#else
#define HD static inline
#define NI static __attribute__((noinline))
#endif
typedef unsigned long long ull;
HD ull mix(ull h, ull v) { h ^= v; h *= 1099511628211ull; return h ^ (h >> 29); }
HD ull mixf(ull h, double v) { ull u; if (v != v) u = 12345; else memcpy(&u, &v, 8); return mix(h, u); }
HD ull mixf(ull h, float v) { unsigned u; if (v != v) u = 12345; else memcpy(&u, &v, 4); return mix(h, u); }
HD int f2i(double v) { if (!(v > -2e9 && v < 2e9)) return 7; return (int)v; }
HD int f2i(float v) { if (!(v > -2e9f && v < 2e9f)) return 9; return (int)v; }
template <class A, class B> HD A min_(A a, B b) { A c = (A)b; return a < c ? a : c; }
HD int popc_(ull v) { int n = 0; for (int i = 0; i < 64; i += 13) n += (int)(v >> i & 1); return n; }
HD unsigned mulhi_(unsigned a, unsigned b) { return (unsigned)((ull)a * b >> 32); }
HD int smulhi_(int a, int b) { return (int)((long long)a * b >> 32); }
HD unsigned rot_(unsigned a, unsigned b) { b &= 31; return b ? a << b | a >> (32 - b) : a; }
NI float div_(float a, float b) { return a / b; }
NI double div_(double a, double b) { return a / b; }
HD float sqrt_(float a) { return sqrtf(a); } HD double sqrt_(double a) { return sqrt(a); }
HD float fabs_(float a) { return fabsf(a); } HD double fabs_(double a) { return fabs(a); }
HD float floor_(float a) { return floorf(a); } HD double floor_(double a) { return floor(a); }
HD float ceil_(float a) { return ceilf(a); } HD double ceil_(double a) { return ceil(a); }
HD float rint_(float a) { return rintf(a); } HD double rint_(double a) { return rint(a); }
HD float trunc_(float a) { return truncf(a); } HD double trunc_(double a) { return trunc(a); }
HD float fma_(float a, float b, float c) { return fmaf(a, b, c); } HD double fma_(double a, double b, double c) { return fma(a, b, c); }
"""
POST = r"""
#ifdef __CUDACC__
__global__ void k(const int* a, const ull* b, const float* x, const double* y, ull* o) { int i = blockIdx.x * blockDim.x + threadIdx.x; int arr[8] = {1, -2, 3, 40, 5, 6, 7, 8}; o[i] = func(a[i], b[i], x[i], y[i], arr); }
#else
extern "C" void host(int n, const int* a, const ull* b, const float* x, const double* y, ull* o) { for (int i = 0; i < n; i++) { int arr[8] = {1, -2, 3, 40, 5, 6, 7, 8}; o[i] = func(a[i], b[i], x[i], y[i], arr); } }
#endif
"""


def one(seed, keep=None):
    src = PRE + G(seed).func() + POST
    d = tempfile.mkdtemp(prefix="fz")
    rng = np.random.default_rng(seed)
    n = 192
    a = rng.integers(-(2**31), 2**31, n).astype(np.int32)
    a[:64] = rng.integers(-9, 9, 64)
    b = rng.integers(0, 2**63, n).astype(np.uint64)
    x = (rng.standard_normal(n) * 50).astype(np.float32)
    y = rng.standard_normal(n) * 1e3
    open(d + "/s.cpp", "w").write(src)
    subprocess.run(
        [
            "g++",
            "-O1",
            "-w",
            "-fwrapv",
            "-ffp-contract=off",
            "-mfma",
            "-shared",
            "-fPIC",
            "-o",
            d + "/s.so",
            d + "/s.cpp",
        ],
        check=True,
    )
    h = np.zeros(n, np.uint64)
    P = lambda v: v.ctypes.data_as(C.c_void_p)
    C.CDLL(d + "/s.so").host(n, P(a), P(b), P(x), P(y), P(h))
    bad = 0
    for opt in ("-O3",) if seed % 4 else ("-O3", "-O0"):
        m = ptxsim.compile(
            src,
            arch="sm_90" if seed % 2 else "sm_80",
            flags=["-fmad=false", "-w", "-Xcicc", opt] if opt == "-O0" else ["-fmad=false", "-w"],
        )
        k = m["k"]
        if k.unsupported():
            print("seed", seed, "unsupported", k.unsupported())
            bad = 1
        o = np.zeros(n, np.uint64)
        k.launch(2, 96, [a, b, x, y, ptxsim.Out(o)], schedule_seed=seed)
        if not np.array_equal(h, o):
            print("seed", seed, opt, "DIFF in", (h != o).sum(), "of", n)
            open("fuzz_%d.cu" % seed, "w").write(src)
            bad = 1
    subprocess.run(["rm", "-rf", d])
    return bad


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    s0 = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    bad = sum(one(s) for s in range(s0, s0 + n))
    print("%d functions, %d bad" % (n, bad))
