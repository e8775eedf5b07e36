"""process_group: DistributedDataParallel over k ranks gives the gradient of one process on the concatenated batch, with
any number of valid decisions on each rank, and the same running statistics everywhere. gloo, on this machine."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastloss

CLASSES, WIDTH, STEPS = 5, 4, 3


def losses(process_group):
    """name: (module, whether it is a linear layer's too)"""
    mean = {"process_group": process_group}
    weight = torch.arange(1.0, CLASSES + 1)
    ghm = {"bins": 4, "momentum": 0.75, **mean}
    return {
        "cross_entropy": fastloss.CrossEntropyLoss(weight, label_smoothing=0.1, **mean),
        "cross_entropy sum": fastloss.CrossEntropyLoss(reduction="sum", **mean),
        "focal": fastloss.FocalLoss(weight, softcap=10.0, **mean),
        "poly": fastloss.PolyLoss(**mean),
        "probabilities": fastloss.CrossEntropyLoss(weight, **mean),
        "ghmc": fastloss.GHMCLoss(**ghm),
        "ghmc sum": fastloss.GHMCLoss(reduction="sum", **ghm),
        "sigmoid_focal": fastloss.SigmoidFocalLoss(reduction="mean", **mean),
        "sigmoid_asymmetric": fastloss.AsymmetricLoss(**mean),
        "sigmoid_ghmc": fastloss.SigmoidGHMCLoss(**ghm),
        "linear_cross_entropy": fastloss.LinearCrossEntropyLoss(WIDTH, CLASSES, weight=weight, **mean),
        "linear_focal": fastloss.LinearFocalLoss(WIDTH, CLASSES, **mean),
        "linear_ghmc": fastloss.LinearGHMCLoss(WIDTH, CLASSES, **ghm),
    }


class Model(nn.Module):
    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(0)
        self.loss = loss
        if hasattr(loss, "linear"):
            nn.init.normal_(loss.linear.weight)
        else:
            self.linear = nn.Linear(WIDTH, CLASSES)

    def forward(self, x, arguments):
        return self.loss(x if hasattr(self.loss, "linear") else self.linear(x), *arguments)


def batches(name, ranks, step):
    """Of each rank: inputs and what follows them, of different sizes; the last rank's targets are all ignored."""
    torch.manual_seed(step)
    for rank in range(ranks):
        n = 5 + 3 * rank
        x = 2 * torch.randn(n, WIDTH)
        if name.startswith("sigmoid"):
            target = torch.randint(2, (n, CLASSES)).float()
            mask = torch.full((n, CLASSES), rank < ranks - 1)
            yield x, (target, mask) if "ghmc" in name else (target,)
        elif name == "probabilities":
            yield x, (torch.rand(n, CLASSES).softmax(1), torch.rand(n))
        else:
            target = torch.randint(CLASSES, (n,))
            target[::3] = -100
            if rank == ranks - 1 and step > 0:
                target[:] = -100
            weighs = "ghmc" not in name
            yield x, (target, torch.rand(n)) if weighs else (target,)


def train(name, model, of_step):
    """The gradients of some steps of plain descent, and the running statistics after them."""
    found = []
    for step in range(STEPS):
        x, arguments = of_step(step)
        model.zero_grad()
        model(x, arguments).backward()
        found += [p.grad.clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    return found + [buffer.clone() for key, buffer in model.named_buffers() if not key.endswith("weight")]


def concatenated(name, ranks, step):
    xs, arguments = zip(*batches(name, ranks, step), strict=True)
    return torch.cat(xs), tuple(map(torch.cat, zip(*arguments, strict=True)))


def work(rank, ranks, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    try:
        found = {}
        for name, loss in losses(dist.group.WORLD).items():
            model = DistributedDataParallel(Model(loss), broadcast_buffers=False)

            def of_step(step, name=name):
                return list(batches(name, ranks, step))[rank]

            found[name] = train(name, model, of_step)
        x = torch.randn(6 + rank, CLASSES, generator=torch.Generator().manual_seed(rank))
        counts = fastloss.gradient_norm_histogram(x, torch.arange(6 + rank) % CLASSES, process_group=dist.group.WORLD)
        found["histogram"] = [counts]
        with pytest.raises(ValueError, match="denominator and process_group are both given"):
            fastloss.cross_entropy(
                x, torch.zeros(len(x), dtype=torch.int64), denominator=3, process_group=dist.group.WORLD
            )
        torch.save(found, f"{folder}/{rank}")
        dist.barrier()  # nobody leaves while another still waits for an answer
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
def test_as_one_process(ranks, tmp_path):
    mp.spawn(work, (ranks, str(tmp_path)), ranks)
    of_rank = [torch.load(tmp_path / str(rank)) for rank in range(ranks)]
    for name, loss in losses(None).items():

        def of_step(step, name=name):
            return concatenated(name, ranks, step)

        want = train(name, Model(loss), of_step)
        for got in of_rank:
            for g, w in zip(got[name], want, strict=True):
                torch.testing.assert_close(g, w, rtol=2e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
            for g, first in zip(got[name], of_rank[0][name], strict=True):
                assert torch.equal(g, first), name  # on every rank the same
    total = sum(
        fastloss.gradient_norm_histogram(
            torch.randn(6 + rank, CLASSES, generator=torch.Generator().manual_seed(rank)),
            torch.arange(6 + rank) % CLASSES,
        )
        for rank in range(ranks)
    )
    assert all(torch.equal(got["histogram"][0], total) for got in of_rank)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_nccl(tmp_path):
    mp.spawn(work_on_gpu, (2, str(tmp_path)), 2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    for g, w in zip(first, second, strict=True):
        torch.testing.assert_close(g, w)


def work_on_gpu(rank, ranks, folder):
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    try:
        found = []
        for name, loss in losses(dist.group.WORLD).items():
            model = DistributedDataParallel(Model(loss).to(device), device_ids=[rank], broadcast_buffers=False)

            def of_step(step, name=name):
                x, arguments = list(batches(name, ranks, step))[rank]
                return x.to(device), tuple(a.to(device) for a in arguments)

            found += [t.cpu() for t in train(name, model, of_step)]
        torch.save(found, f"{folder}/{rank}")
        dist.barrier()  # nobody leaves while another still waits for an answer
    finally:
        dist.destroy_process_group()


def test_what_is_no_group_is_refused():
    x, target = torch.zeros(2, 3), torch.tensor([0, 1])
    for function in (fastloss.cross_entropy, fastloss.ghmc_loss, fastloss.gradient_norm_histogram):
        with pytest.raises(ValueError, match="process_group is of type str, but should be"):
            function(x, target, process_group="world")


def test_compiled_whole_is_refused():
    """torch.compile breaks the graph there, or says why it cannot."""
    torch.compiler.reset()
    x, target = torch.zeros(2, 3), torch.tensor([0, 1])

    def function(x):
        return fastloss.cross_entropy(x, target, process_group="world")

    with pytest.raises(torch._dynamo.exc.Unsupported, match="process_group is given under"):
        torch.compile(function, fullgraph=True)(x)
    with pytest.raises(ValueError, match="process_group is of type str"):
        torch.compile(function)(x)
