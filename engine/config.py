"""What a run is made of, as JSON, and the sentences that say what is wrong with it. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from modalscape.engine.core.knobs import checked, knob
from modalscape.engine.core.names import OBJECTIVES
from modalscape.engine.core.needs import met
from modalscape.engine.errors import InputError, nearest, shown
from modalscape.engine.store.files import brief, fits, text_of, value_of
from modalscape.engine.store.lineage import FORK

MOST_STEPS = 100_000_000
RETIRED = ("budget",)
"""Settings of older versions that mean nothing any more and are passed over."""
_DEVICE = re.compile(r"[a-z]{1,12}(:[0-9]{1,3})?")
DEFAULTS = 3
"""Number of the defaults that hold for what a configuration leaves out, written down with it."""
_FORMER: dict[int, dict[str, Any]] = {
    1: {"unimodal": "none"},
    2: {
        "bogc.evidence": "relative",
        "evidence.evidence": "relative",
        "gani.mode": "central",
        "isotropic_noise.mode": "central",
        "isotropic_noise.level": "all",
        "modalimmune.others": 0.0,
        "modalimmune.ratio": 0.1,
        "modalimmune.pull": "entries",
        "modalimmune.fade": "batch",
        "modalimmune.track": "quiet",
        "modalimmune.gate": "hessian",
        "modalimmune.meta_every": 100,
        "modalimmune.tunes": "collapse",
        "inforeg.plain": 2,
        "inforeg.smoothing": 1,
    },
}
"""Number of former defaults to the settings in which the next differed; files without a number are of the first."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run that belong to no method, probe, problem or optimiser."""

    batch: int = knob(64, 1, 1_000_000, "Rows in one training step; more than there are means all of them.", log=True)
    micro: int = knob(
        0, 0, 1_000_000, "Rows in one backward pass; 0 for the whole batch. Larger batches are accumulated."
    )
    objective: str = knob(
        "auto",
        help="What is minimised; auto fits the labels.",
        choices=OBJECTIVES,
    )
    unimodal: str = knob(
        "heads",
        help="A loss for each modality beside the fused one; of one modality, or of InfoNCE, there is none unless set.",
        choices=("none", "heads", "slices"),
    )
    fusion: str = knob("concat", help="How the modalities' features are joined.", choices=("concat", "sum", "gated"))
    encoder: str = knob(
        "auto",
        help="Encoder family; auto fits the shape of each input.",
        choices=("auto", "mlp", "cnn", "resnet18", "sequence", "tokens"),
    )
    width: int = knob(64, 2, 4096, "Features of each modality, D.", log=True)
    hidden: int = knob(128, 2, 8192, "Units of a hidden layer.", log=True)
    depth: int = knob(1, 0, 8, "Hidden layers of an encoder.")
    activation: str = knob("gelu", help="Nonlinearity of the encoders.", choices=("gelu", "tanh", "relu"))
    temperature: float = knob(0.07, 0.005, 10.0, "Temperature of InfoNCE.", log=True)
    normalise: str = knob(
        "loss",
        help="Where InfoNCE's features get length 1: in the loss, after what methods add, or in the encoders, before.",
        choices=("loss", "encoder"),
    )
    split: str = knob("split", help="Name of the array that splits a data file.")
    label_noise: float = knob(0.0, 0.0, 0.9, "Share of the training rows that carry a wrong label; other rows do not.")
    corrupt: str = knob(
        "",
        help="Noise on inputs of training and validation, such as audio=1.0, in the modality's standard deviations.",
    )
    modalities: str = knob("", help="Modalities that are trained on, with commas between; empty for all there are.")
    probe_rows: int = knob(256, 1, 100_000, "Training rows that every measurement uses.", log=True)
    evaluate: int = knob(
        0, 0, MOST_STEPS, "Steps between two evaluations on held-out rows; 0 for about forty in a run."
    )
    report: int = knob(20, 1, MOST_STEPS, "Steps between two reports of the methods.", log=True)
    checkpoint: int = knob(200, 1, MOST_STEPS, "Steps between two checkpoints.", log=True)
    measure: str = knob(
        "auto",
        help="live: observers measure beside the training, always the newest step. inline: everything due is measured "
        "at its step, between two steps. auto: live for runs started from the dashboard, else inline.",
        choices=("auto", "live", "inline"),
    )
    observers: int = knob(1, 0, 16, "Processes that measure beside the training, where measure is live.")
    pace: float = knob(0.0, 0.0, 1e6, "Steps a second, at most; 0 for as fast as it can. It changes no number.")
    threads: int = knob(1, 1, 256, "Threads of torch; the last bits of a run depend on it.")
    dtype: str = knob("float32", help="Number format of parameters and inputs.", choices=("float32", "float64"))


