"""How long a mask of 4096 x 4096 takes from memory to a file of each format, and back.

    .venv/bin/python benchmarks/formats.py

The mask has smooth borders, many parts and holes. Every mask that comes back is compared.
"""

import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from anyres.data.formats import coco, files, geojson, labelme, png, yolo
from anyres.data.formats.annotations import Annotated, Annotation
from anyres.data.formats.polygons import outline

SIDE, RUNS = 4096, 3
NAME = "photo.jpg"
READERS = {
    "png": png.read_png,
    "coco": lambda path: coco.read_coco(path)[0],
    "labelme": labelme.read_labelme,
    "geojson": geojson.read_geojson,
    "yolo": lambda path: yolo.read_yolo(path, image=NAME, size_hw=(SIDE, SIDE), classes=["thing"]),
    "sa1b": coco.read_sa1b,
}


def main() -> None:
    """Print the table."""
    noise = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    mask = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) > 0.5
    polygons = outline(mask)
    rings = [ring for polygon in polygons for ring in polygon]
    print(
        f"{len(polygons)} parts, {len(rings) - len(polygons)} holes, {sum(map(len, rings))} corners"
    )
    picture = Annotated(NAME, mask.shape, (Annotation(mask, "thing"),))
    print("| format | write, ms | read, ms | kB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, suffix in files.SUFFIXES.items():
            path = Path(folder) / f"mask{suffix}"
            writing, reading = [], []
            for _ in range(RUNS + 1):  # the first warms up
                start = time.perf_counter()
                files.write(path, picture, name)
                middle = time.perf_counter()
                back = READERS[name](path).annotations[0].mask
                end = time.perf_counter()
                writing.append(1e3 * (middle - start))
                reading.append(1e3 * (end - middle))
                if not np.array_equal(back, mask):
                    raise SystemExit(f"{name} gave back another mask")
            write, read = statistics.median(writing[1:]), statistics.median(reading[1:])
            print(f"| {name} | {write:.0f} | {read:.0f} | {path.stat().st_size / 1e3:.0f} |")


if __name__ == "__main__":
    main()
