"""Measure speed and memory from image files to masks; write docs/performance.md and its plots.

    python benchmarks/performance.py                     # all sections for a processor, then the page
    python benchmarks/performance.py --section memory    # one section, then the page
    python benchmarks/performance.py --page              # the page only, from the stored figures
    python benchmarks/performance.py --device cuda       # the section for a CUDA device, then the page

Figures are stored in docs/performance/results.json; measuring a section again replaces its figures. The measurements
are those of the command `embedmask bench` (package `embedmask.benchmark`), which measures one configuration; this
script runs it with many. Close all other programs: the sections take an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from reporting import table
from torch.utils.flop_counter import FlopCounterMode

from embedmask.benchmark.calibration import BOX_CELLS
from embedmask.benchmark.compare import BenchConfig, compare
from embedmask.benchmark.timing import matrix_gflops
from embedmask.config import ModelConfig, override
from embedmask.config.bundled import resolve_recipe
from embedmask.files import atomic_write, write_json, write_text
from embedmask.machine import processor_text
from embedmask.model.embedmask import EmbedMask

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "performance.md"
AFTER = ("proposals", "masks", "results")
"""Stages after the network."""
COUNTS = (10, 30, 100, 300, 1000)
SIZES = ((400, 608), (560, 864), (800, 1216), (1120, 1728), (1600, 2432))
FILES = ((800, 1216), (1600, 2432), (3000, 4000))
BATCHES = (1, 2, 4, 8)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("paper/r50_1x", {}),
    "paper, embed_stride 16": ("paper/r50_1x", {"embed_stride": 16}),
    "paper, short side 600": ("paper/r50_1x", {"image_short_side": 600}),
    "fused": ("fused/r50_ms_1x", {}),
    "fast": ("fast/r50_3x", {}),
    "fast, ResNet-18": ("fast/r18_3x", {}),
}
"""Recipe, and the model fields that are changed."""
CROWDS = {
    "300 objects on 12 megapixels": (300, (3000, 4000)),
    "1,000 objects on 1 megapixel": (1000, (1000, 1000)),
}
CUDA_MATRIX_SIDE = 8192

Results = dict[str, Any]


def config_of(recipe: str, changes: Mapping[str, Any]) -> ModelConfig:
    """Return the model configuration of a recipe."""
    model = resolve_recipe(recipe, {"model": changes}).model
    assert isinstance(model, ModelConfig)
    return model


def embedmask_only(plan: BenchConfig, **changes: Any) -> Results:
    """Measure EmbedMask without the baseline and without memory."""
    return run(replace(plan, **{"settings": (), "memory": False, **changes}))


def run(plan: BenchConfig) -> Results:
    """Run one comparison and log its progress."""
    return compare(plan, progress=logging.info)


def side_by_side(plan: BenchConfig) -> Results:
    """Measure all pipelines, and the fraction of the matrix rate that the convolutions reach."""
    return {"report": run(plan), "rate": matrix_share(plan)}


def by_instances(plan: BenchConfig) -> Results:
    """Measure more objects: with boxes of constant size, and of constant total area, that of 100 objects."""
    # n boxes of side s cover n * s^2
    crowded = {n: BOX_CELLS * math.sqrt(100 / n) for n in counts(plan)}
    return {
        "boxes as large": [embedmask_only(plan, detections=n) for n in counts(plan)],
        "as much covered": [
            embedmask_only(plan, detections=n, box_cells=cells) for n, cells in crowded.items()
        ],
    }


def counts(plan: BenchConfig) -> Sequence[int]:
    """Return the numbers of objects, up to ten times those of the plan."""
    return [n for n in COUNTS if n <= 10 * plan.detections]


def by_pixels(plan: BenchConfig) -> Results:
    """Measure larger images: at full size, and resized for the network."""
    # without the rule of resizing, the network sees the image at its own size
    whole = override(plan.config, {"image_short_side": None}, where="pixels")
    scale = min(plan.image_size) / 800
    return {
        "network sees all": [
            embedmask_only(plan, config=whole, image_size=scaled(size, scale)) for size in SIZES
        ],
        "resized for the network": [embedmask_only(plan, image_size=scaled(size, scale)) for size in FILES],
    }


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return a scaled size, rounded to multiples of 32 px; unchanged for a scale of 1."""
    height, width = (side if scale == 1 else max(32, round(side * scale / 32) * 32) for side in size)
    return height, width


