"""The CUDA kernels and their launchers without a GPU: nvcc's own PTX, executed on the CPU by ptxsim.

The emulator is in tools/; ``FASTLOSS_PTXSIM`` names another folder that holds a ptxsim. ``Emulated`` runs a launcher as
the torch layer does: torch tensors in, parameters as csrc/losses/params.h has them, an uninitialised workspace.
"""

import ctypes as C
import importlib
import os
import re
import sys
from pathlib import Path

import torch

CSRC = Path(__file__).parents[2] / "csrc"
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
NORMALIZERS = {"nonempty": 0, "bins": 1}
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
        """As csrc/ops/layout.cpp makes it: the dimensions but class_dim (if any), merged where memory allows."""
        grad = input if grad is None else grad
        dims = []  # size, stride, grad_stride
        for size, stride, grad_stride in zip(input.shape, input.stride(), grad.stride(), strict=True):
            dims.append([size, stride, grad_stride])
        _, class_stride, grad_class_stride = (1, 1, 1) if class_dim is None else dims.pop(class_dim)
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
        ("power", C.c_double),
        ("bins", C.c_int32),
        ("normalizer", C.c_int32),
        ("bias_correction", C.c_bool),
        ("training", C.c_bool),
    )


class SoftmaxExtras(C.Structure):
    _fields_ = (("z_loss", C.c_double), ("logit_scale", C.c_double), ("softcap", C.c_double))


SOFTMAX_POINTERS = (
    "input",
    "grad",
    "target",
    "weight",
    "sample_weight",
    "denominator",
    "lse",
    "loss",
    "bin_weight",
    "counts",
)


class SoftmaxParams(C.Structure):
    _fields_ = (
        *((name, C.c_void_p) for name in SOFTMAX_POINTERS),
        ("N", C.c_int64),
        ("C", C.c_int64),
        ("layout", Layout),
        ("ignore_index", C.c_int64),
        ("parameter", C.c_double),
        ("label_smoothing", C.c_double),
        ("stored_scale", C.c_void_p),
        ("ghm", GhmState),
        ("extras", SoftmaxExtras),
        ("loss_row", C.c_int32),
        ("ghmc", C.c_bool),
        ("extended", C.c_bool),
        ("probabilities", C.c_bool),
        ("dtype", C.c_int32),
        ("target_is_int64", C.c_bool),
        ("target_is_compute_type", C.c_bool),
        ("reduction", C.c_int32),
    )


class Broadcast(C.Structure):
    _fields_ = (("values", C.c_void_p), ("inner", C.c_int64), ("size", C.c_int64))

    @classmethod
    def of(cls, numbers, shape):
        """As csrc/ops/checks.cpp makes it of numbers that have some neighbouring dimensions of shape."""
        sizes = (1,) * (len(shape) - numbers.dim()) + tuple(numbers.shape)
        last = max((d for d, n in enumerate(sizes) if n != 1), default=-1)
        return cls(numbers.data_ptr(), torch.Size(shape[last + 1 :]).numel() if last >= 0 else 1, numbers.numel())


class SigmoidParams(C.Structure):
    _fields_ = (
        *((name, C.c_void_p) for name in ("input", "grad", "target", "mask", "loss", "bin_weight", "counts")),
        ("N", C.c_int64),
        ("class_alpha", Broadcast),
        ("sample_weight", Broadcast),
        ("denominator", C.c_void_p),
        ("alpha", C.c_double),
        ("parameter", C.c_double),
        ("gamma_negative", C.c_double),
        ("margin", C.c_double),
        ("stored_scale", C.c_void_p),
        ("ghm", GhmState),
        ("loss_row", C.c_int32),
        ("ghmc", C.c_bool),
        ("dtype", C.c_int32),
        ("target_is_compute_type", C.c_bool),
        ("reduction", C.c_int32),
    )


class GradientNorms(C.Structure):
    _fields_ = (("counts", C.c_void_p), ("bin", C.c_void_p))


