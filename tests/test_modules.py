"""The modules: equal to the functions, and well-behaved as modules (state_dict, dtype and device moves, copies)."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from cases import differentiate, make_sigmoid, make_softmax

import fastloss

MODULES = {
    "AsymmetricLoss": ("asymmetric_loss", {"gamma_positive": 1.0, "margin": 0.1, "alpha": 0.6, "reduction": "none"}),
    "CrossEntropyLoss": ("cross_entropy", {"label_smoothing": 0.1, "ignore_index": 3, "reduction": "sum"}),
    "FocalLoss": ("focal_loss", {"gamma": 0.7, "ignore_index": 3, "reduction": "none"}),
    "GHMCLoss": ("ghmc_loss", {"bins": 7, "normalizer": "bins", "ignore_index": 3, "reduction": "sum"}),
    "PolyLoss": ("poly_loss", {"epsilon": 2.0, "ignore_index": 3, "reduction": "sum"}),
    "SigmoidFocalLoss": ("sigmoid_focal_loss", {"alpha": 0.6, "gamma": 0.7, "reduction": "mean"}),
    "SigmoidGHMCLoss": ("sigmoid_ghmc_loss", {"bins": 7, "normalizer": "bins", "reduction": "none"}),
}
SIGMOID = ("Sigmoid", "Asymmetric")  # how their names begin
GHM = ["GHMCLoss", "SigmoidGHMCLoss"]


def make(name, device="cpu"):
    return (make_sigmoid if name.startswith(SIGMOID) else make_softmax)((30, 5), device=device)


@pytest.mark.parametrize("module", MODULES)
def test_equals_the_function(module, device):
    name, settings = MODULES[module]
    x, target = make(module, device)
    if not module.startswith(SIGMOID):
        target = target.clamp(min=0)
    function = getattr(fastloss, name)
    for options in ({}, settings):
        got = differentiate(lambda x, o=options: getattr(fastloss, module)(**o)(x, target).sum(), x)
        assert all(map(torch.equal, got, differentiate(lambda x, o=options: function(x, target, **o).sum(), x)))
    if module in ("CrossEntropyLoss", "FocalLoss", "PolyLoss"):
        weight = torch.rand(5, device=device)
        got = getattr(fastloss, module)(weight, **settings)(x, target)
        assert torch.equal(got, function(x, target, weight, **settings))
    if module == "SigmoidGHMCLoss":
        mask = target > 0.5
        assert torch.equal(fastloss.SigmoidGHMCLoss()(x, target, mask), function(x, target, mask))


@pytest.mark.parametrize("module", MODULES)
def test_takes_the_functions_settings(module):
    """Same names and defaults; what a call brings (logits, target, mask) and the state are not settings."""
    function = inspect.signature(getattr(fastloss, MODULES[module][0])).parameters
    call = {"input", "target", "mask", "sample_weight", "denominator", "counts"}
    call |= {"running_histogram", "num_updates", "training"}
    expected = {name: (p.default, p.kind) for name, p in function.items() if name not in call}
    parameters = inspect.signature(getattr(fastloss, module)).parameters
    assert {name: (p.default, p.kind) for name, p in parameters.items()} == expected


@pytest.mark.parametrize("module", MODULES)
def test_shows_its_settings(module):
    settings = MODULES[module][1]
    text = repr(getattr(fastloss, module)(**settings))
    assert text.startswith(module + "(")
    assert all(f"{name}={value!r}" in text for name, value in settings.items())


@pytest.mark.parametrize("module", MODULES)
def test_attributes_are_the_settings(module, device):
    """As in torch.nn: what is assigned to a module is what its next call takes."""
    name, settings = MODULES[module]
    x, target = make(module, device)
    target = target if module.startswith(SIGMOID) else target.clamp(min=0)
    changed = getattr(fastloss, module)()
    for setting, value in settings.items():
        setattr(changed, setting, value)
        assert getattr(changed, setting) == value
    assert torch.equal(changed(x, target), getattr(fastloss, name)(x, target, **settings))
    with pytest.raises(AttributeError):
        changed.no_such_setting  # noqa: B018


@pytest.mark.parametrize("module", MODULES)
def test_symbolic_trace(module, device):
    """torch.fx sees one call of the public function, as it sees one of torch.nn.functional.cross_entropy."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = getattr(fastloss, module)(**MODULES[module][1])

        def forward(self, x, target):
            return self.loss(x * 2, target)

    x, target = make(module, device)
    target = target if module.startswith(SIGMOID) else target.clamp(min=0)
    model = Model()
    traced = torch.fx.symbolic_trace(model)
    assert getattr(fastloss, MODULES[module][0]) in [node.target for node in traced.graph.nodes]
    assert torch.equal(traced(x, target), model(x, target))