def by_batch(plan: BenchConfig) -> Results:
    """Measure several batch sizes."""
    return embedmask_only(plan, batches=BATCHES)


def variants(plan: BenchConfig) -> Results:
    """Measure coarser embeddings, smaller images and light presets, beside Mask R-CNN at the same image size."""
    # the plan of the tests has a small network
    tiny = plan.image_size[0] < 400
    configs = {
        name: override(
            config_of(recipe, changes), {"num_classes": 3, "backbone": "resnet18"} if tiny else {}, where=name
        )
        for name, (recipe, changes) in VARIANTS.items()
    }
    return {
        name: run(replace(plan, config=config, settings=plan.settings[:2], memory=False))
        for name, config in configs.items()
    }


def memory(plan: BenchConfig) -> Results:
    """Measure the memory of many small objects up to the end of each stage."""
    # peaks of memory need no repetitions, and no baseline
    few = replace(plan, settings=(), runs=1, warmup=1)
    scale = min(plan.image_size) / 800
    return {
        name: run(
            replace(
                few, detections=n, image_size=scaled(size, scale), box_cells=BOX_CELLS * math.sqrt(100 / n)
            )
        )
        for name, (n, size) in CROWDS.items()
    }


SECTIONS: dict[str, Callable[[BenchConfig], Results]] = {
    "cpu": side_by_side,
    "instances": by_instances,
    "pixels": by_pixels,
    "batch": by_batch,
    "variants": variants,
    "memory": memory,
}


