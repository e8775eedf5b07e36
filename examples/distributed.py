"""Distributed data parallel training whose gradient is that of one process with the whole batch.

    torchrun --nproc-per-node=2 examples/distributed.py

DDP averages the ranks' gradients. Where ranks hold different numbers of targets that count, the average of their means
is not the mean of the whole; with a process group the losses have one mean. The script compares the gradient with one
process's.
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastloss

CLASSES, IGNORED = 11, -100


def make_batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same on every rank. Later sentences have fewer targets that count."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 32, 16, generator=generator)
    target = torch.randint(CLASSES, (size, 32), generator=generator)
    length = torch.linspace(32, 4, size).long()
    target[torch.arange(32) >= length[:, None]] = IGNORED
    return x, target


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="sentences of all ranks together")
    options = parser.parse_args()

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    if torch.cuda.is_available():
        torch.cuda.set_device(device)

    torch.manual_seed(0)
    alone = nn.Linear(16, CLASSES).to(device)
    model = DistributedDataParallel(nn.Linear(16, CLASSES).to(device))
    model.module.load_state_dict(alone.state_dict())

    x, target = (tensor.to(device) for tensor in make_batch(options.batch))
    x_here, target_here = x.chunk(ranks)[rank], target.chunk(ranks)[rank]
    logits = model(x_here).flatten(0, 1)
    loss = fastloss.focal_loss(logits, target_here.flatten(), process_group=dist.group.WORLD)
    loss.backward()

    fastloss.focal_loss(alone(x).flatten(0, 1), target.flatten()).backward()
    torch.testing.assert_close(model.module.weight.grad, alone.weight.grad)
    difference = (model.module.weight.grad - alone.weight.grad).abs().max()
    if rank == 0:
        print(f"{ranks} ranks: the gradient is one process's; largest difference {difference:.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
