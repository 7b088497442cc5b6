"""Time the three networks on this machine's GPU, or on its CPU, and check that bf16 predicts what fp32 predicts.

Figures are images a second. Needs torch and numpy alone, no Ray and no data on a disk, so it runs on a bare machine
from the repository's root: `PYTHONPATH=. python benchmarks/gpu.py`. Training steps are `loop.train_epoch`, upload and
augmentation included; recognizing is what `Recognizer` does once pixels are decoded. Exits with status 1 if bf16 and
fp32 disagree.
"""

import argparse
import dataclasses
import itertools
import platform
import shlex
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captcha_ray.images.spec import ImageSpec
from captcha_ray.models.allocator import keep_freed_memory
from captcha_ray.models.device import Arithmetic, has_fast_bf16
from captcha_ray.models.networks import Network, build_model
from captcha_ray.models.spec import ModelSpec
from captcha_ray.recipes.catalog import isfahan, text, wmail
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.training import loop
from captcha_ray.training.augment import Augment, paper_and_ink
from captcha_ray.training.loop import Batch
from captcha_ray.training.optim import build_optimizer

CHARSET = "0123456789abcdefghijklmnopqrstuvwxyz"
TRAIN_BATCHES = (32, 256)
READ_BATCH = 256
CHECK_STEPS = 40
"""Steps that teach a network CHECK_IMAGES images before bf16 is compared with fp32 on them: untrained it answers 1/36
to everything."""
CHECK_IMAGES = 16
TOLERANCE = 0.05
"""Largest difference of a probability between bf16 and fp32. A bf16 number is rounded by up to 2^-9 of itself. Over 8
layers of weights and activations, and logits of about 10, that adds up to at most 8 x 10 x 2^-9 = 0.16 in a difference
of two logits, and a probability moves by at most a quarter of that: 0.04."""


def configs() -> list[TrainConfig]:
    """Return the recipes whose networks are timed, the default one first, for images of a known size."""
    default = dataclasses.replace(text(), height=50, width=200, max_length=5, learning_rate=3e-3)
    return [default, wmail(), isfahan()]


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table. num_images: how many were timed."""

    network: str
    task: str
    precision: str
    batch_size: int
    images_per_second: float
    num_images: int


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Says how near two sets of probabilities, float (N, S, K), are. confidence: mean of the largest per slot."""

    max_difference: float
    same_characters: float
    confidence: float

    @classmethod
    def of(cls, one: Tensor, other: Tensor) -> "Agreement":
        """The largest difference of a probability and the share of positions with the same likeliest character."""
        difference = float((one - other).abs().max())
        same = float((one.argmax(2) == other.argmax(2)).double().mean())
        return cls(difference, same, float(one.amax(2).mean()))

    @property
    def ok(self) -> bool:
        """Return whether no probability differs by more than TOLERANCE; nan does."""
        return self.max_difference <= TOLERANCE


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--seconds-per-case",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="time to measure each network, kind of work, precision and batch size for, seconds, after warming up",
    )
    seconds = parser.parse_args(arguments).seconds_per_case
    if not seconds > 0:
        parser.error(f"--seconds-per-case is {seconds}; it must be above 0 seconds")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    print(f"command   python {shlex.join(sys.argv)}")
    print(f"commit    {commit() or 'unknown'}")
    print(f"device    {device_name(device)}")
    print(f"torch     {torch.__version__}")
    print("n         images timed, in whole batches")
    print(f"\n{'network':<16}{'work':<8}{'precision':<11}{'batch':>6}{'images/s':>12}{'n':>10}")
    disagreements = []
    for config in configs():
        for line in measure(config, device, seconds):
            print(
                f"{line.network:<16}{line.task:<8}{line.precision:<11}{line.batch_size:>6}"
                f"{line.images_per_second:>12,.0f}{line.num_images:>10,}",
                flush=True,
            )
    print(
        f"\n{CHECK_IMAGES} images after {CHECK_STEPS} training steps, against fp32 on the CPU, tolerance {TOLERANCE}:"
    )
    for config in configs():
        for name, agreement in compare(config, device).items():
            print(
                f"{config.network:<16}{name:<11}probabilities differ by at most {agreement.max_difference:.4f}, "
                f"{agreement.same_characters:.2%} of characters are the same, confidence {agreement.confidence:.2f}"
            )
            if not agreement.ok:
                disagreements.append(f"{config.network} in {name} by {agreement.max_difference:.4f}")
    if disagreements:
        print(f"probabilities differ from fp32 by more than {TOLERANCE}: {', '.join(disagreements)}", file=sys.stderr)
    return 1 if disagreements else 0


def measure(config: TrainConfig, device: torch.device, seconds: float) -> list[Line]:
    """Times training and reading of one network in every precision that the device is fast in."""
    lines = []
    for bf16 in (False, True) if has_fast_bf16(device) else (False,):
        arithmetic = Arithmetic(device, bf16)
        name = precision_name(arithmetic)
        for batch_size in TRAIN_BATCHES:
            model = new_model(config, device)
            train = trainer(config, model, arithmetic, Augment.of(config))
            batch = glyphs(config, batch_size, seed=0)
            line = timed(lambda n, batch=batch, train=train: train(batch, n), batch_size, device, seconds)  # type: ignore[misc]
            lines.append(Line(config.network, "train", name, batch_size, *line))
        images = glyphs(config, READ_BATCH, seed=0).images
        model = new_model(config, device).eval()

        def read(steps: int, model: Network = model, a: Arithmetic = arithmetic, images: Tensor = images) -> None:
            for _ in range(steps):
                probabilities(model, images, a)

        lines.append(Line(config.network, "read", name, READ_BATCH, *timed(read, READ_BATCH, device, seconds)))
    return lines


