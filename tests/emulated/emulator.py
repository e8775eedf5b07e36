"""The CUDA kernels and their launchers without a GPU: nvcc's own PTX, executed on the CPU by ptxsim.

The emulator is in tools/; ``FASTLOSS_PTXSIM`` names another folder that holds a ptxsim. ``Emulated`` runs a launcher as
the torch layer does: torch tensors in, parameters as csrc/params.h has them, an uninitialised workspace.
"""

import ctypes as C
import importlib
import os
import sys
from pathlib import Path

import numpy as np
import torch

CSRC = Path(__file__).parents[2] / "csrc"
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
LOSSES = {"cross_entropy": 0, "focal": 1, "ghmc": 2}
MAX_DIMS = 8

# Everything at once that may go wrong in another schedule: late stores, any order of warps and blocks, races.
SCHEDULES = [
    {"schedule_seed": seed, "check_races": True, "weak_memory": True, "block_order": "random"} for seed in range(1, 6)
]


class Layout(C.Structure):
    _fields_ = (
        ("ndim", C.c_int32),
        ("size", C.c_int64 * MAX_DIMS),
        ("stride", C.c_int64 * MAX_DIMS),
        ("grad_stride", C.c_int64 * MAX_DIMS),
        ("class_stride", C.c_int64),
        ("grad_class_stride", C.c_int64),
        ("extent", C.c_int64),
    )

    @classmethod
    def of(cls, input, grad, class_dim):
        """As csrc/ops.cpp makes it: the dimensions but class_dim, merged where memory allows."""
        grad = input if grad is None else grad
        dims = []  # size, stride, grad_stride
        for size, stride, grad_stride in zip(input.shape, input.stride(), grad.stride(), strict=True):
            dims.append([size, stride, grad_stride])
        _, class_stride, grad_class_stride = dims.pop(class_dim)
        merged = []
        for size, stride, grad_stride in dims:
            if size == 1:
                continue
            if merged and merged[-1][1] == stride * size and merged[-1][2] == grad_stride * size:
                merged[-1] = [merged[-1][0] * size, stride, grad_stride]
            else:
                merged.append([size, stride, grad_stride])
        merged = merged or [[1, 0, 0]]
        layout = cls(ndim=len(merged), class_stride=class_stride, grad_class_stride=grad_class_stride)
        for d, (size, stride, grad_stride) in enumerate(merged):
            layout.size[d], layout.stride[d], layout.grad_stride[d] = size, stride, grad_stride
        layout.extent = span(input)
        return layout


class GhmState(C.Structure):
    _fields_ = (
        ("running_histogram", C.c_void_p),
        ("num_updates", C.c_void_p),
        ("momentum", C.c_double),
        ("bins", C.c_int32),
        ("nonempty", C.c_bool),
        ("bias_correction", C.c_bool),
        ("training", C.c_bool),
    )


class SoftmaxParams(C.Structure):
    _fields_ = (
        *((name, C.c_void_p) for name in ("input", "grad", "target", "weight", "loss", "bin_weight")),
        ("N", C.c_int64),
        ("C", C.c_int64),
        ("layout", Layout),
        ("ignore_index", C.c_int64),
        ("gamma", C.c_double),
        ("label_smoothing", C.c_double),
        ("grad_scale", C.c_double),
        ("ghm", GhmState),
        ("dtype", C.c_int32),
        ("target_is_int64", C.c_bool),
        ("reduction", C.c_int32),
        ("kind", C.c_int32),
    )


class SigmoidParams(C.Structure):
    _fields_ = (
        *((name, C.c_void_p) for name in ("input", "grad", "target", "mask", "loss", "bin_weight")),
        ("N", C.c_int64),
        ("alpha", C.c_double),
        ("gamma", C.c_double),
        ("grad_scale", C.c_double),
        ("ghm", GhmState),
        ("dtype", C.c_int32),
        ("target_is_compute_type", C.c_bool),
        ("reduction", C.c_int32),
        ("kind", C.c_int32),
    )


class ScaleParams(C.Structure):
    _fields_ = (
        ("grad", C.c_void_p),
        ("grad_output", C.c_void_p),
        ("factor", C.c_double),
        ("N", C.c_int64),
        ("C", C.c_int64),
        ("layout", Layout),
        ("dtype", C.c_int32),
        ("per_decision", C.c_bool),
    )


def import_ptxsim():
    """The emulator's module. Its library is built at the first import, once per version of its sources."""
    sys.path.insert(0, os.environ.get("FASTLOSS_PTXSIM") or str(Path(__file__).parents[2] / "tools"))
    return importlib.import_module("ptxsim")


