"""ptxsim - run the PTX that nvcc makes for CUDA kernels on the CPU (functional, not timed). See README.md."""

import ctypes as C
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time

import numpy as np

_here = os.path.dirname(os.path.abspath(__file__))


def _load():
    """Builds the library once per content of its sources, in the user's cache folder (this folder may be read-only)."""
    names = ("engine.cpp", "parse.cpp", "decode.cpp", "decode2.inc", "exec.h", "engine.h", "fakert.cpp", "Makefile")
    key = hashlib.sha256(b"".join(open(os.path.join(_here, f), "rb").read() for f in names)).hexdigest()[:16]
    out = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ptxsim", key)
    so = os.path.join(out, "libptxsim.so")
    if not os.path.exists(so):
        tmp = (
            tempfile.mkdtemp(prefix="build-", dir=os.path.dirname(out)) if os.path.isdir(os.path.dirname(out)) else None
        )
        if tmp is None:
            os.makedirs(os.path.dirname(out), exist_ok=True)
            tmp = tempfile.mkdtemp(prefix="build-", dir=os.path.dirname(out))
        for f in names:
            shutil.copy(os.path.join(_here, f), tmp)
        subprocess.run(["make", "-s", "-j2", "-C", tmp], check=True)
        try:
            os.rename(tmp, out)
        except OSError:
            shutil.rmtree(tmp, ignore_errors=True)  # another process was first
    return C.CDLL(so, mode=C.RTLD_GLOBAL)


_l = _load()


class _Stats(C.Structure):
    _fields_ = (
        [
            (n, C.c_uint64)
            for n in """warp_instr thread_instr
 gld_req gld_sectors gld_bytes gst_req gst_sectors gst_bytes gatom_req gatom_sectors gatom_ops
 sld_req sld_wavefronts sld_ideal sst_req sst_wavefronts sst_ideal satom_req satom_ops sld_bytes sst_bytes
 local_ld_bytes local_st_bytes const_ld_bytes
 block_barriers warp_syncs fences branches divergent_branches calls
 blocks threads benign_races shfl_inactive_reads max_resident""".split()
        ]
        + [("cat", C.c_uint64 * 16)]
        + [(n, C.c_uint64) for n in "shared_static shared_total local_size reg_bytes".split()]
    )


class _Opts(C.Structure):
    _fields_ = [("seed", C.c_uint64), ("max_instr", C.c_uint64), ("timeout_s", C.c_double)] + [
        (n, C.c_int)
        for n in "check_uninit check_races weak_memory resident cooperative early_exit shfl_inactive max_reports approx_noise track block_order split_warps".split()
    ]


_l.px_error.restype = C.c_char_p
_l.px_load.restype = C.c_void_p
_l.px_load.argtypes = [C.c_char_p]
_l.px_free.argtypes = [C.c_void_p]
_l.px_nkernels.argtypes = [C.c_void_p]
_l.px_kernel.restype = C.c_char_p
_l.px_kernel.argtypes = [C.c_void_p, C.c_int]
_l.px_nparams.argtypes = [C.c_void_p, C.c_char_p]
_l.px_param.argtypes = [C.c_void_p, C.c_char_p, C.c_int] + [C.POINTER(C.c_uint32)] * 3
_l.px_add.argtypes = [C.c_void_p, C.c_uint64, C.c_uint64, C.c_int, C.c_int, C.c_char_p, C.POINTER(C.c_uint64)]
_l.px_remove.argtypes = [C.c_int]
_l.px_host.restype = C.c_void_p
_l.px_host.argtypes = [C.c_uint64, C.POINTER(C.c_uint64)]
_l.px_var.argtypes = [C.c_void_p, C.c_char_p, C.POINTER(C.c_uint64), C.POINTER(C.c_uint64)]
_l.px_vars.argtypes = [C.c_void_p, C.c_char_p, C.c_int]
_l.px_range_stats.argtypes = [C.c_int, C.POINTER(C.c_uint64)]
_l.px_unwritten.argtypes = [C.c_int, C.c_void_p]
_l.px_unsup.argtypes = [C.c_void_p, C.c_char_p, C.c_char_p, C.c_int]
_l.px_launch.argtypes = [
    C.c_void_p,
    C.c_char_p,
    C.POINTER(C.c_uint32),
    C.POINTER(C.c_uint32),
    C.c_uint32,
    C.c_char_p,
    C.c_uint64,
    C.POINTER(_Opts),
    C.POINTER(_Stats),
    C.c_char_p,
    C.c_uint64,
    C.c_char_p,
    C.c_uint64,
]
_l.px_ntid.argtypes = [C.c_void_p, C.c_char_p, C.POINTER(C.c_int), C.POINTER(C.c_int)]