@dataclass(frozen=True)
class RunConfig:
    """One run: what is trained, how long, and every setting that differs from its default."""

    problem: str | None = None
    data: str | None = None
    methods: tuple[str, ...] = ()
    probes: dict[str, int] = field(default_factory=dict)
    """Probe to steps between two measurements; 0 for the probe's own choice."""
    steps: int = 1000
    seed: int = 0
    device: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    """Key, such as `optimizer.lr` or `gani.sigma`, to value."""
    fork: dict[str, Any] | None = None
    """Where a run comes from that goes on from a step of another, with the fields of `store.lineage.FORK`."""

    @property
    def data_seed(self) -> int:
        """The seed of the data and of the first theta: a fork has those of its parent, whatever its own seed is."""
        return self.fork["seed"] if self.fork else self.seed

    @property
    def horizon(self) -> int:
        """Steps over which the learning rate is scheduled; a fork has those of its parent unless told otherwise."""
        return self.fork["horizon"] if self.fork else self.steps

    @property
    def first_step(self) -> int:
        """The step at which the run itself begins to train."""
        return self.fork["step"] if self.fork else 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, from which `from_json` makes the same configuration."""
        values = asdict(self) | {"methods": list(self.methods), "defaults": DEFAULTS}
        return values if self.fork else {key: value for key, value in values.items() if key != "fork"}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """Return the configuration that `to_json` described; what it leaves out has the default of its time.

        Raises:
            InputError: a field is unknown or of the wrong type, or a newer version wrote it.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"A run's configuration must be a JSON object, not {type(values).__name__}.")
        values = dict(values)
        number = values.pop("defaults", DEFAULTS)
        if not _integer(number) or not 1 <= number <= DEFAULTS:
            raise InputError(
                f"In a run's configuration defaults must be a whole number from 1 to {DEFAULTS}, not {shown(number)}; "
                "use the version of Modalscape that wrote it."
            )
        known = cls.__dataclass_fields__
        for key, value in values.items():
            if key not in known:
                raise InputError(f"A run's configuration has no field {shown(key)}{nearest(str(key), known)}")
            shape, words = _FIELDS[key]
            if not fits(list(value) if isinstance(value, tuple) else value, shape):
                raise InputError(f"In a run's configuration {key} must be {words}, not {shown(value)}.")
        made = cls(**{**values, "methods": tuple(values.get("methods") or ())})
        return replace(made, settings=former_defaults(number) | made.settings)