def test_class_weights_are_a_buffer(device):
    weight = torch.rand(5)
    for cls in (fastloss.CrossEntropyLoss, fastloss.FocalLoss, fastloss.PolyLoss):
        module = cls(weight).to(device)
        assert torch.equal(module.state_dict()["weight"].cpu(), weight) and not list(module.parameters())
        x, target = make_softmax((30, 5), device=device)
        assert module(x, target).isfinite()
        assert module.half()(x, target).isfinite()


@pytest.mark.parametrize("module", ["SigmoidFocalLoss", "AsymmetricLoss"])
def test_what_a_call_of_a_sigmoid_loss_brings(module, device):
    """A mask, weights, a denominator; a number a class is a buffer."""
    x, target = make(module, device)
    mask, weight, alpha = target > 0.5, torch.rand(30, 1, device=device), torch.rand(5)
    ours = getattr(fastloss, module)(alpha=alpha, reduction="mean").to(device)
    assert torch.equal(ours.state_dict()["alpha"].cpu(), alpha) and "alpha" in repr(ours)
    got = ours(x, target, mask, sample_weight=weight, denominator=7)
    function = getattr(fastloss, MODULES[module][0])
    settings = {"alpha": alpha.to(device), "reduction": "mean", "denominator": 7}
    assert torch.equal(got, function(x, target, mask=mask, sample_weight=weight, **settings))


@pytest.mark.parametrize("cls", GHM)
def test_state(cls, device):
    """Moves in training mode only; survives a state_dict round trip, a deepcopy and a pickle."""
    x, target = make(cls, device)
    module = getattr(fastloss, cls)(momentum=0.9).to(device)
    module(x, target)
    first = {name: buffer.clone() for name, buffer in module.named_buffers()}
    assert set(first) == {"running_histogram", "num_updates"} and first["num_updates"].sum() > 0
    module.eval()
    expected = module(x, target)
    assert all(torch.equal(buffer, first[name]) for name, buffer in module.named_buffers())
    loaded = getattr(fastloss, cls)(momentum=0.9).to(device)
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    loaded.load_state_dict(torch.load(stored))
    for other in (loaded.eval(), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x, target), expected)
        other.train()(x, target)
    assert all(torch.equal(buffer, first[name]) for name, buffer in module.named_buffers())


@pytest.mark.parametrize("cls", GHM)
def test_the_histogram_stays_float64(cls, device):
    x, target = make(cls, device)
    module = getattr(fastloss, cls)(momentum=0.9)
    network = torch.nn.Sequential(torch.nn.Linear(5, 5), module).to(device)
    module(x, target)
    before = module.running_histogram.clone()
    for convert in (
        network.half,
        network.float,
        network.bfloat16,
        network.double,
        lambda: network.to(torch.float16),
        lambda: network.to(device, torch.bfloat16),
        lambda: network.to("cpu").to(device),
        lambda: network.type(torch.float32),
        lambda: network.type(torch.bfloat16),
    ):
        convert()
        assert module.running_histogram.dtype == torch.float64 and module.num_updates.dtype == torch.int64
        assert torch.equal(module.running_histogram, before)
        assert module.running_histogram.device.type == device
    assert network[0].weight.dtype == torch.bfloat16
    module(x, target)


@pytest.mark.parametrize("cls", GHM)
def test_no_state_without_momentum(cls):
    assert not getattr(fastloss, cls)().state_dict()


@pytest.mark.parametrize("cls", GHM)
def test_meta_device(cls):
    """Built on the meta device and materialised later, as large models are."""
    with torch.device("meta"):
        module = getattr(fastloss, cls)(momentum=0.9)
    module.to_empty(device="cpu")
    assert module.running_histogram.dtype == torch.float64 and module.running_histogram.device.type == "cpu"