CATS = ["int", "fp32_add_mul", "fp32_fma", "fp64", "half", "sfu", "cvt", "mem", "ctrl_sync", "setp_selp", "mov"]


class SimError(RuntimeError):
    """fatal: out of bounds, misaligned, divergent barrier, deadlock, trap, assert, unsupported instruction, limits"""


class CheckError(SimError):
    """one of the checkers (uninit / race / nc / gww / ...) reported; .reports has all of them, .stats the counters"""

    def __init__(self, reports, stats):
        self.reports, self.stats = reports, stats
        super().__init__(
            "%d checker report(s):\n" % len(reports)
            + "\n".join("  [%s x%d] %s" % (r.kind, r.count, r.text) for r in reports[:20])
        )


class Report:
    def __init__(self, kind, count, text):
        self.kind, self.count, self.text = kind, count, text

    def __repr__(self):
        return "[%s x%d] %s" % (self.kind, self.count, self.text)


class Buffer:
    """Device memory. Buffer(array) shares the (C-contiguous, writable) numpy array's memory: kernel writes appear in it.
    Buffer(nbytes=...) or Buffer(array, init=False) starts uninitialised (reads before writes are reported).
    offset: bytes added to a 512-byte aligned device address (e.g. offset=4 gives a float tensor view that is only 4-byte aligned)."""

    def __init__(self, arr=None, nbytes=None, init=True, offset=0, readonly=False, name=None):
        if arr is None:
            arr = np.frombuffer(b"\xaa" * nbytes, np.uint8).copy()
            init = False
        arr = np.asarray(arr)
        self.orig = arr
        self.view = arr if arr.flags.c_contiguous and arr.flags.writeable else np.ascontiguousarray(arr).copy()
        self.readonly = readonly or not arr.flags.writeable
        a = C.c_uint64()
        self.nbytes = self.view.nbytes
        self.id = _l.px_add(
            self.view.ctypes.data if self.nbytes else None,
            self.nbytes,
            offset,
            int(bool(init)),
            int(self.readonly),
            (name or "buf").encode(),
            C.byref(a),
        )
        self.addr = a.value

    def sync(self):
        if self.view is not self.orig and not self.readonly:
            self.orig[...] = self.view.reshape(self.orig.shape)

    @property
    def array(self):
        return self.view

    def unwritten(self):
        """boolean per byte: still uninitialised"""
        o = np.zeros(self.nbytes, np.uint8)
        _l.px_unwritten(self.id, o.ctypes.data)
        return o.astype(bool)

    def counters(self):
        v = (C.c_uint64 * 11)()
        _l.px_range_stats(self.id, v)
        return dict(
            zip(
                "ld_bytes ld_sectors ld_req st_bytes st_sectors st_req atom_ops atom_req unique_read unique_written uninit".split(),
                list(v),
            )
        )

    def free(self):
        if getattr(self, "id", None) is not None:
            _l.px_remove(self.id)
            self.id = None

    def __del__(self):
        try:
            self.free()
        except Exception:
            pass


class Out:
    """wrap a numpy array argument as output-only: starts uninitialised for the uninit checker; after the launch, bytes never written raise an error if must_write"""

    def __init__(self, arr, must_write=True, offset=0, name=None):
        self.arr, self.must_write, self.offset, self.name = arr, must_write, offset, name


class Arg:
    """wrap a numpy array argument with options (offset in bytes from 512-alignment, name, readonly)"""

    def __init__(self, arr, offset=0, name=None, readonly=False):
        self.arr, self.offset, self.name, self.readonly = arr, offset, name, readonly