class ScaleParams(C.Structure):
    _fields_ = (
        *((name, C.c_void_p) for name in ("grad", "scaled", "grad_output", "stored_scale")),
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


def kernels(log):
    """The names of the kernels that were launched."""
    return [re.split("[<(]", name.split("::")[1])[0] for name, *_ in log]


SOURCE = """
#include <iterator>
#include <string>
#include "{include}"
using namespace fastloss;
using Params = {Params};
extern "C" size_t params_bytes() {{ return sizeof(Params); }}
extern "C" void limit_blocks(int limit) {{ max_blocks = limit > 0 ? limit : kMaxBlocks; }}
extern "C" int num_schedules() {{ return int(std::size(kCudaScheduleNames)); }}
extern "C" const char* schedule_name(size_t code) {{ return kCudaScheduleNames[code]; }}
"""
LOSS_SOURCE = (
    SOURCE
    + """
extern "C" size_t scratch_bytes(int32_t bins) {{ return workspace_bytes(bins); }}
extern "C" int loss_row(const char* name) {{
  for (int row = 0; row < {Table}::size; ++row) {{
    if (std::string({Table}::rows[row].name) == name) return row;
  }}
  return -1;
}}
extern "C" const char* parameter_of(int row) {{ return {Table}::rows[row].parameter; }}
extern "C" int loss(const Params* params, void* workspace) {{ return launch_{family}_loss(*params, workspace, 0); }}
extern "C" int gradient_norms(const Params* params, const GradientNorms* norms, void* workspace) {{
  return launch_{family}_gradient_norms(*params, *norms, workspace, 0);
}}
"""
)


class Emulated:
    """A .cuh's launchers, given extern "C" entry points in ``source``. Functions return a cudaError_t."""

    def __init__(self, ptxsim, source, Params):
        self.ptxsim = ptxsim
        includes, flags = [str(CSRC / "cuda")], ["--expt-relaxed-constexpr"]
        self.lib = ptxsim.HostLib(source, arch="sm_90", includes=includes, flags=flags, std="c++20")
        self.host = self.lib.lib
        assert self.host.params_bytes() == C.sizeof(Params), f"{Params.__name__} is not csrc/losses/params.h's"
        self.host.schedule_name.restype = C.c_char_p

    def limit_blocks(self, limit):
        """The grid of later launches has at most so many blocks, so that small batches loop too. None: as users get."""
        self.host.limit_blocks(limit or 0)

    def schedule(self, params):
        """The name of the path that a call takes."""
        return self.host.schedule_name(C.c_size_t(self.host.schedule_code(C.byref(params)))).decode()

    def schedule_names(self, family):
        """All paths of softmax, sigmoid or scale."""
        names = [self.host.schedule_name(C.c_size_t(code)).decode() for code in range(self.host.num_schedules())]
        return {name for name in names if name.split()[1] == family}

    def call(self, name, *args, outputs=(), memories=(), **options):
        """Runs an entry point; returns its launches. The device sees the memory of these tensors and no more.

        outputs start uninitialised, and must be written. memories may be read and written.
        """
        self.lib.options.clear()
        self.lib.options.update(options)
        self.lib.log.clear()
        arrays = [self.ptxsim.Out(memory(t)) for t in outputs if t is not None and t.numel()]
        arrays += [memory(t) for t in memories if t is not None and t.numel()]
        error = self.lib.call(name, *args, *arrays)
        assert error == 0, f"{name} returned cudaError_t {error}"
        return list(self.lib.log)

    def unsupported(self):
        """Instructions that the emulator does not run, of each kernel that has any."""
        module = self.lib.module
        return {name: missing for name in module.kernels if (missing := module[name].unsupported())}


class EmulatedLosses(Emulated):
    """What the softmax and the sigmoid losses have in common. Params: their struct of csrc/losses/params.h."""

    def __init__(self, ptxsim, source, Params):
        super().__init__(ptxsim, source, Params)
        self.host.scratch_bytes.restype = C.c_size_t
        self.host.parameter_of.restype = C.c_char_p

    def workspace(self, bins):
        """Uninitialised device memory: reading it before it is written is an error. Aligned, as torch allocates it."""
        num_bytes = self.host.scratch_bytes(bins)
        return self.ptxsim.Out(torch.zeros(num_bytes, dtype=torch.uint8).numpy(), must_write=False)

    def run_loss(
        self,
        name,
        params,
        input,
        target,
        decisions,
        *,
        read=(),
        written=(),
        grad=None,
        stored_scale=None,
        reduction="mean",
        bins=10,
        momentum=0.0,
        power=1.0,
        normalizer="nonempty",
        bias_correction=True,
        running_histogram=None,
        num_updates=None,
        training=True,
        **options,
    ):
        """Completes params and runs the loss of that name; returns (loss, launches). decisions: their shape; read and
        written: tensors, or None, that it reads and writes beside.

        options: the loss's own parameter, by its name in the table, and the emulator's.

        The gradient is written to ``grad``, which may be the input, and what it is stored times to ``stored_scale``.
        """
        loss = torch.full(decisions if reduction == "none" else (), torch.nan, dtype=compute_type(input.dtype))
        params.reduction, params.loss, params.stored_scale = (
            REDUCTIONS[reduction],
            loss.data_ptr(),
            address(stored_scale),
        )
        outputs, memories = [loss, stored_scale, *written], [input, target, *read]
        if grad is not None and grad.data_ptr() != input.data_ptr():
            # A gradient with gaps is not written everywhere.
            (outputs if grad.numel() == span(grad) else memories).append(grad)
        if name.endswith("ghmc_loss"):
            params.ghmc = True
            normalizer = NORMALIZERS[normalizer]
            params.ghm = GhmState(None, None, momentum, power, bins, normalizer, bias_correction, training)
            bin_weight = torch.empty(bins, dtype=torch.float64)
            params.bin_weight = bin_weight.data_ptr()
            outputs.append(bin_weight)
            if momentum > 0:
                params.ghm.running_histogram = running_histogram.data_ptr()
                params.ghm.num_updates = num_updates.data_ptr()
                memories += [running_histogram, num_updates]
        else:
            params.loss_row = self.host.loss_row(name.encode())
            parameter = self.host.parameter_of(params.loss_row).decode()
            params.parameter = options.pop(parameter, 0.0)
            if parameter == "label_smoothing":
                params.label_smoothing = params.parameter
        workspace = self.workspace(params.ghm.bins)
        log = self.call("loss", C.byref(params), workspace, outputs=outputs, memories=memories, **options)
        return loss, log

    def run_gradient_norms(self, params, input, target, extra, bins, *, with_log=False, **options):
        """Returns (counts, each decision's bin), and the launches if they are asked for."""
        counts, bin = torch.full((bins,), -1), torch.full(target.shape, -7, dtype=torch.int32)
        params.ghmc, params.ghm.bins, params.reduction = True, bins, REDUCTIONS["sum"]
        norms = GradientNorms(counts.data_ptr(), bin.data_ptr())
        arguments = (C.byref(params), C.byref(norms), self.workspace(bins))
        memories = [input, target, *extra]
        log = self.call("gradient_norms", *arguments, outputs=[counts, bin], memories=memories, **options)
        return (counts, bin, log) if with_log else (counts, bin)


class EmulatedSoftmax(EmulatedLosses):
    def __init__(self, ptxsim):
        source = LOSS_SOURCE.format(
            include="softmax_launch.cuh", Params="SoftmaxParams", Table="SoftmaxLosses", family="softmax"
        )
        source += """
extern "C" int schedule_code(const Params* params) {
  DeviceLimits limits;
  limits_of_device(&limits);
  return schedule_of(*params, Pass::loss, limits).code();
}
"""
        super().__init__(ptxsim, source, SoftmaxParams)

    def params(self, input, grad, target, ignore_index=-100):
        class_dim = 0 if input.dim() == 1 else 1
        probabilities = target.is_floating_point()
        C = input.shape[class_dim]
        return SoftmaxParams(
            input=input.data_ptr(),
            grad=address(grad),
            target=target.data_ptr(),
            N=input.numel() // C,
            C=C,
            # Class probabilities lie as the gradient does.
            layout=Layout.of(input, target if probabilities else grad, class_dim),
            ignore_index=ignore_index,
            probabilities=probabilities,
            dtype=DTYPES[input.dtype],
            target_is_int64=target.dtype == torch.int64,
            target_is_compute_type=target.dtype != input.dtype,
        )

    def path(self, input, grad=None):
        """The path of cross entropy."""
        return self.schedule(
            self.params(input, grad, torch.empty(input.shape[:1] + input.shape[2:], dtype=torch.int64))
        )

    def loss(
        self,
        name,
        input,
        target,
        weight=None,
        *,
        grad=None,
        ignore_index=-100,
        sample_weight=None,
        denominator=None,
        lse=None,
        counts=None,
        z_loss=0.0,
        logit_scale=1.0,
        softcap=None,
        **options,
    ):
        """name: the function's in the package; lse: a tensor for it; options and the result are run_loss's."""
        params = self.params(input, grad, target, ignore_index)
        compute = compute_type(input.dtype)
        weight, sample_weight = (None if w is None else w.to(compute) for w in (weight, sample_weight))
        denominator = None if denominator is None else torch.tensor(denominator, dtype=torch.float64)
        params.weight, params.sample_weight, params.denominator = map(address, (weight, sample_weight, denominator))
        params.lse, params.counts = address(lse), address(counts)
        params.extras = SoftmaxExtras(z_loss, logit_scale, softcap or 0.0)
        params.extended = (z_loss, logit_scale, softcap, lse) != (0.0, 1.0, None, None)
        read = [weight, sample_weight, denominator, counts]
        decisions = input.shape[: input.dim() > 1] + input.shape[2:]
        return self.run_loss(name, params, input, target, decisions, read=read, written=[lse], grad=grad, **options)

    def gradient_norms(self, input, target, bins=10, ignore_index=-100, **options):
        params = self.params(input, None, target, ignore_index)
        return self.run_gradient_norms(params, input, target, [], bins, **options)


class EmulatedSigmoid(EmulatedLosses):
    def __init__(self, ptxsim):
        source = LOSS_SOURCE.format(
            include="sigmoid.cuh", Params="SigmoidParams", Table="SigmoidLosses", family="sigmoid"
        )
        source += 'extern "C" int schedule_code(const Params* params) { return schedule_of(*params).code(); }'
        super().__init__(ptxsim, source, SigmoidParams)

    def params(self, input, grad, target, mask=None, alpha=-1.0):
        return SigmoidParams(
            input=input.data_ptr(),
            grad=address(grad),
            target=target.data_ptr(),
            mask=address(mask),
            N=input.numel(),
            alpha=alpha,
            dtype=DTYPES[input.dtype],
            target_is_compute_type=target.dtype != input.dtype,
        )

    def loss(
        self,
        name,
        input,
        target,
        mask=None,
        *,
        grad=None,
        alpha=-1.0,
        sample_weight=None,
        denominator=None,
        gamma_negative=0.0,
        margin=0.0,
        **settings,
    ):
        """name: the function's in the package; settings and the result are run_loss's."""
        extra = [mask]
        class_alpha, alpha = (alpha, -1.0) if torch.is_tensor(alpha) else (None, alpha)
        params = self.params(input, grad, target, mask, alpha)
        for field, numbers in (("class_alpha", class_alpha), ("sample_weight", sample_weight)):
            if numbers is not None:
                numbers = numbers.to(compute_type(input.dtype))
                setattr(params, field, Broadcast.of(numbers, input.shape))
                extra.append(numbers)
        if denominator is not None:
            extra.append(torch.tensor([denominator], dtype=torch.float64))
            params.denominator = extra[-1].data_ptr()
        params.gamma_negative, params.margin = gamma_negative, margin
        return self.run_loss(name, params, input, target, input.shape, read=extra, grad=grad, **settings)

    def gradient_norms(self, input, target, mask=None, bins=10, **options):
        params = self.params(input, None, target, mask)
        return self.run_gradient_norms(params, input, target, [mask], bins, **options)


class EmulatedScale(Emulated):
    def __init__(self, ptxsim):
        source = SOURCE.format(include="scale_gradient.cuh", Params="ScaleParams")
        source += """
extern "C" int schedule_code(const Params* params) { return schedule_of(*params).code(); }
extern "C" int scale_gradient(const Params* params) { return launch_scale_gradient(*params, 0); }
"""
        super().__init__(ptxsim, source, ScaleParams)

    def params(self, grad, scaled, grad_output, stored_scale=None):
        """grad (N, C, ...); grad_output: () or (N, ...)."""
        per_decision = grad_output.dim() > 0
        softmax = per_decision and grad_output.dim() < grad.dim()
        return ScaleParams(
            grad=grad.data_ptr(),
            scaled=scaled.data_ptr(),
            grad_output=grad_output.data_ptr(),
            stored_scale=address(stored_scale),
            N=grad_output.numel() if per_decision else grad.numel(),
            C=grad.shape[1] if softmax else 1,
            layout=Layout.of(grad, scaled, 1 if softmax else None),
            dtype=DTYPES[grad.dtype],
            per_decision=per_decision,
        )

    def scale(self, grad, scaled, grad_output, stored_scale=None, **options):
        """Returns (path, launches)."""
        params = self.params(grad, scaled, grad_output, stored_scale)
        memories = [grad, grad_output, stored_scale] + ([] if scaled.data_ptr() == grad.data_ptr() else [scaled])
        return self.schedule(params), self.call("scale_gradient", C.byref(params), memories=memories, **options)
