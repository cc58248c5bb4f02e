"""Does a single frame give the class away? Trains a 2D network on single frames of Synthetic-Something.

`python benchmarks/one_frame.py` prints its top-1 on evaluation clips, chance, and the most confident classes. The
generator is sound while this stays below 25 %. Every training clip is seen through a few of its frames.
"""

import argparse

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torchvision.models.resnet import BasicBlock, ResNet
from tqdm import tqdm

from stabn import synthetic


def frames_of(seeds: range, per_clip: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`per_clip` random frames of each clip, uint8 (n, 3, S, S), and their labels (n,)."""
    pictures, labels = [], []
    for seed in tqdm(seeds, unit="clip", disable=None):
        sample = synthetic.generate(seed, 16, size)
        for t in np.random.default_rng(seed).choice(16, per_clip, replace=False):
            pictures.append(sample.frames[t].transpose(2, 0, 1))
            labels.append(sample.label)
    return torch.from_numpy(np.stack(pictures)), torch.tensor(labels)


def normalised(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=5000, help="training clips")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--test-clips", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(0)

    classes = len(synthetic.CLASSES)
    first = 7 * synthetic.TRAINING_SEEDS
    x, y = frames_of(range(first, first + options.clips), 4, options.size)
    test_x, test_y = frames_of(range(options.test_clips), 1, options.size)
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes).to(memory_format=torch.channels_last)
    steps = options.epochs * (len(x) // 128)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(options.epochs):
        order = torch.randperm(len(x))
        total = 0.0
        for batch in tqdm(order.split(128)[: len(x) // 128], disable=None):
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(normalised(x[batch]).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"training loss {total / (len(x) // 128):.3f} (chance {np.log(classes):.3f})", flush=True)

    network.eval()
    with torch.inference_mode():
        guesses = torch.cat([network(normalised(part)).argmax(1) for part in test_x.split(256)])
    right = guesses == test_y
    print(
        f"top-1 from one frame: {100 * right.float().mean():.1f} % of {len(right)} clips, chance {100 / classes:.1f} %"
    )
    for k in torch.stack([right[test_y == k].float().mean() for k in range(classes)]).argsort(descending=True)[:5]:
        print(f"  {100 * right[test_y == k].float().mean():5.1f} %  {synthetic.CLASSES[k]}")


if __name__ == "__main__":
    main()
