"""``anyres models``: which models there are."""

from pathlib import Path
from typing import Annotated, Any

import typer

from anyres.cli import common


def models(
    json: Annotated[
        Path | None, typer.Option(metavar="PATH|-", help="The list for programs; '-' is stdout.")
    ] = None,
) -> None:
    """List the models: their size, padding, resolution, and where their weights are."""
    from anyres.models.presets import PRESETS
    from anyres.predict.assets import has_embedded

    common.check_outputs({"--json": common.json_file(json)}, {})
    entries = [_entry(config, has_embedded(config.name)) for config in PRESETS.values()]
    if json is not None:
        common.write_json({"models": entries}, json)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "encoder", "trained", "pad", "resolution", "weights"):
        table.add_column(heading, no_wrap=True)
    for entry in entries:
        native = entry["native_limit"]
        table.add_row(
            entry["name"],
            f"{entry['encoder']} {entry['dim']} x {entry['blocks']}",
            str(entry["image_size"]),
            entry["pad"],
            f"native, {entry['image_size']} to {native}" if native else "train",
            "embedded" if entry["embedded"] else "--weights FILE",
        )
    Console().print(table)


def _entry(config: Any, embedded: bool) -> dict[str, Any]:
    from anyres.models.config import HRSAMConfig, TinyViTConfig, ViTConfig

    names = {ViTConfig: "ViT", HRSAMConfig: "HRSAM", TinyViTConfig: "TinyViT"}
    encoder = config.encoder
    return {
        "name": config.name,
        "encoder": names[type(encoder)] + ("++" if getattr(encoder, "anchor", 0) else ""),
        "dim": encoder.dim,
        "blocks": encoder.blocks,
        "heads": encoder.heads,
        "image_size": config.image_size,
        "pad": config.pad,
        "native_limit": config.native_limit,
        "embedded": embedded,
    }
