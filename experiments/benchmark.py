"""How fast everything is, in one run: python -m experiments.benchmark [--quick] [--llm] [--out=FOLDER]

Times the solvers against plain matrix products, Beacon against its literal evaluation, the Gram statistics and the
whole pipeline per block, and how time grows with the size of the problem; all on random data. Writes benchmark.json,
benchmark.md and growth.png to --out, and prints the tables. --quick: smaller sizes, in under a minute on two cores
(the whole takes about ten). --llm: a layer of 4096 × 11008 as well. --torch: the forward pass in PyTorch as well
(needs torch and transformers).
"""

import dataclasses
import functools
import importlib.util
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from beacon_jax import METHODS, GramStats, QuantSpec, make_alphabet, quantize
from beacon_jax.models.vit import VARIANTS, ViT
from experiments.benchmark_tables import LEAST_FACTOR, markdown, plot
from experiments.least_work import calibration_products
from experiments.timing import (
    FORMS,
    PRODUCTS,
    SWEEPS,
    Dense,
    exponent,
    gram_matmuls,
    interleaved,
    machine,
    matmuls,
    peak_memory,
    problem,
    random_inputs,
    random_params,
    timed,
    torch_forward,
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured. Shapes are (inputs, outputs); the growth axes vary one number of `growth_shape` each."""

    shapes: tuple = ((768, 768), (768, 2304), (768, 3072), (3072, 768))
    alphabets: tuple = ("1.58", "2", "4", "8")
    dense_shape: tuple = (768, 768)
    dense_coordinates: tuple = (8, 40)
    gram_widths: tuple = (768, 3072)
    gram_batch: tuple = (16, 197)  # images, rows of each
    model: dict = dataclasses.field(default_factory=lambda: VARIANTS["deit_base_patch16_224"])
    blocks: int = 2
    calibrations: tuple = (
        dict(calibrate_on="float"),
        dict(calibrate_on="both"),
    )
    batches: int = 2
    batch: int = 16
    growth_shape: tuple = (384, 384)
    growth_at: int = 2  # sweeps, where it is not they that vary
    growth_inputs: tuple = (192, 384, 768, 1536)
    growth_outputs: tuple = (192, 384, 768, 1536, 3072)
    growth_sweeps: tuple = (1, 2, 4, 8)
    growth_levels: tuple = (2, 4, 16, 64, 256)
    growth_images: tuple = (16, 32, 64, 128, 256)
    llm_shape: tuple = (4096, 11008)
    torch: bool = False
    repeats: int = 7


FULL = Sizes()
QUICK = Sizes(
    shapes=((192, 192), (192, 768)),
    dense_shape=(192, 192),
    gram_widths=(192,),
    model=VARIANTS["deit_tiny_patch16_224"] | dict(depth=2),
    blocks=1,
    batches=1,
    batch=8,
    # Shapes that the other parts compile as well.
    growth_shape=(192, 192),
    growth_at=SWEEPS,
    growth_inputs=(192, 768),
    growth_outputs=(192, 768),
    growth_sweeps=(2, SWEEPS),
    growth_levels=(2, 16, 256),
    growth_images=(16, 64),
    repeats=3,
)


def measure_solvers(sizes: Sizes) -> list[dict]:
    """Every method on every shape, next to PRODUCTS products of (N, N) and (N, C) matrices."""
    rows = []
    for n, c in sizes.shapes:
        kernel, stats = problem(n, c)
        # Both signs, for an alphabet that is not symmetric, on one shape.
        alphabets = (*sizes.alphabets, "int2") if (n, c) == sizes.shapes[0] else sizes.alphabets
        cases = {("beacon", a): {"sweeps": SWEEPS} for a in alphabets} | {(m, "2"): {} for m in ("gptq", "comq", "rtn")}
        cases |= {(f"beacon_plus, {effort}", "2"): {"effort": effort} for effort in ("fast", "default")}
        cases = {
            (row, alphabet): functools.partial(METHODS[row.split(", ")[0]], kernel, stats, alphabet, **options)
            for (row, alphabet), options in cases.items()
        }
        square = stats.H / jnp.diagonal(stats.H).mean()  # so that repeated products stay within float32
        reference = functools.partial(matmuls, square, kernel, count=PRODUCTS)
        for (method, alphabet), timing in interleaved(cases, reference, repeats=sizes.repeats).items():
            row = {"shape": (n, c), "method": method, "alphabet": alphabet, "seconds": timing.seconds}
            row |= {"matmul_seconds": timing.reference_seconds, "ratio": timing.seconds / timing.reference_seconds}
            row |= {"gflop_per_second": PRODUCTS * 2e-9 * n**2 * c / timing.reference_seconds}
            row |= {"compile_seconds": timing.compile_seconds}
            info = timing.output.info or {}
            for key, field in (("sweeps", "sweeps"), ("fixed_points", "fixed_point")):
                row[key] = float(info[field].mean()) if field in info else None
            rows.append(row)
    return rows


def measure_dense(sizes: Sizes) -> list[dict]:
    """Beacon against the literal evaluation, whose time is extrapolated from some coordinates of one sweep."""
    rows, (few, many) = [], sizes.dense_coordinates
    kernel, stats = problem(*sizes.dense_shape)
    passes = SWEEPS + 1
    for alphabet in LEAST_FACTOR:
        cases = {"beacon": functools.partial(METHODS["beacon"], kernel, stats, alphabet, sweeps=SWEEPS)}
        q = cases["beacon"]()
        q = jnp.asarray(make_alphabet(alphabet), kernel.dtype)[q.codes].T
        for form in FORMS:
            dense = Dense.of(kernel, stats, alphabet, form)
            s = matmuls(q, dense.columns_tilde, count=1)
            cases |= {(form, n): functools.partial(dense.sweep, q, s, n) for n in (few, many)}
        timings = interleaved(cases, repeats=sizes.repeats)
        beacon = timings["beacon"].seconds
        for form in FORMS:
            each = (timings[form, many].seconds - timings[form, few].seconds) / (many - few)
            dense_seconds = each * passes * kernel.shape[0]
            row = {"shape": sizes.dense_shape, "alphabet": alphabet, "form": form, "coordinate_seconds": each}
            row |= {"coordinates": many, "extrapolated_to": passes * kernel.shape[0], "dense_seconds": dense_seconds}
            rows.append(row | {"beacon_seconds": beacon, "factor": dense_seconds / beacon})
    return rows


def measure_gram(sizes: Sizes) -> list[dict]:
    """One update of the statistics, next to as many plain products."""
    rows, update = [], jax.jit(GramStats.update)
    count = math.prod(sizes.gram_batch)
    for n in sizes.gram_widths:
        x, x_tilde = random_inputs(n, count)
        one, two = [(x, x)], [(x, x), (x_tilde, x_tilde), (x_tilde, x)]
        for inputs, pairs in (((x,), one), ((x, x_tilde), two)):
            case = functools.partial(update, GramStats.zeros(n), *inputs)
            reference = functools.partial(gram_matmuls, pairs)
            timing = interleaved({"update": case}, reference, repeats=sizes.repeats)["update"]
            row = {"width": n, "rows": count, "streams": len(inputs), "seconds": timing.seconds}
            row |= {"gflop_per_second": len(pairs) * 2e-9 * count * n**2 / timing.seconds}
            row |= {"matmul_seconds": timing.reference_seconds, "ratio": timing.seconds / timing.reference_seconds}
            rows.append(row)
    return rows


def measure_pipeline(sizes: Sizes) -> dict:
    """quantize on a few blocks, beside the products it cannot do without, and the whole float model forward."""
    rng = np.random.default_rng(0)
    side, channels = sizes.model["image_size"], sizes.model.get("channels", 3)
    batches = [rng.standard_normal((sizes.batch, side, side, channels), np.float32) for _ in range(sizes.batches)]
    model = ViT(**sizes.model | dict(depth=sizes.blocks))
    params, runs = random_params(model), []
    for calibration in sizes.calibrations:
        spec = QuantSpec(alphabet="2", layers=r"blocks_\d+/.*", allow_few_rows=True, **calibration)
        run, twice = (functools.partial(quantize, model, params, batches * n, spec) for n in (1, 2))
        products = calibration_products(sizes.model, sizes.batch, 2 if calibration["calibrate_on"] == "both" else 1)
        reference = functools.partial(_repeated, products, sizes.blocks * sizes.batches)
        timing, longer = interleaved({"run": run, "twice": twice}, reference, repeats=3).values()
        _, result = timed(run)
        layers = [
            {"layer": r.layer, "shape": r.shape, "gram_seconds": r.gram_seconds, "solve_seconds": r.solve_seconds}
            for r in result.reports
        ]
        apart = timing.seconds - sum(layer["solve_seconds"] for layer in layers)
        row = {"calibration": ", ".join(calibration.values()), "seconds": timing.seconds}
        row |= {"compile_seconds": timing.compile_seconds, "apart_seconds": apart}
        row |= {"matmul_seconds": timing.reference_seconds, "ratio": apart / timing.reference_seconds}
        further = longer.seconds - timing.seconds  # the solve and the report take as long
        row |= {
            "further_seconds": further,
            "further_ratio": 2 * further / (timing.reference_seconds + longer.reference_seconds),
        }
        runs.append(row | {"layers": layers})
    whole = ViT(**sizes.model)
    params, images = random_params(whole), jnp.asarray(batches[0])
    forward = jax.jit(lambda params, images: whole.apply({"params": params}, images))
    cases = {"forward": lambda: forward(params, images)}
    if sizes.torch:
        cases["torch"] = torch_forward(sizes.model, batches[0])
    timings = interleaved(cases, repeats=sizes.repeats)
    per_second = {name: sizes.batch / timing.seconds for name, timing in timings.items()}
    return {
        "blocks": sizes.blocks,
        "images": sizes.batches * sizes.batch,
        "forward_depth": whole.depth,
        "batch": sizes.batch,
        "forward_images_per_second": per_second["forward"],
        "torch_images_per_second": per_second.get("torch"),
        "runs": runs,
    }


def _repeated(function, count):
    return [jax.block_until_ready(function()) for _ in range(count)][-1]


def measure_growth(sizes: Sizes) -> list[dict]:
    """Time along each axis, and the exponent of a power law fitted to it."""
    n, c = sizes.growth_shape
    width = sizes.gram_widths[0]
    inputs, update = random_inputs(width, math.prod(sizes.gram_batch)), jax.jit(GramStats.update)

    # Few sweeps on a random problem at 4 bit are not enough to converge, so that all of them are made.
    def solve(n, c, levels=16, sweeps=sizes.growth_at):
        alphabet = np.arange(levels) - (levels - 1) / 2
        return functools.partial(METHODS["beacon"], *problem(n, c), alphabet, sweeps=sweeps)

    def gram(images):
        stats = GramStats.zeros(width)
        for _ in range(images // sizes.gram_batch[0]):
            stats = update(stats, *inputs)
        return stats

    axes = {
        "inputs N": {v: solve(v, c) for v in sizes.growth_inputs},
        "outputs C": {v: solve(n, v) for v in sizes.growth_outputs},
        "passes 1 + K": {1 + v: solve(n, c, sweeps=v) for v in sizes.growth_sweeps},
        "levels": {v: solve(n, c, levels=v) for v in sizes.growth_levels},
        "calibration images": {v: functools.partial(gram, v) for v in sizes.growth_images},
    }
    rows = []
    for axis, cases in axes.items():
        timings = interleaved(cases, repeats=sizes.repeats)
        seconds = [timing.seconds for timing in timings.values()]
        p, factor = exponent(list(cases), seconds)
        row = {"axis": axis, "values": list(cases), "seconds": seconds, "exponent": p, "factor": factor}
        made = [t.output.info["sweeps"].max() for t in timings.values() if not isinstance(t.output, GramStats)]
        rows.append(row | {"sweeps_made": [int(k) for k in made] or None})
    return rows


def measure_llm(sizes: Sizes) -> dict:
    """One large layer at 2 bit, once after compilation, and the memory before and after."""
    kernel, stats = problem(*sizes.llm_shape)
    before = peak_memory()
    square = stats.H / jnp.diagonal(stats.H).mean()
    reference = functools.partial(matmuls, square, kernel, count=PRODUCTS)
    solve = functools.partial(METHODS["beacon"], kernel, stats, "2", sweeps=SWEEPS)
    timing = interleaved({"solve": solve}, reference, repeats=1)["solve"]
    row = {"shape": sizes.llm_shape, "seconds": timing.seconds, "matmul_seconds": timing.reference_seconds}
    row |= {"ratio": timing.seconds / timing.reference_seconds, "compile_seconds": timing.compile_seconds}
    return row | {"memory_before": before, "memory_after": peak_memory()}


PARTS = {
    "solvers": measure_solvers,
    "dense": measure_dense,
    "gram": measure_gram,
    "pipeline": measure_pipeline,
    "growth": measure_growth,
    "llm": measure_llm,
}


def run(sizes: Sizes, out: Path, parts=tuple(PARTS)) -> str:
    """Measures the parts one after another and writes all files after each; returns the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "sizes": dataclasses.asdict(sizes), "parts": {}, "peak_memory": {}}
    bar = tqdm(parts, desc="benchmark", unit="part", disable=None)
    for name in bar:
        bar.set_postfix_str(name)
        result["parts"][name] = PARTS[name](sizes)
        result["peak_memory"][name] = peak_memory()
        (out / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (out / "benchmark.md").write_text(markdown(result, full=sizes.shapes == FULL.shapes), encoding="utf-8")
        if name == "growth":
            plot(result["parts"][name], out / "growth.png")
    return markdown(result, full=sizes.shapes == FULL.shapes)


_QUICK = flags.DEFINE_bool("quick", False, "Smaller sizes and fewer repeats.")
_LLM = flags.DEFINE_bool("llm", False, "A layer of 4096 × 11008 as well.")
_TORCH = flags.DEFINE_bool("torch", False, "The forward pass in PyTorch as well.")
_OUT = flags.DEFINE_string("out", "results/benchmark", "The folder to write to.")


def main(argv):
    if argv[1:]:
        raise app.UsageError(f"unexpected arguments {' '.join(argv[1:])}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX reports every kind of device that it does not find
    missing = [name for name in ("torch", "transformers") if _TORCH.value and importlib.util.find_spec(name) is None]
    if missing:
        raise app.UsageError(f"--torch needs {' and '.join(missing)}; pip install torch transformers")
    out = Path(_OUT.value)
    parts = [name for name in PARTS if name != "llm" or _LLM.value]
    print(run(dataclasses.replace(QUICK if _QUICK.value else FULL, torch=_TORCH.value), out, parts))
    for name, file in (("tables", "benchmark.md"), ("numbers", "benchmark.json"), ("plot", "growth.png")):
        print(f"{name}: {out / file}")


if __name__ == "__main__":
    app.run(main)
