"""``anyres predict``: one picture, one prompt, one mask."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyres.cli import common
from anyres.errors import PromptError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from anyres.predict.predictor import Predictor
    from anyres.types import Masks, Prompt

EXAMPLES = """[bold]Examples[/bold]

One click, a mask and a picture of it:

  anyres predict cat.jpg --point 420,310 --overlay cat_seen.png

A box, and a click on what is not meant:

  anyres predict cat.jpg --box 100,80,600,500 --point 120,90,0 -o cat.png

Improve a mask you have; the result as JSON on stdout:

  anyres predict cat.jpg --mask rough.png --point 420,310 --json -

The outline for a geographic information system, or for labelme:

  anyres predict cat.jpg --point 420,310 -o cat.geojson

  anyres predict cat.jpg --point 420,310 -o cat.json --format labelme

Your own SAM checkpoint at the size of the picture:

  anyres predict cat.jpg --point 420,310 --model sam_vit_b
  --weights sam_vit_b_01ec64.pth --resolution native
"""

_PROMPT, _MODEL, _OUTPUT = "Prompt", common.MODEL_PANEL, "Output"
_READING = "Reading the picture"


@dataclass(frozen=True)
class _Seconds:
    load: float
    picture: float
    answer: float


def predict(
    image: Annotated[Path, typer.Argument(help="The picture.", metavar="IMAGE")],
    point: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y[,0|1]",
            help="A click in pixels: on the object, or with ',0' on what is not. Repeatable.",
            rich_help_panel=_PROMPT,
        ),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            metavar="X0,Y0,X1,Y1", help="A box around the object.", rich_help_panel=_PROMPT
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            help="A rough mask of the picture's size, 0 is background; best with a click.",
            rich_help_panel=_PROMPT,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="See 'anyres models'.", rich_help_panel=_MODEL)
    ] = "default",
    weights: common.Weights = None,
    resolution: common.ResolutionText = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory that encoding may take, such as 8GB. [dim]Default: what is free[/dim]",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The mask. [dim]Default: <IMAGE>_mask.png in this folder, or the format's "
            "ending[/dim]",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="png|coco|labelme|geojson|yolo|sa1b",
            help="What the mask is written as. [dim]Default: by the ending of --output, else png "
            "(0 and 255)[/dim]",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", help="The picture with mask and prompt.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH|-",
            help="The result for programs; '-' is stdout.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    max_pixels: Annotated[
        int,
        typer.Option(min=1, help="Refuse larger pictures.", rich_help_panel=_READING),
    ] = 10**9,
    stretch: Annotated[
        str,
        typer.Option(
            help="How values of more than 8 bits become 8-bit: auto, none, minmax, percentile.",
            rich_help_panel=_READING,
        ),
    ] = "auto",
) -> None:
    """Cut an object out of a picture.

    Say where it is with clicks, a box or a rough mask. A single click can mean several things:
    then the model gives three masks, of which the one it trusts most is taken.
    """
    from anyres.data.formats.files import SUFFIXES, format_of, require
    from anyres.data.images import read_image
    from anyres.types import Prompt

    kind = format_of(format, output)
    require(kind)
    mask_file = output or Path(f"{image.stem}_mask{SUFFIXES[kind]}")
    # Everything that can be wrong is found before the model is loaded.
    side = common.parse_resolution(resolution)
    inputs = {"the picture": image, "--mask": mask, "--weights": weights}
    common.check_outputs({"--output": mask_file}, inputs, SUFFIXES[kind])
    others = {"--overlay": overlay, "--json": common.json_file(json)}
    common.check_outputs(others, inputs | {"--output": mask_file})
    pixels = read_image(image, max_pixels=max_pixels, stretch=stretch)
    rough = None if mask is None else _read_rough(mask, max_pixels)
    prompt = Prompt.from_text(point or (), box, rough)
    prompt.check_inside(pixels.shape[:2])

    start = time.perf_counter()
    from anyres.predict.load import load

    with common.console().status("loading the model") as status:
        predictor = load(
            model,
            weights=weights,
            resolution=side,
            device=device,
            dtype=dtype,
            memory_limit=memory_limit,
        )
        loaded = time.perf_counter()
        status.update("encoding the picture")
        predictor.set_image(pixels)
        encoded = time.perf_counter()
        one_click = prompt.points is not None and len(prompt.points) == 1
        ambiguous = one_click and prompt.box is None and prompt.mask is None
        answer = predictor.predict_batch([prompt], multimask_output=ambiguous)[0]
        done = time.perf_counter()
    seconds = _Seconds(loaded - start, encoded - loaded, done - encoded)

    best = answer.masks[answer.best]
    _write_mask(mask_file, kind, image, best, float(answer.scores[answer.best]))
    _write_overlay(pixels, best, prompt, overlay)
    written = [path for path in (mask_file, overlay) if path is not None]
    result = _result(image, prompt, answer, predictor, seconds)
    result |= {"output": str(mask_file), "format": kind}
    result["overlay"] = None if overlay is None else str(overlay)
    common.write_json(result, json)
    _account(result, written)


def _read_rough(path: Path, max_pixels: int) -> "npt.NDArray[Any]":
    """The values of ``--mask``; ``Prompt`` checks that they are one object."""
    from anyres.data.images import read_mask

    values = read_mask(path, max_pixels=max_pixels)
    if not values.any():
        raise PromptError(f"--mask {path} is empty: all of it is 0")
    return values


def _write_mask(
    path: Path, kind: str, image: Path, mask: "npt.NDArray[np.bool_]", score: float
) -> None:
    """Write the mask; labelme looks for the picture from where its file is."""
    from anyres.data.formats.annotations import Annotated, Annotation
    from anyres.data.formats.files import write

    name = os.path.relpath(image, path.parent) if kind == "labelme" else image.name
    height, width = mask.shape
    write(path, Annotated(name, (height, width), (Annotation(mask, score=score),)), kind)


def _write_overlay(
    pixels: "npt.NDArray[np.uint8]",
    mask: "npt.NDArray[np.bool_]",
    prompt: "Prompt",
    overlay: Path | None,
) -> None:
    if overlay is not None:
        from anyres.data.images import write_png
        from anyres.predict.draw import overlay as draw

        write_png(overlay, draw(pixels, mask, prompt))


def _result(
    image: Path, prompt: "Prompt", answer: "Masks", predictor: "Predictor", seconds: _Seconds
) -> dict[str, Any]:
    """What ``--json`` holds; sizes are (height, width), boxes XYXY around the mask's pixels."""
    mask = answer.masks[answer.best]
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    box = None
    if len(rows):
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    area = int(mask.sum())
    given = prompt.to_json()
    given.pop("mask", None)
    config = predictor.model.config
    frame = predictor.frame
    return {
        "image": str(image),
        "size_hw": list(mask.shape),
        "prompt": given | {"mask": prompt.mask is not None},
        "score": float(answer.scores[answer.best]),
        "candidates": len(answer.scores),
        "area": area,
        "share": area / mask.size,
        "box_xyxy": box,
        "model": config.name,
        "resolution": None if frame is None else max(frame.resized_hw),
        "device": str(predictor.device),
        "dtype": str(predictor.model.dtype).removeprefix("torch."),
        "seconds": {
            "load": round(seconds.load, 4),
            "picture": round(seconds.picture, 4),
            "answer": round(seconds.answer, 4),
        },
    }