def timed(task: Callable[[int], None], batch_size: int, device: torch.device, seconds: float) -> tuple[float, int]:
    """(images a second, images timed) of `work`, which is told how many batches to do."""
    task(1)  # kernels are chosen and memory is allocated once
    steps = 1
    while (elapsed := stopwatch(task, steps, device)) < seconds:
        steps = max(2 * steps, round(1.1 * steps * seconds / elapsed)) if elapsed > seconds / 10 else 10 * steps
    return steps * batch_size / elapsed, steps * batch_size


def stopwatch(task: Callable[[int], None], steps: int, device: torch.device) -> float:
    """Seconds until the device has done `steps` batches of the work."""
    synchronize(device)
    started = time.perf_counter()
    task(steps)
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Waits until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(config: TrainConfig, device: torch.device) -> dict[str, Agreement]:
    """Teaches the network a few images on the device, then reads them there in each precision and on the CPU in fp32.

    On a CPU bf16 is compared even where it is emulated.
    """
    config = dataclasses.replace(config, dropout=0.0)
    model = new_model(config, device)
    batch = glyphs(config, CHECK_IMAGES, seed=0)
    trainer(config, model, Arithmetic(device, bf16=False), Augment())(batch, CHECK_STEPS)
    images = batch.images
    cpu = torch.device("cpu")
    reference = new_model(config, cpu)
    reference.load_state_dict(model.state_dict())
    expected = probabilities(reference.eval(), images, Arithmetic(cpu, bf16=False))
    result = {}
    for bf16 in (True,) if device.type == "cpu" else (False, True):
        arithmetic = Arithmetic(device, bf16)
        result[precision_name(arithmetic)] = Agreement.of(probabilities(model.eval(), images, arithmetic), expected)
    return result


def trainer(
    config: TrainConfig, model: Network, arithmetic: Arithmetic, augment: Augment
) -> Callable[[Batch, int], None]:
    """A function that makes n optimizer steps on a batch as the recipe says, but for Adam at 3e-3."""
    config = dataclasses.replace(config, optimizer="adam", learning_rate=3e-3)
    optimizer = build_optimizer(config, model)

    def train(batch: Batch, steps: int) -> None:
        batches = itertools.repeat(batch, steps)
        loop.train_epoch(
            model, optimizer, batches, arithmetic, augment=augment, seed=0, learning_rate=lambda _: config.learning_rate
        )

    return train


def probabilities(model: Network, images: Tensor, arithmetic: Arithmetic) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, S, K) on the CPU."""
    with torch.inference_mode(), arithmetic.autocast():
        logits: Tensor = model(arithmetic.to_input(images))
        return model.log_probabilities(logits).exp().cpu()


def new_model(config: TrainConfig, device: torch.device) -> Network:
    """The recipe's network, freshly initialized, the same every time."""
    image = ImageSpec(height=config.height, width=config.width)
    torch.manual_seed(0)
    model = build_model(
        ModelSpec(
            network=config.network,
            image=image,
            charset=CHARSET,
            max_length=config.max_length,
            filters=config.filters,
            head="deep" if config.head == "auto" else config.head,
            dropout=config.dropout,
        )
    )
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def glyphs(config: TrainConfig, num_images: int, seed: int) -> Batch:
    """Images that can be learned: each character is a coarse pattern of its own, side by side, in noise."""
    rows, columns, side = 5, 3, config.width // config.max_length
    patterns = np.random.default_rng(0).integers(0, 2, (len(CHARSET), rows, columns), np.uint8)
    rng = np.random.default_rng((1, seed))
    classes = rng.integers(0, len(CHARSET), (num_images, config.max_length))
    tall = np.repeat(patterns, config.height // rows, axis=1)
    drawn: npt.NDArray[np.uint8] = np.repeat(tall, side // columns, axis=2)[classes]  # (N, S, height, about side)
    pixels = np.zeros((num_images, config.height, config.max_length, side), np.uint8)
    pixels[:, : drawn.shape[2], :, : drawn.shape[3]] = drawn.transpose(0, 2, 1, 3) * 160
    pixels += rng.integers(0, 90, pixels.shape, np.uint8)
    images = torch.from_numpy(pixels.reshape(num_images, config.height, config.width, 1))
    return Batch(images, torch.from_numpy(classes), num_images, paper_and_ink(images.permute(0, 3, 1, 2)))


def precision_name(arithmetic: Arithmetic) -> str:
    """fp32, tf32 (fp32 whose products a GPU rounds to 10 bits, torch's default for convolutions) or bf16."""
    if arithmetic.bf16:
        return "bf16"
    return "tf32" if arithmetic.device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"


def device_name(device: torch.device) -> str:
    """Return what the device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"


def commit() -> str | None:
    """The commit measured; None outside a checkout, or where the packages that `runs` writes with are absent."""
    try:
        from captcha_ray.runs import environment  # noqa: PLC0415 -- a bare machine has neither obstore nor tensorboardX
    except ImportError:
        return None
    return environment.commit()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
