"""Problems small enough to compute by hand: a two-branch tanh network, and a quadratic with one coordinate a chain."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from modalscape.engine.core.layout import Layout
from modalscape.engine.core.method import Method, Stack
from modalscape.engine.core.optimizer import Optimizer, Settings
from modalscape.engine.core.problem import Batch, Multimodal
from modalscape.engine.core.rng import Rng
from modalscape.engine.core.step import State, View, train_step

WIDTHS = {"image": 5, "text": 3}
CLASSES = 3


class Trunk(nn.Module):
    """A linear head on the joined features, and perhaps one for each modality."""

    def __init__(self, width: int, heads: bool) -> None:
        super().__init__()
        self.fused = nn.Linear(width * len(WIDTHS), CLASSES)
        self.heads = nn.ModuleDict({name: nn.Linear(width, CLASSES) for name in WIDTHS} if heads else {})

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = {"fused": self.fused(torch.cat([features[name] for name in WIDTHS], -1))}
        return logits | {name: head(features[name]) for name, head in self.heads.items()}


class Net(nn.Module):
    def __init__(self, heads: bool, hidden: int = 6, width: int = 4) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, width), nn.Tanh())
                for name, inputs in WIDTHS.items()
            }
        )
        self.trunk = Trunk(width, heads)

    def part_of(self, name: str) -> str:
        return name.split(".")[1] if name.startswith("encoders.") else "shared"


class CrossEntropy:
    score = "accuracy"

    def losses(self, logits, features, y):
        return {name: nn.functional.cross_entropy(value, y) for name, value in logits.items()}

    def outputs(self, logits, features):
        return logits

    def row_losses(self, outputs, y):
        return {name: nn.functional.cross_entropy(value, y, reduction="none") for name, value in outputs.items()}

    def scores(self, logits, features, y):
        return {"accuracy": (logits["fused"].argmax(-1) == y).to(logits["fused"].dtype).mean()}


def rows(count: int, seed: int, noise: float, dtype: torch.dtype) -> Batch:
    """Labels that a linear teacher gives from both modalities, a share of them drawn anew."""
    draw = torch.Generator().manual_seed(seed)
    teacher = torch.Generator().manual_seed(99)
    x = {name: torch.randn(count, width, generator=draw, dtype=torch.float64) for name, width in WIDTHS.items()}
    scores = sum(
        value @ torch.randn(value.shape[1], CLASSES, generator=teacher, dtype=torch.float64) for value in x.values()
    )
    wrong = torch.rand(count, generator=draw) < noise
    y = torch.where(wrong, torch.randint(CLASSES, (count,), generator=draw), scores.argmax(-1))
    return Batch({name: value.to(dtype) for name, value in x.items()}, y)


def problem(
    batch: int = 16, micro: int = 0, heads: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64, noise=0.2
) -> Multimodal:
    """A three-class problem of 96 training rows and about 100 parameters."""
    parts = {
        name: rows(count, i, noise, dtype)
        for i, (name, count) in enumerate({"train": 96, "val": 40, "test": 40}.items())
    }
    return Multimodal(
        "tiny",
        "Tiny",
        parts,
        lambda: Net(heads).to(dtype),
        CrossEntropy(),
        Rng(seed),
        batch=batch,
        micro=micro,
        probe_rows=32,
    )


class Quadratic:
    """½Σhᵢθᵢ² + slope(step)·θ: each coordinate is a chain of its own, so a mean over coordinates is an expectation."""

    name, title, modalities, micro = "quadratic", "Quadratic", ("left", "right"), 0

    def __init__(self, h: Tensor, start: Tensor, slope: Callable[[int], Tensor] | None = None, batch: int = 1) -> None:
        half = len(start) // 2
        self.h, self.start, self.slope, self.size = h, start, slope, batch
        self.layout = Layout({"left": (half,), "right": (len(start) - half,)}, {"left": "left", "right": "right"})

    def init(self) -> Tensor:
        return self.start.clone()

    def batch(self, step: int) -> Batch:
        slope = torch.zeros_like(self.start) if self.slope is None else self.slope(step)
        return Batch({"slope": slope.expand(self.size, -1)}, torch.zeros(self.size))

    def encode(self, theta: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {name: value[None] for name, value in self.layout.unpack(theta).items()}

    def objectives(self, theta: Tensor, features: dict[str, Tensor], batch: Batch) -> tuple[dict, dict]:
        x = torch.cat([features["left"], features["right"]], 1)[0]
        return {"loss": 0.5 * (self.h * x * x).sum() + batch.x["slope"][0] @ x}, {}

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        return sum(self.objectives(theta, self.encode(theta, batch), batch)[0].values())


def sgd(lr: float, momentum: float = 0.0, **others) -> Settings:
    return Settings(name="sgd", lr=lr, momentum=momentum, **others)


PLAIN = sgd(0.1)


def started(problem, methods, settings: Settings = PLAIN, steps: int = 1000) -> tuple[State, Optimizer, Stack, Rng]:
    """The state before the first step, every method with fresh state."""
    optimizer, rng = Optimizer(settings, steps), Rng(7)
    state = State(0, problem.init(), optimizer.init())
    view = View(0, state.theta, problem.batch(0), problem, rng, optimizer.rate(0))
    stack = Stack(methods)
    for method in stack.methods.values():
        method.state = method.init(view)
    return state, optimizer, stack, rng


def train(problem, methods: list[Method], steps: int, settings: Settings = PLAIN) -> tuple[State, list[View], Stack]:
    """The state after some steps, the views on the way, and the stack."""
    state, optimizer, stack, rng = started(problem, methods, settings)
    views = []
    for _ in range(steps):
        state, view = train_step(state, problem, optimizer, stack, rng)
        views.append(view)
    return state, views, stack
