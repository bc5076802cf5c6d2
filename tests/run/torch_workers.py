"""A training in torch whose loader has workers, to be ended by a signal to all of its processes: run by
test_interrupts_in_processes.py.

    python torch_workers.py ROOT
"""

import signal
import sys

import torch
from torch import nn

from pytreeckpt.run import CheckpointManager


class Items(torch.utils.data.Dataset):
    """Numbers, each made in a worker."""

    def __len__(self):
        return 1_000_000

    def __getitem__(self, index):
        return torch.tensor([float(index)])


def main():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-12)
    step = 0

    def tree():
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    with (
        CheckpointManager(sys.argv[1], save_every=1_000_000) as manager,
        manager.guard(lambda: (step, tree()), signals=signals),
    ):
        for items in torch.utils.data.DataLoader(Items(), batch_size=8, num_workers=2):
            optimizer.zero_grad()
            model(items).mean().backward()
            optimizer.step()
            step += 1
            sys.stdout.write(f"{step}\n")
            sys.stdout.flush()
            manager.checkpoint(step, tree)


if __name__ == "__main__":
    main()