class Stats:
    """counters of a launch (attributes) + derived: see summary()"""

    def __init__(self, s):
        for n, t in _Stats._fields_:
            if n != "cat":
                setattr(self, n, getattr(s, n))
        self.cat = dict(zip(CATS, list(s.cat)))
        self.reports, self.buffers, self.printf, self.seconds = [], {}, "", 0.0

    @property
    def load_efficiency(self):
        return self.gld_bytes / (32 * self.gld_sectors) if self.gld_sectors else 1.0

    @property
    def store_efficiency(self):
        return self.gst_bytes / (32 * self.gst_sectors) if self.gst_sectors else 1.0

    @property
    def shared_conflict(self):
        """wavefronts per ideal wavefront (1.0 = no bank conflicts), plain loads and stores"""
        i = self.sld_ideal + self.sst_ideal
        return (self.sld_wavefronts + self.sst_wavefronts) / i if i else 1.0

    @property
    def flops(self):
        return self.cat["fp32_add_mul"] + 2 * self.cat["fp32_fma"]

    @property
    def dram_bytes(self):
        """compulsory traffic: distinct bytes read plus distinct bytes written"""
        return sum(b["unique_read"] + b["unique_written"] for b in self.buffers.values())

    def summary(self):
        s = [
            "instr: %d warp, %d thread (%.1f active lanes avg); blocks %d, threads %d"
            % (
                self.warp_instr,
                self.thread_instr,
                self.thread_instr / max(1, self.warp_instr),
                self.blocks,
                self.threads,
            ),
            "global ld: %d req, %d sectors, %d B useful (eff %.2f); st: %d req, %d sectors, %d B (eff %.2f); atom: %d req, %d lane ops"
            % (
                self.gld_req,
                self.gld_sectors,
                self.gld_bytes,
                self.load_efficiency,
                self.gst_req,
                self.gst_sectors,
                self.gst_bytes,
                self.store_efficiency,
                self.gatom_req,
                self.gatom_ops,
            ),
            "shared: ld %d req %d wavefronts, st %d req %d wavefronts (conflict factor %.2f), atom %d req %d ops; local ld/st %d/%d B"
            % (
                self.sld_req,
                self.sld_wavefronts,
                self.sst_req,
                self.sst_wavefronts,
                self.shared_conflict,
                self.satom_req,
                self.satom_ops,
                self.local_ld_bytes,
                self.local_st_bytes,
            ),
            "sync: %d block barriers, %d warp syncs, %d fences; branches %d (%d divergent)"
            % (self.block_barriers, self.warp_syncs, self.fences, self.branches, self.divergent_branches),
            "thread instr by kind: " + ", ".join("%s %d" % kv for kv in self.cat.items() if kv[1]),
        ]
        for n, b in self.buffers.items():
            s.append("  %s: %s" % (n, ", ".join("%s %d" % kv for kv in b.items() if kv[1])))
        for r in self.reports:
            s.append("  " + repr(r))
        return "\n".join(s)

    __repr__ = summary


def demangle(names):
    if not names:
        return []
    r = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    return r.stdout.split("\n")[: len(names)] if r.returncode == 0 else list(names)


def _d3(v):
    v = (v,) if isinstance(v, (int, np.integer)) else tuple(v)
    return (C.c_uint32 * 3)(*([int(x) for x in v] + [1] * (3 - len(v))))


def _run(
    h,
    name,
    grid,
    block,
    shared,
    raw,
    total,
    schedule_seed=0,
    max_instr=0,
    timeout_s=600.0,
    check_uninit=True,
    check_races=False,
    weak_memory=False,
    resident=0,
    cooperative=False,
    early_exit="warn",
    shfl_inactive="warn",
    approx_noise=False,
    track=True,
    block_order="linear",
    split_warps=True,
):
    lvl = {"ignore": 0, "warn": 1, "error": 2}
    o = _Opts(
        seed=schedule_seed,
        max_instr=max_instr,
        timeout_s=timeout_s,
        check_uninit=int(check_uninit),
        check_races=int(check_races),
        weak_memory=int(weak_memory),
        resident=resident,
        cooperative=int(cooperative),
        early_exit=lvl[early_exit],
        shfl_inactive=lvl[shfl_inactive],
        max_reports=100,
        approx_noise=int(approx_noise),
        track=int(track),
        block_order={"linear": 0, "random": 1, "reverse": 2}[block_order],
        split_warps=int(split_warps),
    )
    st = _Stats()
    rep, out = C.create_string_buffer(1 << 18), C.create_string_buffer(1 << 20)
    t0 = time.time()
    rc = _l.px_launch(
        h,
        name.encode(),
        _d3(grid),
        _d3(block),
        shared,
        raw,
        total,
        C.byref(o),
        C.byref(st),
        rep,
        len(rep),
        out,
        len(out),
    )
    s = Stats(st)
    s.seconds = time.time() - t0
    s.printf = out.value.decode(errors="replace")
    for r in rep.value.decode(errors="replace").split("\x01"):
        if r:
            n, k, t = r.split("|", 2)
            s.reports.append(Report(k, int(n), t))
    return rc, s


