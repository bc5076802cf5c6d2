"""A training in PyTorch that may be stopped at any time, in whatever way, and goes on with the same command.

    python examples/train_torch.py run            # stop it with Ctrl-C, kill -9 or a power cut, and run it again

Dropout, a shuffling loader, mixed precision, a schedule and averaged weights all go on where they were: the losses
that are printed, and the digest at the end, are those of a training that was never stopped.
"""

import argparse
import hashlib
import warnings
from pathlib import Path
from statistics import fmean

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchdata.stateful_dataloader import StatefulDataLoader

import pytreeckpt as ptc
import pytreeckpt_torch as ptt

N_ITEMS = 4096


def spirals() -> torch.utils.data.TensorDataset:
    """Two arms that wind around each other, and which of them a point is on."""
    random = torch.Generator().manual_seed(1)
    radius = torch.rand(N_ITEMS, generator=random)
    arm = torch.randint(2, (N_ITEMS,), generator=random)
    angle = 8 * radius + torch.pi * arm
    noise = 0.02 * torch.randn(N_ITEMS, 2, generator=random)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1) + noise
    return torch.utils.data.TensorDataset(points, arm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--save-every", type=int, default=25, metavar="STEPS")
    options = parser.parse_args()

    # torchdata 0.11 calls something of torch 2.13 that it should not any more.
    warnings.filterwarnings("ignore", "'set_vital' is deprecated", UserWarning)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(2, 128), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.1)),
        nn.Linear(128, 2),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = StatefulDataLoader(spirals(), batch_size=64, shuffle=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(loader))
    scaler = torch.amp.GradScaler("cpu")
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))

    objects = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": scaler,
        "ema": ema,
        "loader": loader,
    }
    epoch, losses = 0, []

    def tree():
        return ptt.capture(epoch=epoch, losses=losses, **objects)

    with ptc.CheckpointManager(options.run, save_every=options.save_every, metric="loss") as manager:
        if manager.latest is not None:
            epoch = ptt.resume(manager.path(manager.latest), losses=losses, **objects)["epoch"]
            print(f"resumed at step {len(losses)}, epoch {epoch}")

        with manager.guard(lambda: (len(losses), tree())):
            while epoch < options.epochs:
                for points, arm in loader:
                    optimizer.zero_grad()
                    with torch.autocast("cpu", torch.bfloat16):
                        loss = nn.functional.cross_entropy(model(points), arm)
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
                    scheduler.step()
                    ema.update_parameters(model)
                    losses.append(loss.item())
                    recent = fmean(losses[-25:])
                    if manager.checkpoint(len(losses), tree, metrics={"loss": recent}, epoch=epoch):
                        print(f"epoch {epoch}, step {len(losses)}: loss {recent:.4f}", flush=True)
                epoch += 1
        if manager.latest != len(losses):
            manager.save(len(losses), tree(), epoch=epoch)

    weights = b"".join(value.numpy().tobytes() for value in ema.state_dict().values())
    print(f"done: {len(losses)} steps, last loss {losses[-1]:.4f}, weights {hashlib.sha256(weights).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