def former_defaults(number: int) -> dict[str, Any]:
    """Return the settings in which the defaults of that number differ from those that hold now."""
    found: dict[str, Any] = {}
    for former in range(DEFAULTS - 1, number - 1, -1):  # what is older has the last word
        found |= _FORMER.get(former, {})
    return found


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _path(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _absent(value: Any) -> bool:
    return value is None


_FIELDS: dict[str, tuple[Any, str]] = {
    "problem": ((_line, _absent), "a name or null"),
    "data": ((_path, _absent), "the path of a file or null"),
    "methods": (([_line], _absent), "a list of names"),
    "probes": ({str: (_integer, float, str)}, "an object of names with their intervals in steps"),
    "steps": (_integer, "a whole number"),
    "seed": (_integer, "a whole number"),
    "device": (_line, "a name such as cpu"),
    "settings": ({str: (str, bool, _integer, float)}, "an object of keys with a number, text, or true or false each"),
    "fork": ((FORK, _absent), "an object with of, step, theta, seed, event and horizon, as `fork` writes it"),
}
"""Field of a configuration to its shape and that in words."""


def read(home: Path | str) -> RunConfig:
    """Return the configuration of the run in `home`; one of an older version keeps its meaning.

    Raises:
        InputError: the folder holds no readable `config.json`.
    """
    path = Path(home) / "config.json"
    try:
        values = value_of(text_of(path))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{home} holds no run: there is no config.json in it; give the folder of a run.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({brief(error)}); restore it or start a new run.") from None
    try:
        return RunConfig.from_json({"defaults": 1} | values if isinstance(values, dict) else values)
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from None


def settings_known(config: RunConfig, catalog: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return setting key to knob, for every key that the catalogue offers to this run."""
    known = {k["name"]: k for k in catalog["settings"]}
    for kind in ("methods", "probes", "problems"):
        for entry in catalog[kind]:
            known |= {f"{entry['name']}.{k['name']}": k for k in entry["knobs"]}
    return known


def validated(config: RunConfig, catalog: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with every value checked and converted.

    Raises:
        InputError: an unknown method, probe, problem or key (names the nearest known ones), a value out of its range,
            both or neither of a problem and a data file, or a method that cannot act in such a run.
    """
    if bool(config.problem) == bool(config.data):
        have = "both" if config.problem else "neither"
        raise InputError(f"A run needs either a problem or a data file, and this has {have}; give one of the two.")
    if config.problem:
        _known(config.problem, "problem", catalog["problems"])
    for name in config.methods:
        _known(name, "method", catalog["methods"])
    if len(set(config.methods)) < len(config.methods):
        raise InputError(f"A method is listed twice in {', '.join(config.methods)}; list each once.")
    for name in config.probes:
        _known(name, "probe", catalog["probes"])
    whole = {"type": "int", "low": 0, "high": MOST_STEPS}
    probes = {name: checked(whole, every, f"the interval of probe {name}") for name, every in config.probes.items()}
    if not _DEVICE.fullmatch(config.device):
        raise InputError(f"There is no device {shown(config.device)}; use --device cpu, cuda:0 or auto.")
    known = settings_known(config, catalog)
    settings = {}
    for key, value in config.settings.items():
        if key in RETIRED:
            continue
        if key not in known:
            raise InputError(f"There is no setting {shown(key)}{nearest(key, known, 'see `catalog`')}")
        settings[key] = checked(known[key], value, key)
    made = RunConfig(
        config.problem,
        str(config.data) if config.data else None,
        tuple(sorted(config.methods)),
        probes,
        checked(whole | {"low": 1}, config.steps, "steps"),
        checked({"type": "int", "low": 0, "high": 2**63 - 1}, config.seed, "seed"),
        config.device,
        settings,
        config.fork,
    )
    values = resolved(made, catalog)
    chosen = [entry for entry in catalog["methods"] if entry["name"] in made.methods]
    met(chosen, values, values["modalities"].replace(",", " ").split())
    return made


def resolved(config: RunConfig, catalog: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting key with its value: what the run says, else what the problem prefers, else the default.

    One modality, or an objective without logits, has no losses of modalities beside the fused one unless the run says.
    """
    values = {key: k["default"] for key, k in settings_known(config, catalog).items()}
    for entry in catalog["problems"]:
        if entry["name"] == config.problem:
            values |= entry["defaults"]
    values |= config.settings
    if values["objective"] == "info_nce" or len(str(values["modalities"]).replace(",", " ").split()) == 1:
        values |= {"unimodal": config.settings.get("unimodal", "none")}
    return values


def _known(name: str, kind: str, entries: list[dict[str, Any]]) -> None:
    names = [entry["name"] for entry in entries]
    if name not in names:
        raise InputError(f"There is no {kind} {shown(name)}{nearest(name, names)}")
