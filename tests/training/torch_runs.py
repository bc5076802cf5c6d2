"""Trainings with every optimizer and every scheduler of torch, to be stopped in one process and gone on with in another:
run by test_torch_resume.py.
"""

import hashlib
import itertools
import json
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import pytreeckpt_torch as ptt

# An epoch has 5.
STEPS = 13
N_TOKENS, WIDTH = 8, 4


class Decay:
    """For the schedulers that take a function: torch keeps the attributes of an object, and no plain functions."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, epoch):
        return self.rate ** (epoch % 5)


class Net(nn.Module):
    def __init__(self, *, sparse):
        super().__init__()
        self.embedding = nn.Embedding(N_TOKENS, WIDTH, sparse=sparse)
        self.hidden = nn.Linear(WIDTH, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(6, 1)

    def forward(self, tokens):
        return self.head(self.dropout(self.norm(self.hidden(self.embedding(tokens)).tanh())))


def _matrices(net):
    return [parameter for parameter in net.parameters() if parameter.ndim == 2]


def _vectors(net):
    return [parameter for parameter in net.parameters() if parameter.ndim != 2]


def _groups(net, rate):
    """Two groups of different options."""
    return [{"params": _matrices(net), "lr": rate}, {"params": _vectors(net), "lr": rate / 2}]


def _both(first, rest):
    return {"first": first, "rest": rest}


# The learning rate of a resumed training is another one until it gets that of the checkpoint.
OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda net, rate: torch.optim.SGD(net.parameters(), rate),
    "SGD, momentum": lambda net, rate: torch.optim.SGD(net.parameters(), rate, momentum=0.9, nesterov=True),
    "SGD, groups": lambda net, rate: torch.optim.SGD(_groups(net, rate), momentum=0.5, weight_decay=rate),
    "Adam": lambda net, rate: torch.optim.Adam(net.parameters(), rate),
    "Adam, amsgrad": lambda net, rate: torch.optim.Adam(net.parameters(), rate, amsgrad=True),
    "Adam, named": lambda net, rate: torch.optim.Adam(net.named_parameters(), rate),
    "AdamW": lambda net, rate: torch.optim.AdamW(net.parameters(), rate),
    "AdamW, tensor rate": lambda net, rate: torch.optim.AdamW(net.parameters(), torch.tensor(rate), foreach=False),
    "AdamW, groups": lambda net, rate: torch.optim.AdamW(_groups(net, rate), amsgrad=True),
    "NAdam": lambda net, rate: torch.optim.NAdam(net.parameters(), rate),
    "RAdam": lambda net, rate: torch.optim.RAdam(net.parameters(), rate),
    "Adamax": lambda net, rate: torch.optim.Adamax(net.parameters(), rate),
    "Adagrad": lambda net, rate: torch.optim.Adagrad(net.parameters(), rate, lr_decay=0.1),
    "Adadelta": lambda net, rate: torch.optim.Adadelta(net.parameters(), rate),
    "ASGD": lambda net, rate: torch.optim.ASGD(net.parameters(), rate, t0=3),
    "Rprop": lambda net, rate: torch.optim.Rprop(net.parameters(), rate),
    "RMSprop": lambda net, rate: torch.optim.RMSprop(net.parameters(), rate, momentum=0.9, centered=True),
    "Adafactor": lambda net, rate: torch.optim.Adafactor(net.parameters(), rate),
    "Muon": lambda net, rate: _both(torch.optim.Muon(_matrices(net), rate), torch.optim.AdamW(_vectors(net), rate / 2)),
    "LBFGS": lambda net, rate: torch.optim.LBFGS(net.parameters(), rate, max_iter=3, history_size=4),
    "SparseAdam": lambda net, rate: _both(
        torch.optim.SparseAdam(list(net.embedding.parameters()), rate),
        torch.optim.SGD([each for name, each in net.named_parameters() if "embedding" not in name], rate),
    ),
}

SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda optimizer, rate: lr_scheduler.StepLR(optimizer, 2, gamma=0.7),
    "MultiStepLR": lambda optimizer, rate: lr_scheduler.MultiStepLR(optimizer, [3, 8], gamma=0.5),
    "LambdaLR": lambda optimizer, rate: lr_scheduler.LambdaLR(optimizer, Decay(rate * 10)),
    "MultiplicativeLR": lambda optimizer, rate: lr_scheduler.MultiplicativeLR(optimizer, Decay(1 - rate)),
    "ConstantLR": lambda optimizer, rate: lr_scheduler.ConstantLR(optimizer, 0.3, total_iters=9),
    "LinearLR": lambda optimizer, rate: lr_scheduler.LinearLR(optimizer, total_iters=10),
    "PolynomialLR": lambda optimizer, rate: lr_scheduler.PolynomialLR(optimizer, 20, power=2.0),
    "ExponentialLR": lambda optimizer, rate: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "CosineAnnealingLR": lambda optimizer, rate: lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "CosineAnnealingWarmRestarts": lambda optimizer, rate: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3, 2),
    "CyclicLR": lambda optimizer, rate: lr_scheduler.CyclicLR(
        optimizer, rate / 5, rate, step_size_up=3, mode="exp_range", gamma=0.9, cycle_momentum=_has_momentum(optimizer)
    ),
    "OneCycleLR": lambda optimizer, rate: lr_scheduler.OneCycleLR(
        optimizer, rate * 2, total_steps=40, cycle_momentum=_has_momentum(optimizer)
    ),
    "ReduceLROnPlateau": lambda optimizer, rate: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.2),
    "SequentialLR": lambda optimizer, rate: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, total_iters=4), lr_scheduler.CosineAnnealingLR(optimizer, 10)],
        [4],
    ),
    "ChainedScheduler": lambda optimizer, rate: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LambdaLR(optimizer, Decay(rate * 10)), lr_scheduler.ExponentialLR(optimizer, 0.95)]
    ),
    "SWALR": lambda optimizer, rate: swa_utils.SWALR(optimizer, rate / 10, anneal_epochs=9),
}
USUAL_MOMENT = "step 7"
# Of one more training each: when it is saved, and how many processes load its data.
MOMENTS = [
    ("start", 0),
    ("step 1", 0),
    ("step 5", 0),  # The last of an epoch, whose loop has not ended.
    ("epoch 1", 0),
    ("step 12", 0),
    ("end", 0),
    ("step 7", 2),
]
ONE = ("AdamW", "OneCycleLR")
LEFT_OUT = ["optimizer", "scheduler", "scaler", "averaged", "ema", "loader", "noise", "picks", "rng"]
"""What that training is resumed without, one at a time, and then is not to end the same."""


def _has_momentum(optimizer):
    options = optimizer.defaults
    return bool(options.get("momentum")) or "betas" in options


def _several(value):
    return value if isinstance(value, dict) else {"": value}


def objects_of(optimizer_name, scheduler_name, *, rate, workers=0):
    """All objects of a training, in a state that depends on the seed of torch."""
    net = Net(sparse=optimizer_name == "SparseAdam")
    optimizer = OPTIMIZERS[optimizer_name](net, rate)
    first = next(iter(_several(optimizer).values()))
    tokens = torch.arange(20) % N_TOKENS
    targets = torch.sin(tokens.float())[:, None]
    return {
        "model": net,
        "optimizer": optimizer,
        "scheduler": SCHEDULERS[scheduler_name](first, rate),
        "scaler": torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3, enabled=optimizer_name != "LBFGS"),
        "averaged": swa_utils.AveragedModel(net, use_buffers=True),
        "ema": {name: value.detach().clone() for name, value in net.named_parameters()},
        "loader": StatefulDataLoader(
            TensorDataset(tokens, targets), batch_size=4, shuffle=bool(len(scheduler_name) % 2), num_workers=workers
        ),
        "noise": torch.Generator().manual_seed(random.getrandbits(20)),
        "picks": np.random.default_rng(random.getrandbits(20)),
    }


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _step(objects, batch):
    net, optimizer, scaler = objects["model"], objects["optimizer"], objects["scaler"]
    tokens, targets = batch
    noise = torch.randn(targets.shape, generator=objects["noise"]) * objects["picks"].random()
    targets = targets + noise * (random.random() + np.random.rand()) * 0.1

    def loss_of():
        for each in _several(optimizer).values():
            each.zero_grad()
        loss = nn.functional.mse_loss(net(tokens), targets)
        scaler.scale(loss).backward()
        return loss

    if isinstance(optimizer, torch.optim.LBFGS):
        loss = optimizer.step(loss_of)
    else:
        loss = loss_of()
        for each in _several(optimizer).values():
            scaler.step(each)
        scaler.update()
    scheduler = objects["scheduler"]
    scheduler.step(*([loss.detach()] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    objects["averaged"].update_parameters(net)
    with torch.no_grad():
        for name, value in net.named_parameters():
            objects["ema"][name].lerp_(value, 0.1)
    return loss.item()


def train(objects, losses, at=None):
    """Go on to the last step. `at(moment)` is called at each moment at which one may save."""
    at = at or (lambda moment: None)
    at("start")
    while len(losses) < STEPS:
        for batch in objects["loader"]:
            losses.append(_step(objects, batch))
            at(f"step {len(losses)}")
            if len(losses) == STEPS:
                break
        at(f"epoch {len(losses) // 5}")
    at("end")


def _digested(value, digest):
    if isinstance(value, torch.Tensor | np.ndarray):
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        digest.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    elif isinstance(value, dict):
        # torch puts the names of parameters last among the options of a group when it loads them.
        for key, item in sorted(value.items(), key=lambda each: repr(each[0])):
            digest.update(f"{key!r}: ".encode())
            _digested(item, digest)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} ".encode())
        for item in value:
            _digested(item, digest)
    else:
        digest.update(f"{value!r} ".encode())


def digest_of(tree):
    digest = hashlib.sha256()
    _digested(tree, digest)
    return digest.hexdigest()[:16]


def end_of(objects, losses):
    """All there is to a training, in short."""
    optimizers = _several(objects["optimizer"])
    return {
        "losses": [loss.hex() for loss in losses],
        "model": digest_of(objects["model"].state_dict()),
        "averaged": digest_of(objects["averaged"].state_dict()),
        "ema": digest_of(objects["ema"]),
        "optimizer": digest_of({name: each.state_dict() for name, each in optimizers.items()}),
        "rates": [float(group["lr"]).hex() for each in optimizers.values() for group in each.param_groups],
        "scheduler": digest_of(objects["scheduler"].state_dict()),
        "scaler": digest_of(objects["scaler"].state_dict()),
        "noise": digest_of(objects["noise"].get_state()),
        "picks": digest_of(objects["picks"].bit_generator.state),
        "torch": digest_of(torch.get_rng_state()),
        "numpy": digest_of(np.random.get_state()),
        "python": digest_of(random.getstate()),
    }


def title(optimizer_name, scheduler_name, moment=USUAL_MOMENT, workers=0):
    return f"{optimizer_name} with {scheduler_name}, stopped at {moment}, {workers} workers"


def begin(folder):
    """Train, and save on the way: how each training is to end."""
    ends = {}
    for case in CASES:
        ends[title(*case)] = _run(folder, *case)
        assert (folder / title(*case)).exists()
    ends["never saved"] = _run(folder, *ONE, "never")
    return ends


def _run(folder, optimizer_name, scheduler_name, moment=USUAL_MOMENT, workers=0):
    seed_everything(1)
    objects = objects_of(optimizer_name, scheduler_name, rate=0.05, workers=workers)
    losses: list[float] = []

    def at(now):
        if now == moment:
            name = title(optimizer_name, scheduler_name, moment, workers)
            ptt.save_training(folder / name, durability="atomic", losses=losses, name=name, **objects)

    train(objects, losses, at)
    return end_of(objects, losses)


def go_on(folder):
    """Resume each training with objects of another seed and rate, and go on."""
    ends = {title(*case): _resumed(folder, case) for case in CASES}
    for left_out in LEFT_OUT:
        ends[f"without {left_out}"] = _resumed(folder, ONE, left_out=left_out)
    return ends


def _resumed(folder, case, *, left_out=""):
    seed_everything(2)
    optimizer_name, scheduler_name, *rest = case
    objects = objects_of(optimizer_name, scheduler_name, rate=0.02, workers=rest[1] if rest else 0)
    losses: list[float] = []
    given = {name: value for name, value in objects.items() if name != left_out}
    resumed = ptt.resume(folder / title(*case), losses=losses, rng=left_out != "rng", **given)
    assert resumed["name"] == title(*case)
    train(objects, losses)
    return end_of(objects, losses)


CASES: list[Any] = [*itertools.product(OPTIMIZERS, SCHEDULERS), *((*ONE, *moment) for moment in MOMENTS)]

if __name__ == "__main__":
    torch.set_num_threads(1)
    # torchdata, of torch.
    warnings.filterwarnings("ignore", "'set_vital' is deprecated", UserWarning)
    what, folder = sys.argv[1:]
    sys.stdout.write(json.dumps({"begin": begin, "go_on": go_on}[what](Path(folder))))