def span(tensor):
    """Elements from the first to one past the last."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def memory(tensor):
    """A tensor's memory, from its first element to its last, as a numpy array of as many bytes."""
    flat = tensor.detach().as_strided((span(tensor),), (1,))
    return flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]).numpy()


def address(tensor):
    return None if tensor is None else tensor.data_ptr()


def compute_type(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def moved_bytes(log):
    """Global memory traffic of launches: what loads, stores and atomics ask for, in whole 32-byte sectors."""
    return sum(32 * (s.gld_sectors + s.gst_sectors + s.gatom_sectors) for *_, s in log)


class Emulated:
    """A .cuh's launchers, given extern "C" entry points in ``source``. Functions return a cudaError_t."""

    def __init__(self, ptxsim, source, **options):
        self.ptxsim = ptxsim
        self.lib = ptxsim.HostLib(source, arch="sm_80", includes=[str(CSRC / "cuda")], std="c++20", **options)

    def call(self, name, *args, outputs=(), memories=(), **options):
        """Runs an entry point; returns its launches. The device sees the memory of these tensors and no more.

        outputs start uninitialised, and must be written. memories may be read and written.
        """
        self.lib.options.clear()
        self.lib.options.update(options)
        self.lib.log.clear()
        arrays = [self.ptxsim.Out(memory(t)) for t in outputs]
        arrays += [m if isinstance(m, self.ptxsim.Out) else memory(m) for m in memories]
        error = self.lib.call(name, *args, *[a for a in arrays if np.asarray(getattr(a, "arr", a)).size])
        assert error == 0, f"{name} returned cudaError_t {error}"
        return list(self.lib.log)

    def workspace(self, num_bytes):
        """Uninitialised device memory: reading it before it is written is an error. Aligned, as torch allocates it."""
        return self.ptxsim.Out(torch.zeros(num_bytes, dtype=torch.uint8).numpy(), must_write=False)


SOFTMAX_SOURCE = """
#include "scale_gradient.cuh"
#include "softmax_launch.cuh"
using namespace fastloss;
extern "C" size_t params_bytes() { return sizeof(SoftmaxParams); }
extern "C" size_t workspace_bytes(const SoftmaxParams* params) { return softmax_workspace_bytes(*params); }
extern "C" int softmax_loss(const SoftmaxParams* params, void* workspace) {
  return launch_softmax_loss(*params, workspace, nullptr);
}
extern "C" int softmax_histogram(const SoftmaxParams* params, void* workspace, int64_t* counts) {
  return launch_softmax_histogram(*params, counts, workspace, nullptr);
}
extern "C" size_t scale_params_bytes() { return sizeof(ScaleParams); }
extern "C" int scale_gradient(const ScaleParams* params) { return launch_scale_gradient(*params, nullptr); }
"""


class EmulatedLosses(Emulated):
    """What the softmax and the sigmoid losses have in common. Params: their struct of csrc/params.h."""

    def __init__(self, ptxsim, source, Params, **options):
        super().__init__(ptxsim, source, **options)
        assert self.lib.lib.params_bytes() == C.sizeof(Params), f"{Params.__name__} is not csrc/params.h's"
        self.lib.lib.workspace_bytes.restype = C.c_size_t

    def workspace_of(self, params):
        return self.workspace(self.lib.lib.workspace_bytes(C.byref(params)))

    def run_loss(
        self,
        entry,
        params,
        kind,
        input,
        target,
        extra,
        *,
        grad=None,
        reduction="mean",
        gamma=2.0,
        grad_scale=1.0,
        bins=10,
        momentum=0.0,
        normalizer="nonempty",
        bias_correction=True,
        running_histogram=None,
        num_updates=None,
        training=True,
        **options,
    ):
        """Completes params and runs the entry point; returns (loss, launches). extra: a tensor that it reads, or None.

        The gradient is written to ``grad``, which may be the input.
        """
        loss = torch.full(target.shape if reduction == "none" else (), torch.nan, dtype=compute_type(input.dtype))
        params.reduction, params.kind = REDUCTIONS[reduction], LOSSES[kind]
        params.loss, params.gamma, params.grad_scale = loss.data_ptr(), gamma, grad_scale
        outputs, memories = [loss], [input, target]
        if grad is not None and grad.data_ptr() != input.data_ptr():
            # A gradient with gaps is not written everywhere.
            (outputs if grad.numel() == span(grad) else memories).append(grad)
        if extra is not None:
            memories.append(extra)
        if kind == "ghmc":
            params.ghm = GhmState(None, None, momentum, bins, normalizer == "nonempty", bias_correction, training)
            bin_weight = torch.empty(bins, dtype=torch.float64)
            params.bin_weight = bin_weight.data_ptr()
            outputs.append(bin_weight)
            if momentum > 0:
                params.ghm.running_histogram = running_histogram.data_ptr()
                params.ghm.num_updates = num_updates.data_ptr()
                memories += [running_histogram, num_updates]
        log = self.call(
            entry,
            C.byref(params),
            self.workspace_of(params),
            outputs=[t for t in outputs if t.numel()],
            memories=[t for t in memories if t.numel()],
            **options,
        )
        return loss, log


class EmulatedSoftmax(EmulatedLosses):
    def __init__(self, ptxsim, **options):
        super().__init__(ptxsim, SOFTMAX_SOURCE, SoftmaxParams, **options)
        assert self.lib.lib.scale_params_bytes() == C.sizeof(ScaleParams), "ScaleParams is not scale_gradient.cuh's"

    def params(self, input, grad, target, ignore_index):
        class_dim = 0 if input.dim() == 1 else 1
        return SoftmaxParams(
            input=input.data_ptr(),
            grad=address(grad),
            target=target.data_ptr(),
            N=target.numel(),
            C=input.shape[class_dim],
            layout=Layout.of(input, grad, class_dim),
            ignore_index=ignore_index,
            grad_scale=1.0,
            dtype=DTYPES[input.dtype],
            target_is_int64=target.dtype == torch.int64,
        )

    def loss(self, kind, input, target, weight=None, *, grad=None, ignore_index=-100, label_smoothing=0.0, **settings):
        """kind: of LOSSES; settings and the result are run_loss's."""
        params = self.params(input, grad, target, ignore_index)
        weight = None if weight is None else weight.to(compute_type(input.dtype))
        params.weight, params.label_smoothing = address(weight), label_smoothing
        return self.run_loss("softmax_loss", params, kind, input, target, weight, grad=grad, **settings)

    def histogram(self, input, target, bins=10, ignore_index=-100, **options):
        counts = torch.full((bins,), -1)
        params = self.params(input, None, target, ignore_index)
        params.kind, params.ghm.bins, params.reduction = LOSSES["ghmc"], bins, REDUCTIONS["sum"]
        memories = [t for t in (input, target) if t.numel()]
        workspace = self.workspace_of(params)
        self.call("softmax_histogram", C.byref(params), workspace, outputs=[counts], memories=memories, **options)
        return counts

    def scale_gradient(self, grad, grad_output, factor=1.0, **options):
        """Multiplies grad (N, C, ...) in place; grad_output: () or (N, ...). Returns the launches."""
        grad_output = grad_output.to(compute_type(grad.dtype))
        per_decision = grad_output.dim() > 0
        params = ScaleParams(grad.data_ptr(), grad_output.data_ptr(), factor)
        params.N, params.C = grad.numel() // grad.shape[1], grad.shape[1]
        params.layout, params.dtype = Layout.of(grad, None, 1), DTYPES[grad.dtype]
        params.per_decision = per_decision
        memories = [t for t in (grad, grad_output) if t.numel()]
        return self.call("scale_gradient", C.byref(params), memories=memories, **options)


SIGMOID_SOURCE = """
#include "sigmoid_loss.cuh"
using namespace fastloss;
extern "C" size_t params_bytes() { return sizeof(SigmoidParams); }
extern "C" size_t workspace_bytes(const SigmoidParams* params) { return sigmoid_workspace_bytes(*params); }
extern "C" int sigmoid_loss(const SigmoidParams* params, void* workspace) {
  return launch_sigmoid_loss(*params, workspace, nullptr);
}
"""


class EmulatedSigmoid(EmulatedLosses):
    def __init__(self, ptxsim, **options):
        super().__init__(ptxsim, SIGMOID_SOURCE, SigmoidParams, **options)

    def loss(self, name, input, target, mask=None, *, grad=None, alpha=-1.0, **settings):
        """name: the function's in the package; settings and the result are run_loss's."""
        params = SigmoidParams(
            input=input.data_ptr(),
            grad=address(grad),
            target=target.data_ptr(),
            mask=address(mask),
            N=input.numel(),
            alpha=alpha,
            dtype=DTYPES[input.dtype],
            target_is_compute_type=target.dtype != input.dtype,
        )
        kind = "ghmc" if "ghmc" in name else "focal"
        return self.run_loss("sigmoid_loss", params, kind, input, target, mask, grad=grad, **settings)
