"""How much memory encoding takes: the estimate, the limit, and what is said beyond it."""

import json
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

import anyres
from anyres.cli.main import app
from anyres.errors import AnyresError, InputError, MemoryLimitError
from anyres.models.build import build
from anyres.models.presets import preset, resized
from anyres.models.weights import save
from anyres.ops import kernels
from anyres.predict import memory
from anyres.predict.load import put
from anyres.predict.predictor import Predictor

CPU = torch.device("cpu")


class Living(TorchDispatchMode):
    """The bytes of all tensors that live at once, at most, beside the weights."""

    def __init__(self, model):
        super().__init__()
        self.now = self.most = 0
        self.known = dict.fromkeys(
            (x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())), 0
        )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.forget, storage._cdata)
        return out

    def forget(self, key):
        self.now -= self.known.pop(key, 0)


@pytest.fixture
def one_thread():
    """What others make is not seen by ``Living``."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "size_hw", "dtype"),
    [
        ("sam_ti", (768, 1024), torch.float32),
        ("sam_xs", (512, 768), torch.float32),
        ("default", (512, 768), torch.float32),
        ("default", (768, 768), torch.bfloat16),
        ("mobile_sam", (512, 768), torch.float32),
        ("mobile_sam", (640, 512), torch.bfloat16),
        ("hrsam_ti", (640, 480), torch.float32),
        ("hrsam_ti", (512, 512), torch.bfloat16),
        ("hrsam_s", (640, 512), torch.float32),
        ("hrsam_pp_ti", (768, 512), torch.bfloat16),
    ],
)
def test_the_estimate_is_what_lives(name, size_hw, dtype, one_thread):
    model = put(build(preset(name)), CPU, dtype)

    def encode():
        with torch.inference_mode(), Living(model) as living:
            picture = torch.zeros(1, 3, *size_hw, dtype=torch.uint8)
            model.encode(model.preprocess(picture, size_hw))
        return living.most

    # In a thread of its own, which has kept nothing of earlier pictures.
    with ThreadPoolExecutor(1) as thread:
        most = thread.submit(encode).result()
    estimate = memory.living_bytes(model.config, size_hw, dtype, CPU)
    assert 0.8 <= estimate / most <= 1.25
    assert memory.encoding_bytes(model.config, size_hw, dtype, CPU) > most


def test_without_the_kernels_the_whole_picture_counts(monkeypatch):
    config, size_hw = preset("hrsam_ti"), (1024, 1024)
    if not kernels.has_numba():
        pytest.skip("there are no kernels")
    parts = memory.living_bytes(config, size_hw, torch.float32, CPU)
    whole = memory.living_bytes(config, size_hw, torch.float32, torch.device("cuda"))
    assert parts < whole
    for variable in ("ANYRES_BLOCK", "ANYRES_SCAN"):
        with monkeypatch.context() as forced:
            forced.setenv(variable, "torch")
            assert memory.living_bytes(config, size_hw, torch.float32, CPU) == whole


@pytest.mark.parametrize(
    ("name", "size_hw", "dtype"),
    [
        ("default", (512, 768), torch.float32),
        ("default", (768, 768), torch.bfloat16),
        ("hrsam_ti", (640, 480), torch.float32),
        ("hrsam_ti", (1024, 1024), torch.bfloat16),
    ],
)
def test_the_estimate_of_whole_pictures(name, size_hw, dtype):
    """As elsewhere than on CPUs: here because gradients could be asked for."""
    model = put(build(preset(name)), CPU, dtype).eval().requires_grad_(False)
    with Living(model) as living:
        picture = torch.zeros(1, 3, *size_hw, dtype=torch.uint8)
        model.encode(model.preprocess(picture, size_hw))
    estimate = memory.living_bytes(model.config, size_hw, dtype, torch.device("cuda"))
    assert 0.8 <= estimate / living.most <= 1.25


def test_the_estimate_is_linear():
    config = preset("sam_vit_b")
    small, large = (
        memory.encoding_bytes(config, (size, size), torch.float32, CPU) for size in (2240, 4480)
    )
    assert 3.5 < large / small < 4.1


@pytest.mark.parametrize(
    ("limit", "amount"),
    [
        (None, None),
        (12345, 12345),
        (np.int64(7), 7),
        ("8GB", 8 * 10**9),
        ("8g", 8 * 10**9),
        ("500 MB", 5 * 10**8),
        (" 1.5GiB ", 3 * 2**29),
        ("2KiB", 2048),
        ("1tb", 10**12),
        ("4096", 4096),
        ("4096B", 4096),
    ],
)
def test_limits(limit, amount):
    assert memory.known_limit(limit) == amount


@pytest.mark.parametrize("limit", ["", "GB", "-3GB", "8XB", "8iB", "0", 0, -1, True, 2.5, "1e9"])
def test_what_is_no_limit(limit):
    with pytest.raises(InputError, match="memory_limit is"):
        memory.known_limit(limit)
    with pytest.raises(InputError, match="memory_limit is"):
        anyres.load(weights="nowhere.pth", memory_limit=limit)


def machine(root, free_kb, **files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {free_kb} kB\n")
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return memory.available(CPU, root)


def test_memory_of_a_machine(tmp_path):
    assert machine(tmp_path, 2000) == 2000 * 1024


def test_memory_of_a_container(tmp_path):
    found = machine(
        tmp_path,
        2000,
        proc__self__cgroup="0::/all/mine\n",
        sys__fs__cgroup__all__memory_dot_max="900000\n",
        sys__fs__cgroup__all__memory_dot_current="500000\n",
        sys__fs__cgroup__all__memory_dot_stat="anon 1\ninactive_file 100000\n",
        sys__fs__cgroup__all__mine__memory_dot_max="max\n",
        sys__fs__cgroup__all__mine__memory_dot_current="400000\n",
    )
    assert found == 500000


def test_memory_of_an_older_container(tmp_path):
    found = machine(
        tmp_path,
        2000,
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes="1000000\n",
        sys__fs__cgroup__memory__memory_dot_usage_in_bytes="1200000\n",
    )
    assert found == 0


def test_memory_of_other_systems(tmp_path):
    assert memory.available(CPU, tmp_path) is None
    assert memory.available(torch.device("mps")) is None


def test_memory_of_this_system():
    found = memory.available(CPU)
    assert found is None or found > 10**6


def picture_of(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("pad", ["square", "patch"])
def test_what_will_not_fit_is_said_before(sam, pad):
    predictor = Predictor(sam, resolution="native", pad=pad, memory_limit="60MB")
    with pytest.raises(MemoryLimitError) as caught:
        predictor.set_image(picture_of(1200, 1600))
    message = str(caught.value)
    assert message.startswith("sam_ti needs about 0.")
    assert f"1600 x {1600 if pad == 'square' else 1200} pixels" in message
    assert "0.06 GB are allowed by memory_limit" in message
    assert not predictor.is_image_set
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, AnyresError)
    # The size that it names fits, the next does not.
    fits = int(message.split("pass resolution=")[1].split(",")[0])
    assert 64 < fits < 1600
    good = Predictor(sam, resolution=fits, pad=pad, memory_limit="60MB")
    good.set_image(picture_of(1200, 1600))
    assert good.is_image_set
    with pytest.raises(MemoryLimitError):
        Predictor(sam, resolution=fits + 16, pad=pad, memory_limit="60MB").set_image(
            picture_of(1200, 1600)
        )


def test_where_nothing_fits(hrsam):
    with pytest.raises(MemoryLimitError, match="no resolution fits, or a higher memory_limit"):
        Predictor(hrsam, memory_limit=1000).set_image(picture_of(100, 100))


def test_without_a_limit_what_is_available_counts(sam, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 2 * 10**7)
    with pytest.raises(MemoryLimitError, match=r"0\.02 GB are available"):
        Predictor(sam).set_image(picture_of(100, 100))
    # Who sets a limit knows better, and where nothing is known nothing is said.
    Predictor(sam, memory_limit="1GB").set_image(picture_of(100, 100))
    monkeypatch.setattr(memory, "available", lambda device: None)
    Predictor(sam).set_image(picture_of(100, 100))


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(build(resized(preset("sam_ti"), 64)), tmp_path / "sam.safetensors")
    from anyres.data.images import write_png

    write_png(tmp_path / "cat.png", picture_of(90, 120))
    command = ["predict", "cat.png", "--point", "5,5", "--weights", "sam.safetensors"]
    command += ["--device", "cpu", "--resolution", "1024", "--json", "-"]
    assert CliRunner().invoke(app, [*command, "--memory-limit", "lots"]).exit_code != 0
    failed = CliRunner().invoke(app, [*command, "--memory-limit", "60MB"])
    assert isinstance(failed.exception, MemoryLimitError)
    assert not (tmp_path / "cat_mask.png").exists()
    done = CliRunner().invoke(app, [*command, "--memory-limit", "2 GB"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["resolution"] == 1024