class Kernel:
    def __init__(self, mod, name, pretty):
        self.mod, self.name, self.pretty = mod, name, pretty
        self.params = []
        for i in range(_l.px_nparams(mod._h, name.encode())):
            o, s, t = C.c_uint32(), C.c_uint32(), C.c_uint32()
            _l.px_param(mod._h, name.encode(), i, C.byref(o), C.byref(s), C.byref(t))
            self.params.append((o.value, s.value, {0: "b", 1: "f32", 2: "f64", 3: "s", 4: "u"}[t.value]))
        mx, rq = (C.c_int * 3)(), (C.c_int * 3)()
        _l.px_ntid(mod._h, name.encode(), mx, rq)
        self.max_threads = mx[0] * mx[1] * mx[2] or None

    def __repr__(self):
        return "<kernel %s: %d params %s>" % (self.pretty, len(self.params), [(s, t) for _, s, t in self.params])

    def unsupported(self):
        """PTX instructions of this kernel that ptxsim cannot run (they only raise when reached)"""
        b = C.create_string_buffer(1 << 16)
        if _l.px_unsup(self.mod._h, self.name.encode(), b, len(b)) < 0:
            raise SimError(_l.px_error().decode())
        return [x for x in b.value.decode().split("\n") if x]

    def launch(
        self,
        grid,
        block,
        args=(),
        shared=0,
        schedule_seed=0,
        check_uninit=True,
        check_races=False,
        weak_memory=False,
        cooperative=False,
        resident=0,
        block_order="linear",
        early_exit="warn",
        shfl_inactive="warn",
        approx_noise=False,
        track=True,
        max_instr=0,
        timeout_s=600.0,
        split_warps=True,
        on_report="raise",
        names=None,
    ):
        """args: numpy arrays / Buffer / Arg / Out for pointers (None = null), numbers for scalars, bytes or ctypes.Structure for by-value structs.
        on_report: 'raise' (CheckError after the launch) or 'collect' (in stats.reports). Kinds starting with 'warn' never raise."""
        if len(args) != len(self.params):
            raise TypeError(
                "%s takes %d arguments, %d given: %s"
                % (self.pretty, len(self.params), len(args), [(s, t) for _, s, t in self.params])
            )
        total = max([o + s for o, s, _ in self.params] or [0])
        raw = bytearray(total + 8)
        own, outs, seen, used = [], [], {}, []
        for i, (a, (off, size, ty)) in enumerate(zip(args, self.params)):
            nm = names[i] if names else "arg%d" % i
            opt = {}
            if isinstance(a, Out):
                opt = dict(init=False, offset=a.offset)
                nm = a.name or nm
                outs.append((a, i))
                arr = a.arr
            elif isinstance(a, Arg):
                opt = dict(offset=a.offset, readonly=a.readonly)
                nm = a.name or nm
                arr = a.arr
            else:
                arr = a
            if isinstance(arr, Buffer):
                used.append((nm, arr))
                b = int(arr.addr).to_bytes(8, "little")
            elif isinstance(arr, np.ndarray) and not (arr.dtype.kind == "V" and arr.ndim == 0):
                if size != 8:
                    raise TypeError("argument %d: array given for a %d-byte parameter" % (i, size))
                key = (arr.__array_interface__["data"][0], arr.nbytes) if arr.nbytes else ("empty", i)
                if key in seen:
                    buf = seen[key]  # the same array twice: same device address
                else:
                    buf = seen[key] = Buffer(arr, name=nm, **opt)
                    own.append(buf)
                    used.append((nm, buf))
                if isinstance(a, Out):
                    a._buf = buf
                b = int(buf.addr).to_bytes(8, "little")
            elif hasattr(arr, "data_ptr") and hasattr(arr, "numpy"):
                raise TypeError("argument %d: pass tensor.numpy() (bf16: .view(torch.int16).numpy())" % i)
            elif arr is None:
                b = bytes(size)
            elif isinstance(arr, (bytes, bytearray)):
                b = bytes(arr)
            elif isinstance(arr, (C.Structure, C.Union, C.Array)):
                b = bytes(arr)
            elif (
                isinstance(arr, (np.generic, np.void))
                and not isinstance(arr, (np.float64, np.bool_))
                and arr.nbytes == size
            ):
                b = arr.tobytes()
            elif isinstance(arr, (bool, np.bool_)):
                b = int(arr).to_bytes(size, "little")
            elif isinstance(arr, (int, np.integer)):
                if ty == "f32":
                    b = np.float32(arr).tobytes()
                elif ty == "f64":
                    b = np.float64(arr).tobytes()
                else:
                    b = (int(arr) & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
            elif isinstance(arr, (float, np.floating)):
                if ty in ("s", "u") or size not in (2, 4, 8):
                    raise TypeError("argument %d: float given for %d-byte integer parameter" % (i, size))
                if size == 2:
                    raise TypeError("argument %d: 2-byte parameter: say np.float16(x), or np.uint16(bits) for bf16" % i)
                b = {4: np.float32, 8: np.float64}[size](arr).tobytes()
            else:
                raise TypeError("argument %d: cannot pass %r" % (i, type(a)))
            if len(b) != size:
                raise TypeError("argument %d (%s): %d bytes given, kernel wants %d" % (i, nm, len(b), size))
            raw[off : off + size] = b
        rc, s = _run(
            self.mod._h,
            self.name,
            grid,
            block,
            shared,
            bytes(raw),
            total,
            schedule_seed=schedule_seed,
            max_instr=max_instr,
            timeout_s=timeout_s,
            check_uninit=check_uninit,
            check_races=check_races,
            weak_memory=weak_memory,
            resident=resident,
            cooperative=cooperative,
            early_exit=early_exit,
            shfl_inactive=shfl_inactive,
            approx_noise=approx_noise,
            track=track,
            block_order=block_order,
            split_warps=split_warps,
        )
        if track:
            for n, b in used:
                s.buffers[n] = b.counters()
        for a, i in outs:
            if rc == 0 and a.must_write:
                un = a._buf.unwritten()
                if un.any():
                    s.reports.append(
                        Report(
                            "unwritten",
                            int(un.sum()),
                            "output argument %d: %d of %d bytes never written, first at byte %d (element %d)"
                            % (i, un.sum(), un.size, np.argmax(un), np.argmax(un) // a.arr.itemsize),
                        )
                    )
        err = _l.px_error().decode(errors="replace") if rc else None
        for b in own:
            b.sync()
            b.free()
        if rc:
            e = SimError(
                err + ("\nearlier reports:\n" + "\n".join("  " + repr(r) for r in s.reports) if s.reports else "")
            )
            e.stats = s
            raise e
        bad = [r for r in s.reports if not r.kind.startswith("warn")]
        if bad and on_report == "raise":
            raise CheckError(bad, s)
        return s


class Module:
    def __init__(self, ptx):
        self.ptx = ptx
        self._h = _l.px_load(ptx.encode())
        if not self._h:
            raise SimError(_l.px_error().decode())
        self.mangled = [_l.px_kernel(self._h, i).decode() for i in range(_l.px_nkernels(self._h))]
        self.kernels = demangle(self.mangled)

    def __getitem__(self, pat):
        """kernel by exact (mangled or demangled) name, or the only one whose demangled name matches the regex / contains the text"""
        for i, (m, d) in enumerate(zip(self.mangled, self.kernels)):
            if pat in (m, d):
                return Kernel(self, m, d)
        c = [i for i, d in enumerate(self.kernels) if pat in d]
        if not c:
            try:
                c = [i for i, d in enumerate(self.kernels) if re.search(pat, d)]
            except re.error:
                c = []
        if len(c) > 1:
            c2 = [
                i
                for i in c
                if re.split(r"[<(]", re.sub(r"^\w+ (?=\w+[<(:])", "", self.kernels[i]))[0].split("::")[-1] == pat
            ]
            if len(c2) == 1:
                c = c2
        if len(c) != 1:
            raise KeyError("%r matches %d kernels: %s" % (pat, len(c), [self.kernels[i] for i in c] or self.kernels))
        return Kernel(self, self.mangled[c[0]], self.kernels[c[0]])

    def symbols(self):
        b = C.create_string_buffer(1 << 20)
        _l.px_vars(self._h, b, len(b))
        return [x for x in b.value.decode().split("\n") if x]

    def symbol(self, name, dtype=np.uint8):
        """a module-scope __device__/__constant__ variable as a numpy array sharing its memory (kept between launches)"""
        a, n = C.c_uint64(), C.c_uint64()
        c = [s for s in self.symbols() if s == name] or [
            s
            for s, d in zip(self.symbols(), demangle(self.symbols()))
            if name == d or name == d.split("::")[-1] or name in s
        ]
        if len(c) != 1:
            raise KeyError("%r: %s" % (name, c))
        if _l.px_var(self._h, c[0].encode(), C.byref(a), C.byref(n)):
            raise KeyError(name)
        left = C.c_uint64()
        p = _l.px_host(a.value, C.byref(left))
        return np.frombuffer((C.c_uint8 * n.value).from_address(p), np.uint8).view(dtype)

    def symbol_addr(self, name):
        a, n = C.c_uint64(), C.c_uint64()
        if _l.px_var(self._h, name.encode(), C.byref(a), C.byref(n)):
            raise KeyError(name)
        return a.value

    def __del__(self):
        try:
            if self._h:
                _l.px_free(self._h)
        except Exception:
            pass


def compile(
    src,
    arch="sm_80",
    includes=(),
    defines=(),
    flags=(),
    std="c++17",
    opt="-O3",
    lineinfo=True,
    nvcc="nvcc",
    cache=True,
    keep=None,
):
    """compile a .cu/.cuh path, or CUDA source text, to PTX with nvcc and load it. Host code in the file is parsed by nvcc but never run.
    A header-only kernel template needs an explicit instantiation: pass source text such as '#include "k.cuh"\\ntemplate __global__ void k<float>(...);'"""
    istext = "\n" in src or not os.path.exists(src)
    d = keep or tempfile.mkdtemp(prefix="ptxsim_")
    try:
        if istext:
            path = os.path.join(d, "src.cu")
            open(path, "w").write(src)
        else:
            path = os.path.abspath(src)
        out = os.path.join(d, "out.ptx")
        cmd = (
            [nvcc, "-ptx", "-arch=" + arch, opt, "-std=" + std]
            + (["-lineinfo"] if lineinfo else [])
            + (["-x", "cu"] if not path.endswith(".cu") else [])
        )
        cmd += ["-I" + i for i in includes] + ["-D" + x for x in defines] + list(flags) + [path, "-o", out]
        r = subprocess.run(cmd, capture_output=True, text=True)
        if r.returncode:
            raise SimError("nvcc failed: %s\n%s%s" % (" ".join(cmd), r.stdout, r.stderr))
        return Module(open(out).read())
    finally:
        if not keep:
            shutil.rmtree(d, ignore_errors=True)


_LCB = C.CFUNCTYPE(
    C.c_int,
    C.c_void_p,
    C.c_char_p,
    C.POINTER(C.c_uint32),
    C.POINTER(C.c_uint32),
    C.c_uint64,
    C.POINTER(C.c_uint8),
    C.c_uint64,
    C.c_int,
)


class HostLib:
    """A .cu file's HOST code, run for real against a stand-in CUDA runtime (cudaMalloc, <<<>>>, cudaMemcpy..., one fake device); kernels run in the simulator.
    lib = HostLib('launch.cu'); lib.options.update(check_races=True); lib.call('launch_softmax', x, Out(y), 64, 32768, None)
    numpy array arguments are passed as device pointers, ints as C ints, np scalars by their type, None = 0. Call extern "C" functions by name, C++ ones by mangled name.
    .log: one (kernel, grid, block, shared, Stats) per launch. A fatal error or checker report raises after the host function returns."""

    def __init__(self, src, arch="sm_80", includes=(), defines=(), flags=(), std="c++17", sms=108):
        self.module = compile(src, arch, includes, defines, flags, std)
        d = tempfile.mkdtemp(prefix="ptxsim_")
        try:
            path = os.path.abspath(src)
            if "\n" in src or not os.path.exists(src):
                path = os.path.join(d, "src.cu")
                open(path, "w").write(src)
            cc = re.sub(r"\D", "", arch)
            so = os.path.join(d, "host.so")
            cmd = (
                [
                    "nvcc",
                    "-gencode",
                    "arch=compute_%s,code=compute_%s" % (cc, cc),
                    "-cudart",
                    "none",
                    "-shared",
                    "-Xcompiler",
                    "-fPIC",
                    "-std=" + std,
                ]
                + ["-I" + i for i in includes]
                + ["-D" + x for x in defines]
                + list(flags)
                + [path, "-o", so]
            )
            r = subprocess.run(cmd, capture_output=True, text=True)
            if r.returncode:
                raise SimError("nvcc failed: %s\n%s%s" % (" ".join(cmd), r.stdout, r.stderr))
            self.options, self.log, self.errors = {}, [], []
            names = dict(zip(self.module.mangled, self.module.kernels))

            def cb(h, name, grid, block, sh, params, plen, coop):
                try:
                    g, b = tuple(grid[:3]), tuple(block[:3])
                    name = name.decode()
                    rc, s = _run(h, name, g, b, sh, bytes(params[:plen]), plen, cooperative=bool(coop), **self.options)
                    self.log.append((names.get(name, name), g, b, sh, s))
                    if rc:
                        self.errors.append(
                            "%s<<<%s, %s, %d>>>: %s"
                            % (names.get(name, name), g, b, sh, _l.px_error().decode(errors="replace"))
                        )
                    self.errors += [
                        "%s: %r" % (names.get(name, name), r) for r in s.reports if not r.kind.startswith("warn")
                    ]
                    return int(bool(rc))
                except Exception as e:
                    self.errors.append(repr(e))
                    return 1

            self._cb = _LCB(cb)
            _l.px_rt_bind.argtypes = [C.c_void_p, _LCB]
            _l.px_add_at.argtypes = [C.c_void_p, C.c_uint64, C.c_int, C.c_char_p]
            _l.px_overlaps.argtypes = [C.c_uint64, C.c_uint64]
            _l.px_rt_device(sms, int(cc))
            _l.px_rt_bind(self.module._h, self._cb)
            self.lib = C.CDLL(so, mode=os.RTLD_NOW)
        finally:
            shutil.rmtree(d, ignore_errors=True)

    def call(self, name, *args, restype=C.c_int):
        _l.px_rt_reset()
        self.errors.clear()
        _l.px_rt_bind(self.module._h, self._cb)
        ids, av, outs, seen = [], [], [], {}
        try:
            arrs = [(i, isinstance(a, Out), a.arr if isinstance(a, (Out, Arg)) else a) for i, a in enumerate(args)]
            for i, o, arr in sorted(
                [q for q in arrs if isinstance(q[2], np.ndarray) and q[2].nbytes], key=lambda q: -q[2].nbytes
            ):  # views of an array share its range
                p = arr.ctypes.data
                if p in seen or _l.px_overlaps(p, arr.nbytes) in ids:
                    continue
                seen[p] = _l.px_add_at(p, arr.nbytes, int(not o), ("arg%d" % i).encode())
                ids.append(seen[p])
            for i, a in enumerate(args):
                o = isinstance(a, Out)
                arr = a.arr if isinstance(a, (Out, Arg)) else a
                if isinstance(arr, np.ndarray):
                    if not arr.flags.c_contiguous:
                        raise TypeError("argument %d: array must be C-contiguous" % i)
                    p = arr.ctypes.data
                    if o:
                        outs.append((i, a, seen.get(p)))
                    av.append(C.c_void_p(p))
                elif arr is None:
                    av.append(C.c_void_p(0))
                elif isinstance(arr, bool):
                    av.append(C.c_bool(arr))
                elif isinstance(arr, int):
                    av.append(C.c_int(arr))
                elif isinstance(arr, np.generic):
                    av.append(np.ctypeslib.as_ctypes_type(arr.dtype)(arr.item()))
                elif isinstance(arr, float):
                    raise TypeError("argument %d: say np.float32(x) or np.float64(x)" % i)
                else:
                    av.append(arr)
            f = getattr(self.lib, name)
            f.restype = restype
            r = f(*av)
            for i, a, id_ in outs:
                if id_ and a.must_write and not self.errors:
                    u = np.zeros(a.arr.nbytes, np.uint8)
                    _l.px_unwritten(id_, u.ctypes.data)
                    if u.any():
                        self.errors.append(
                            "output argument %d: %d of %d bytes never written, first at byte %d"
                            % (i, u.sum(), u.size, np.argmax(u))
                        )
        finally:
            for q in ids:
                _l.px_remove(q)
        if self.errors:
            raise SimError("in host function %s:\n" % name + "\n".join(self.errors[:20]))
        return r


def load_ptx(path_or_text):
    return Module(open(path_or_text).read() if "\n" not in path_or_text else path_or_text)