def _account(result: dict[str, Any], written: list[Path]) -> None:
    """Tell people what was done."""
    height, width = result["size_hw"]
    seconds = result["seconds"]
    best_of = f", best of {result['candidates']}" if result["candidates"] > 1 else ""
    if result["box_xyxy"] is None:
        mask = "empty: the model sees no object there; try another click or a box"
    else:
        x0, y0, x1, y1 = result["box_xyxy"]
        mask = f"{result['share']:.2%} of the picture, {result['area']:,} pixels, box "
        mask += f"{x0},{y0},{x1},{y1}"
    lines = {
        "picture": f"{result['image']}, {width} x {height}",
        "prompt": "; ".join(_describe(result["prompt"])),
        "model": f"{result['model']} at {result['resolution']} pixels, "
        f"{result['dtype']} on {result['device']}",
        "score": f"{result['score']:.3f} predicted IoU{best_of}",
        "mask": mask,
        "time": f"model {seconds['load']:.2f} s, picture {seconds['picture']:.2f} s, "
        f"answer {seconds['answer']:.2f} s",
        "wrote": ", ".join(str(path) for path in written),
    }
    out = common.console()
    for name, text in lines.items():
        out.print(f"[bold]{name:<8}[/bold] ", end="")
        out.print(text, markup=False)


def _describe(prompt: dict[str, Any]) -> list[str]:
    parts = []
    for (x, y), label in zip(prompt.get("points") or (), prompt.get("labels") or (), strict=True):
        parts.append(f"click {'on' if label else 'off'} the object at {x:g},{y:g}")
    if prompt.get("box"):
        parts.append("box " + ",".join(f"{value:g}" for value in prompt["box"]))
    if prompt["mask"]:
        parts.append("rough mask")
    return parts
