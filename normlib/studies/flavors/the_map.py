"""Every normalizer of the library on one map: what it acts on, over what, what it removes, what it stores."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.axes import Axes

from normlib.lab import Drawing, Study, judge_identity
from normlib.probes.invariance import TRANSFORMATIONS
from normlib.studies.common.looks import GRAY, GRID, INK, norm_color, subplots
from normlib.studies.flavors.placing import AXES, SPECS, place
from normlib.studies.flavors.wu2018_axes import TOKENS

NAMES = {
    "none": "no norm", "batch": "batch", "sync": "synchronized batch", "renorm": "batch renorm", "noisy": "noisy batch",
    "lp": "L1 batch", "variance": "variance-only batch", "decorrelated:size=2": "decorrelated batch", "switch": "switchable",
    "evonorm_b0": "EvoNorm-B0", "layer": "layer", TOKENS: "layer per position", "rms": "RMS", "group:groups=3": "group",
    "instance": "instance", "frn": "filter response", "proxy": "proxy", "evonorm_s0:groups=3": "EvoNorm-S0",
    "dyt": "dynamic tanh", "derf": "dynamic erf", "weight": "weight norm", "centered_weight": "centered weight norm",
    "standardized_weight": "weight standardization", "scaled_weight": "scaled weight stand.", "spectral": "spectral norm",
}  # fmt: skip
SECTIONS = ("ties samples together", "stays within a sample", "has no statistics", "acts on weights")
CHANGES = ("W scaled", "W shifted", "a row scaled", "data scaled", "data shifted", "a case scaled")
COLUMNS = {
    "over which axes": dict(zip(AXES, AXES, strict=True)),
    "removes": {"shift": "shift", "scale": "scale"},
    "does not notice": dict(zip(TRANSFORMATIONS, CHANGES, strict=True)),
    "in evaluation": {"stores": "stored", "differs": "differs"},
    "": {"learned": "learned", "vectors": "batch from"},
}
GAP = 0.45  # between groups of columns

the_map = Study(
    "notes.map",
    item="every normalizer",
    title="Every normalizer on one map, placed by probing",
    kind="exact",
    vary={"norm": SPECS},
    quick={},
    laptop={},
    full=None,
)


@the_map.trial
def _(c, seed):
    return place(c.norm, 100 * seed)


def ties(run) -> bool:
    """Tell whether a normalizer ties samples together, in its outputs or in its gradients."""
    return bool(run.samples > 0)


def section_of(run) -> str:
    """Return the part of the map that a normalizer belongs to."""
    if run.acts_on == "weights":
        return SECTIONS[3]
    if ties(run):
        return SECTIONS[0]
    return SECTIONS[1] if any(run[axis] for axis in AXES) else SECTIONS[2]


def called(specs: Iterable[str]) -> str:
    """List normalizers by name."""
    return ", ".join(NAMES.get(spec, spec) for spec in specs) or "none"


@the_map.draw
def _(table):
    runs = table[table.seed == table.seed.min()]
    runs = runs.assign(section=[section_of(run) for _, run in runs.iterrows()])
    order = {spec: at for at, spec in enumerate(NAMES)}
    places, x = {}, 0.0
    for columns in COLUMNS.values():
        for column in columns:
            places[column], x = x, x + 1
        x += GAP
    figure, axes = subplots(height=7.1)
    labels, y = {}, 0.0
    for section in SECTIONS:
        axes.text(-0.5, y, section, fontsize=9, color=INK, weight="bold", ha="left", va="center")
        for _, run in sorted(runs[runs.section == section].iterrows(), key=lambda item: order.get(item[1].norm, 99)):
            y += 1
            labels[y] = NAMES.get(run.norm, run.norm)
            _row(axes, run, places, y)
        y += 1.35
    for group, columns in COLUMNS.items():
        for column, name in columns.items():
            axes.text(places[column] - 0.2, -0.9, name, rotation=60, fontsize=8.5, ha="left", va="bottom", color=INK)
        ends = [places[column] for column in columns]
        if group:
            axes.plot([min(ends) - 0.3, max(ends) + 0.3], [y - 0.6] * 2, color=INK, linewidth=0.8)
            axes.text((min(ends) + max(ends)) / 2, y - 0.4, group, fontsize=8.5, ha="center", va="top", color=INK)
    axes.set_yticks(list(labels), list(labels.values()), fontsize=9)
    axes.set(xlim=(-0.6, x + 0.5), ylim=(y + 0.6, -4.6), xticks=[])
    axes.tick_params(length=0)
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
    activations = runs[runs.acts_on == "activations"]
    value, gradient = activations[activations.samples == 2], activations[activations.samples == 1]
    return Drawing(
        figure,
        caption=f"Each of {len(runs)} normalizers probed on maps of three samples. From the left: axes over which an output "
        "answers to other entries (a ring: in the gradient alone); whether a shift or a scale common to all it acts on is ignored; "
        "which of six changes of weights and data the normalized layer does not notice; whether numbers stored in training move, "
        "and evaluation computes something else; numbers learned per channel (after a plus: in all); the smallest batch of vectors "
        f"it accepts. {len(value)} tie samples together in their outputs, {len(gradient)} ({called(gradient.norm)}) in the "
        "gradient alone.",
        alt="A table of normalizers in four sections: those that tie samples together, stay within a sample, have no statistics, "
        "or act on weights. Marks tell axes, what is removed, six invariances, storage; numbers count parameters and batch.",
    )


def _row(axes: Axes, run, places: dict[str, float], y: float) -> None:
    """Draw the marks and numbers of one normalizer."""
    color = norm_color("layer" if run.norm == TOKENS else run.norm)
    color = GRAY if color == INK else color
    for column, x in places.items():
        if column in AXES and run.acts_on == "weights":
            continue
        if column in COLUMNS[""]:
            text = "–" if run[column] == 0 and column == "vectors" else str(run[column])
            axes.text(x, y, text, fontsize=8.5, ha="center", va="center", color=INK)
        elif column in AXES and run[column] == 1:
            axes.plot(x, y, "o", markersize=7, markerfacecolor="none", color=color)
        elif run[column]:
            axes.plot(x, y, "s", markersize=8.5, markeredgewidth=0, color=color)
        else:
            axes.plot(x, y, "s", markersize=3, markeredgewidth=0, color=GRID)
    if run.acts_on == "weights":
        text = "a row of W" if run.over == "row" else "all of W"
        axes.text(places["channels"], y, text, fontsize=8.5, ha="center", va="center", color=INK)


# ---------------------------------------------------------------------------------------------------------------------------
# Claims
# ---------------------------------------------------------------------------------------------------------------------------


def _exceptions(table, of: str, rule) -> list[str]:
    """Return the normalizers, of activations or any, for which a rule fails at some seed."""
    runs = table if of == "any" else table[table.acts_on == of]
    return list(dict.fromkeys(run.norm for _, run in runs.iterrows() if not rule(run)))


def _none_but(exceptions: list[str], note: str):
    said = f"exceptions: {called(exceptions)}; {note}" if exceptions else note
    return judge_identity("exceptions", float(len(exceptions)), 0.0, said)


@the_map.claim(
    "stored",
    "A normalizer of activations stores numbers as it trains if it ties samples together, in outputs or gradients, and only then.",
    criterion="an input of another sample moves an output or has a gradient, if and only if a buffer moves in training; no "
    "exceptions",
)
def _(table):
    others = table[(table.acts_on == "weights") & table.stores].norm.unique()
    return _none_but(_exceptions(table, "activations", lambda run: ties(run) == run.stores), f"of weights, {called(others)} stores")


@the_map.claim(
    "two-functions",
    "A normalizer computes another function in evaluation if its outputs tie samples together in training, and only then.",
    criterion="after ten batches the outputs of the two modes differ by more than 0.1 % of the largest, if and only if an input of "
    "another sample moves an output in training; no exceptions",
)
def _(table):
    gradient = table[table.samples == 1].norm.unique()
    exceptions = _exceptions(table, "any", lambda run: (run.samples == 2) == run.differs)
    return _none_but(exceptions, f"in the gradient alone, and in one function: {called(gradient)}, within its limits")


@the_map.claim(
    "single-case",
    "What does not notice the scale of a single case ties no samples together.",
    criterion="no normalizer has both",
)
def _(table):
    found = table[table["single case rescaling"]].norm.unique()
    exceptions = _exceptions(table, "any", lambda run: not (run["single case rescaling"] and ties(run)))
    return _none_but(exceptions, f"invariant: {called(found)}")


@the_map.claim(
    "vector",
    "The length of a single weight vector goes unnoticed where a scale is taken from one channel, or from one row of the weights, "
    "and nowhere else.",
    criterion="invariant to re-scaling of a weight vector, if and only if a common scale is ignored and outputs do not answer to "
    "other channels, or other rows; no exceptions",
)
def _(table):
    def rule(run):
        alone = run.over == "row" if run.acts_on == "weights" else not run.channels
        return run["weight vector rescaling"] == (run.scale and alone)

    found = table[table["weight vector rescaling"]].norm.unique()
    return _none_but(_exceptions(table, "any", rule), f"invariant: {called(found)}")


@the_map.claim(
    "scale-first",
    "Whatever ignores a common shift ignores a common scale too; the reverse is false.",
    criterion="no normalizer ignores the shift alone, and at least one the scale alone",
)
def _(table):
    alone = table[table.scale & ~table["shift"]].norm.unique()
    exceptions = _exceptions(table, "any", lambda run: run.scale or not run["shift"])
    return _none_but(exceptions if len(alone) else ["none"], f"the scale alone: {called(alone)}")


@the_map.claim(
    "batch-of-one",
    "Of what accepts vectors at all, a batch of one is refused if samples are tied together, and accepted if they are not.",
    criterion="in training, batches of one to eight vectors: no exceptions",
)
def _(table):
    never, maps = table[table.vectors == 0].norm.unique(), table[table.maps != 1].norm.unique()
    exceptions = _exceptions(table, "any", lambda run: run.vectors == 0 or ties(run) == (run.vectors > 1))
    note = f"no vectors at all: {called(never)}; on maps of four positions a single image is refused by: {called(maps)}"
    return _none_but(exceptions, note)