def matrix_share(plan: BenchConfig) -> Results:
    """Measure operations per second of a large bfloat16 matrix product, and count those of EmbedMask per image."""
    device = torch.device("cuda" if plan.device.startswith("cuda") else "cpu")
    if device.type == "cuda":
        rate = cuda_matrix_rate(device)
    else:
        rate = 1e9 * matrix_gflops()["bfloat16"] * torch.get_num_threads()
    model = EmbedMask(plan.model_config).eval().to(device)
    padded = [-(-length // 32) * 32 for length in plan.network_size]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, *padded, device=device))
    return {"matrix_per_second": rate, "network_operations": counter.get_total_flops()}


def cuda_matrix_rate(device: torch.device) -> float:
    """Return the operations per second of a bfloat16 matrix product, the fastest of 20: the peak rate of the device."""
    matrix = torch.randn(CUDA_MATRIX_SIDE, CUDA_MATRIX_SIDE, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        matrix @ matrix
        torch.cuda.synchronize(device)  # kernels run asynchronously
        seconds.append(time.perf_counter() - start)
    return 2 * CUDA_MATRIX_SIDE**3 / min(seconds)


# --- the page -----------------------------------------------------------------


def milliseconds(seconds: float | None) -> str:
    """Format seconds as milliseconds; None becomes a dash."""
    return "-" if seconds is None else f"{1000 * seconds:.0f}" if seconds >= 0.1 else f"{1000 * seconds:.1f}"


def after(stages: Mapping[str, float]) -> float:
    """Return the seconds after the network."""
    return sum(stages.get(stage, 0.0) for stage in AFTER)


def machine_line(report: Results) -> str:
    """Return the machine, the versions and the number of runs of a report."""
    machine, plan = report["machine"], report["plan"]
    device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    return (
        f"{device}{processor_text(machine)}, {machine['threads']} threads, torch {machine['torch']}, torchvision "
        f"{machine['torchvision']}, openvino {machine['openvino'] or 'not installed'}; commit {machine['commit']}; "
        f"medians of {plan['runs']} runs."
    )


def comparison_lines(section: Results) -> list[str]:
    """Return the section of all pipelines: times, ratios, detections, memory and failures."""
    report = section["report"]
    plan = report["plan"]
    height, width = plan["image_size"]
    stages = list(dict.fromkeys(stage for seconds in report["medians"].values() for stage in seconds))
    order = [stage for stage in stages if stage not in ("to_masks", "whole")] + ["to_masks", "whole"]
    rows = [
        [
            pipeline,
            *(milliseconds(seconds.get(stage)) for stage in order),
            f"{after(seconds) / seconds['whole']:.1%}",
        ]
        for pipeline, seconds in report["medians"].items()
    ]
    lines = [machine_line(report), f"Image {height}x{width} px. Milliseconds per image.", ""]
    lines += table(["pipeline", *order, "after the network"], rows)
    lines += ratio_lines(report) + work_lines(report)
    return lines + rate_lines(section)


def ratio_lines(report: Results) -> list[str]:
    """Return the table of speed relative to Mask R-CNN, and the settings that do not run."""
    rows = [
        [pipeline, *(f"{ratios.get(k, math.nan):.2f}" for k in ("best", "float32"))]
        for pipeline, ratios in report["ratios"].items()
    ]
    lines = table(
        ["images per second, relative to Mask R-CNN", "at its best", "at its default, float32"], rows
    )
    return (
        lines
        + [f"- {pipeline} does not work here: {reason}" for pipeline, reason in report["fails"].items()]
        + [""]
    )


def work_lines(report: Results) -> list[str]:
    """Return the table of detections and memory of each pipeline."""
    rows = []
    for pipeline, work in report["works"].items():
        peaks = report["memory_mb"].get(pipeline) or {}
        rows.append([
            pipeline, str(work["detections"]), f"{work['mean_box_area_px']:.0f}", f"{work['mean_mask_area_px']:.0f}",
            f"{peaks['before']:.0f}" if peaks else "-", f"{peaks['results']:.0f}" if peaks else "-",
        ])  # fmt: skip
    return table(
        ["pipeline", "detections", "mean box, px", "mean mask, px", "MB before the run", "peak MB"], rows
    )


def rate_lines(section: Results) -> list[str]:
    """Return the lines of the fraction of the matrix rate."""
    rate, report = section["rate"], section["report"]
    lines = [
        f"A large bfloat16 matrix product reaches {rate['matrix_per_second'] / 1e12:.2f} Tflop/s on this machine; the "
        f"EmbedMask network needs {rate['network_operations'] / 1e9:.0f} Gflop per image. Its share of that rate, "
        "including all other operations of the network:",
        "",
    ]
    rows = [
        [pipeline, f"{rate['network_operations'] / seconds['network'] / rate['matrix_per_second']:.0%}"]
        for pipeline, seconds in report["medians"].items()
        if pipeline in report["ratios"]
    ]
    return lines + table(["pipeline", "share"], rows)


def instance_lines(section: Results) -> list[str]:
    """Return the section of time after the network against the number of objects."""
    rows = []
    for name, reports in section.items():
        for report in reports:
            for pipeline, seconds in report["medians"].items():
                work = report["works"][pipeline]
                cells = (milliseconds(seconds[stage]) for stage in AFTER)
                rows.append(
                    [
                        name,
                        str(work["detections"]),
                        f"{work['mean_box_area_px']:.0f}",
                        *cells,
                        milliseconds(after(seconds)),
                    ]
                )
    head = ["load", "objects", "mean box, px", *AFTER, "after the network"]
    return [*table(head, rows), "![time by objects](performance/instances.png)", ""]


def pixel_lines(section: Results) -> list[str]:
    """Return the section of time against pixels."""
    rows = []
    for name, reports in section.items():
        for report in reports:
            (seconds,) = report["medians"].values()
            sizes = [
                f"{height}x{width}"
                for height, width in (report["plan"]["image_size"], report["plan"]["network_size"])
            ]
            megapixels = math.prod(report["plan"]["image_size"]) / 1e6
            rows.append([name, *sizes, *map(milliseconds, (seconds["network"], after(seconds), seconds["whole"])),
                         milliseconds(seconds["whole"] / megapixels)])  # fmt: skip
    head = ["", "image", "network", "network, ms", "after it, ms", "total, ms", "ms per megapixel"]
    return [*table(head, rows), "![time by pixels](performance/pixels.png)", ""]


def batch_lines(section: Results) -> list[str]:
    """Return the section of time per image against the batch size."""
    rows = [
        [str(size), *map(milliseconds, (seconds["network"], after(seconds), seconds["whole"]))]
        for size, seconds in zip(section["plan"]["batches"], section["medians"].values(), strict=True)
    ]
    head = ["batch size", "network, ms per image", "after it", "total"]
    return [*table(head, rows), "![time by batch](performance/batch.png)", ""]


def variant_lines(section: Results) -> list[str]:
    """Return the section of the variants."""
    rows = []
    for name, report in section.items():
        height, width = report["plan"]["network_size"]
        for pipeline, ratios in report["ratios"].items():
            seconds = report["medians"][pipeline]
            cells = map(milliseconds, (seconds["network"], after(seconds), seconds["whole"]))
            rows.append([name, pipeline, f"{height}x{width}", *cells, f"{ratios.get('best', math.nan):.2f}"])
    head = [
        "model",
        "pipeline",
        "network input",
        "network, ms",
        "after it",
        "total",
        "speed relative to Mask R-CNN at this size",
    ]
    return [*table(head, rows), "![time by variant](performance/variants.png)", ""]


def memory_lines(section: Results) -> list[str]:
    """Return the section of the memory that decoding adds to the network's peak."""
    rows = []
    for name, report in section.items():
        for pipeline, peaks in report["memory_mb"].items():
            detections = report["works"][pipeline]["detections"]
            rows.append([name, pipeline, str(detections), f"{peaks['network']:.0f}", f"{peaks['results']:.0f}",
                         f"{peaks['results'] - peaks['network']:.0f}"])  # fmt: skip
    head = ["load", "pipeline", "detections", "peak MB up to the network", "peak MB in total", "added"]
    return table(head, rows)


TITLES: dict[str, tuple[str, Callable[[Any], list[str]]]] = {
    "cpu": ("Compared with Mask R-CNN, CPU", comparison_lines),
    "cuda": ("Compared with Mask R-CNN, CUDA", comparison_lines),
    "instances": ("More objects", instance_lines),
    "pixels": ("Larger images", pixel_lines),
    "batch": ("Batches", batch_lines),
    "variants": ("Lighter models", variant_lines),
    "memory": ("Memory of crowded images", memory_lines),
}
COMMANDS = {"cuda": "--device cuda"}


def page(results: Results, introduction: str) -> str:
    """Return the text of docs/performance.md."""
    lines = [introduction.rstrip(), ""]
    for name, (title, section_lines) in TITLES.items():
        command = f"`python benchmarks/performance.py {COMMANDS.get(name, f'--section {name}')}`"
        lines += [f"## {title}", f"{command}", ""]
        if name not in results:
            lines += [
                "Not measured yet.",
                "",
            ]
            continue
        lines += section_lines(results[name])
        if name == "cpu":
            lines += ["![share of each stage](performance/stages.png)", ""]
    return "\n".join(lines).rstrip() + "\n"


def draw(results: Results, folder: Path) -> None:
    """Draw the plots of the measured sections."""
    from matplotlib.figure import Figure

    plots: dict[str, tuple[str, Callable[[Any, Results], None]]] = {
        "cpu": ("stages", draw_stages),
        "instances": ("instances", draw_instances),
        "pixels": ("pixels", draw_pixels),
        "batch": ("batch", draw_batch),
        "variants": ("variants", draw_variants),
    }
    for section, (name, paint) in plots.items():
        if section in results:
            figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
            panel = figure.subplots()
            paint(panel, results[section])
            panel.grid(alpha=0.3)
            with atomic_write(folder / f"{name}.png") as path:
                figure.savefig(path)


def draw_stages(panel: Any, section: Results) -> None:
    """Draw the share of each stage, one bar per pipeline."""
    medians = section["report"]["medians"]
    stages = dict.fromkeys(
        stage for times in medians.values() for stage in times if stage not in ("to_masks", "whole")
    )
    # stacked bars: each stage begins where the previous one ends
    left = dict.fromkeys(medians, 0.0)
    for stage in stages:
        widths = {pipeline: times.get(stage, 0.0) / times["whole"] for pipeline, times in medians.items()}
        panel.barh(list(medians), list(widths.values()), left=list(left.values()), label=stage)
        left = {pipeline: left[pipeline] + width for pipeline, width in widths.items()}
    panel.invert_yaxis()
    panel.set(xlabel="share of the whole")
    panel.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))


def draw_instances(panel: Any, section: Results) -> None:
    """Draw the time after the network against the number of objects."""
    for name, reports in section.items():
        points = [
            (r["works"][pipeline]["detections"], 1000 * after(t))
            for r in reports
            for pipeline, t in r["medians"].items()
        ]
        panel.plot(*zip(*points, strict=True), marker="o", label=name)
    panel.set(xscale="log", xlabel="objects", ylabel="ms after the network", ylim=(0, None))
    panel.legend()


def draw_pixels(panel: Any, section: Results) -> None:
    """Draw the whole time against megapixels."""
    for name, reports in section.items():
        points = [
            (math.prod(r["plan"]["image_size"]) / 1e6, t["whole"])
            for r in reports
            for t in r["medians"].values()
        ]
        panel.plot(*zip(*points, strict=True), marker="o", label=name)
    panel.set(xlabel="megapixels of the file", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    panel.legend()


def draw_batch(panel: Any, section: Results) -> None:
    """Draw the time per image against the batch size."""
    for stage in ("whole", "network"):
        values = [1000 * seconds[stage] for seconds in section["medians"].values()]
        panel.plot(section["plan"]["batches"], values, marker="o", label=stage)
    panel.set(xlabel="batch size", ylabel="ms per image", ylim=(0, None))
    panel.legend()


def draw_variants(panel: Any, section: Results) -> None:
    """Draw the whole time of each variant, one bar per engine of EmbedMask."""
    bars = {
        f"{name} ({pipeline.removeprefix('embedmask ')})": 1000 * report["medians"][pipeline]["whole"]
        for name, report in section.items()
        for pipeline in report["ratios"]
    }
    panel.barh(list(bars), list(bars.values()))
    panel.invert_yaxis()
    panel.set(xlabel="ms per image")


def tiny_plan(plan: BenchConfig) -> BenchConfig:
    """Return a plan so small that all sections take a minute, to test the script."""
    return replace(
        plan, config=config_of("shapes", {}), image_size=(64, 96), detections=10, runs=2, warmup=1,
        settings=("float32",), engines=("torch",),
    )  # fmt: skip


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--section", action="append", choices=SECTIONS, dest="sections", help="default: all")
    parser.add_argument("--page", action="store_true", help="write the page only")
    parser.add_argument("--tiny", action="store_true", help="test the script on tiny images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", nargs="+", default=["torch", "compile", "openvino"])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


def main() -> None:
    """Measure the selected sections and write the page."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = parse()
    folder = args.out.parent / args.out.stem
    file = folder / "results.json"
    results: Results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    plan = BenchConfig(
        config=config_of("paper/r50_1x", {}), engines=tuple(args.engine), runs=args.runs, threads=args.threads,
        device=args.device, precision="bfloat16",
    )  # fmt: skip
    if args.tiny:
        plan = tiny_plan(plan)
    for name, measure in chosen(args).items():
        logging.info("section %s", name)
        # all engines beside Mask R-CNN; one elsewhere, since the trends are the same for all
        results[name] = measure(plan if name in ("cpu", "cuda") else replace(plan, engines=plan.engines[:1]))
        write_json(file, results)
    draw(results, folder)
    write_text(args.out, page(results, (HERE / "performance_introduction.md").read_text(encoding="utf-8")))


def chosen(args: argparse.Namespace) -> dict[str, Callable[[BenchConfig], Results]]:
    """Return the sections selected by the command line."""
    if args.page:
        return {}
    if args.device.startswith("cuda"):
        return {"cuda": on_cuda}
    return {name: SECTIONS[name] for name in args.sections or SECTIONS}


def on_cuda(plan: BenchConfig) -> Results:
    """Measure batches of 1 and 8, without OpenVINO, which does not run on CUDA."""
    engines = tuple(engine for engine in plan.engines if engine != "openvino")
    return side_by_side(replace(plan, engines=engines, batches=(1, 8)))


if __name__ == "__main__":
    main()
