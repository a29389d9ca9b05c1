"""MobileSAM: its encoder against official numbers and a plain twin, and its checkpoints."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import anyres
from anyres.errors import InputError, WeightsError
from anyres.models import weights
from anyres.models.build import build, build_encoder
from anyres.models.config import DecoderConfig, ModelConfig, TinyViTConfig
from anyres.models.official import sam_config, tiny_vit_config
from anyres.models.presets import PRESETS, preset, resized
from anyres.models.tiny_vit import TinyViT
from anyres.models.weights import from_official, load_weights
from anyres.ops.length import LengthConfig, mobile_scale
from anyres.predict.load import put

SMALL = TinyViTConfig(
    dims=(8, 12, 16, 20),
    depths=(1, 2, 1, 1),
    heads=(3, 2, 4),
    windows=(3, 4, 2),
    mlp_ratio=1.5,
    expand=2.5,
    neck=24,
)
SHALLOW = TinyViTConfig(
    dims=(9, 14, 6), depths=(2, 1, 1), heads=(1, 3), windows=(5, 7), local_conv=5, neck=8
)
TWO = TinyViTConfig(dims=(6, 10), depths=(1, 1), heads=(5,), windows=(2,), expand=1.0, neck=8)
LOG = LengthConfig()


def random_tiny_vit(config=SMALL, seed=0, dtype=torch.float64):
    """With random weights, statistics and biases among them."""
    torch.manual_seed(seed)
    encoder = TinyViT(config).eval()
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            values = torch.randn(tensor.shape)
            if name.endswith("running_var"):
                values = values.abs() + 0.3
            elif tensor.ndim > 1 and not name.endswith("attention_biases"):
                values *= tensor[0].numel() ** -0.5
            tensor.copy_(values)
    return encoder.to(dtype)


# A twin, written plainly: all windows one by one, padding before the norm.


def conv_norm(s, name, x, stride=1):
    weight = s[f"{name}.c.weight"]
    groups = x.shape[1] // weight.shape[1]
    x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
    mean, var = s[f"{name}.bn.running_mean"], s[f"{name}.bn.running_var"]
    return F.batch_norm(x, mean, var, s[f"{name}.bn.weight"], s[f"{name}.bn.bias"], eps=1e-5)


def convs(s, name, x, stride=1):
    x = F.gelu(conv_norm(s, f"{name}.conv1", x))
    x = F.gelu(conv_norm(s, f"{name}.conv2", x, stride))
    return conv_norm(s, f"{name}.conv3", x)


def norm(s, name, x):
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-5)


def linear(s, name, x):
    return F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])


def attend(s, name, x_nC, heads, window, factor):
    """In one window."""
    d = x_nC.shape[1] // heads
    qkv = linear(s, f"{name}.qkv", norm(s, f"{name}.norm", x_nC))
    places = [(y, x) for y in range(window) for x in range(window)]
    offsets = {}
    for a in places:
        for b in places:
            offsets.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(offsets))
    out = torch.empty_like(x_nC)
    for head in range(heads):
        q, k, v = qkv[:, 3 * d * head : 3 * d * (head + 1)].split(d, 1)
        scores = q @ k.T / d**0.5 * factor
        for i, a in enumerate(places):
            for j, b in enumerate(places):
                at = offsets[abs(a[0] - b[0]), abs(a[1] - b[1])]
                scores[i, j] += s[f"{name}.attention_biases"][head, at]
        out[:, d * head : d * (head + 1)] = scores.softmax(1) @ v
    return linear(s, f"{name}.proj", out)


def window_block(s, name, x_ChW, heads, window, factor):
    height, width = x_ChW.shape[1:]
    x = F.pad(x_ChW, (0, -width % window, 0, -height % window))
    out = torch.empty_like(x)
    for top in range(0, x.shape[1], window):
        for left in range(0, x.shape[2], window):
            part = np.s_[:, top : top + window, left : left + window]
            tokens = x[part].flatten(1).T
            answer = attend(s, f"{name}.attn", tokens, heads, window, factor)
            out[part] = answer.T.unflatten(1, (window, window))
    x = x_ChW + out[:, :height, :width]
    x = conv_norm(s, f"{name}.local_conv", x[None])[0].permute(1, 2, 0)
    hidden = F.gelu(linear(s, f"{name}.mlp.fc1", norm(s, f"{name}.mlp.norm", x)))
    return (x + linear(s, f"{name}.mlp.fc2", hidden)).permute(2, 0, 1)


def norm_2d(s, name, x):
    x = x.permute(0, 2, 3, 1)
    x = F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)
    return x.permute(0, 3, 1, 2)


def naive(encoder, pixels, factor=1.0):
    """The twin's answer for one picture."""
    s, config = encoder.state_dict(), encoder.config
    x = F.gelu(conv_norm(s, "patch_embed.seq.0", pixels, 2))
    x = conv_norm(s, "patch_embed.seq.2", x, 2)
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            if stage == 0:
                x = F.gelu(x + convs(s, name, x))
            else:
                heads, window = config.heads[stage - 1], config.windows[stage - 1]
                x = window_block(s, name, x[0], heads, window, factor)[None]
        if stage + 1 < len(config.depths):
            x = convs(s, f"layers.{stage}.downsample", x, 1 if stage == 2 else 2)
    x = norm_2d(s, "neck.1", F.conv2d(x, s["neck.0.weight"]))
    return norm_2d(s, "neck.3", F.conv2d(x, s["neck.2.weight"], padding=1))


# The encoder.


@pytest.fixture(scope="module")
def official(golden):
    """Arguments and weights of the golden, and its input."""
    facts, tensors = golden("mobile_sam_encoder")
    state = {name: t.float() for name, t in tensors.items() if "::" not in name}
    c, y, x = torch.arange(3)[:, None, None], torch.arange(1024)[:, None], torch.arange(1024)
    values = c * 32 + y * 17 + x * 29 + (y * x) % 251 + (y // 64) * (x // 48) * 7
    return facts["constructor_args"], state, ((values % 255 - 127) / 32)[None], tensors


def test_official_numbers(official):
    arguments, state, pixels, tensors = official
    encoder = from_official("mobile_sam", state, arguments)
    with torch.no_grad():
        found = encoder(pixels)[:, ::8, ::4, ::4]
        expected = tensors["out::embed"]
        assert (found - expected).abs().max() <= 1e-4 * max(1, expected.abs().max())
        found = encoder.double()(pixels.double())
    assert (found[:, ::8, ::4, ::4] - tensors["out::embed_f64"]).abs().max() <= 1e-9
    assert (found.mean((2, 3)) - tensors["out::sums_f64"]).abs().max() <= 1e-9


@pytest.mark.parametrize("config", [SMALL, SHALLOW, TWO])
@pytest.mark.parametrize("size_hw", [(64, 64), (16, 16), (80, 48), (16, 112), (96, 32)])
def test_a_plain_twin_gives_the_same(config, size_hw):
    encoder = random_tiny_vit(config)
    pixels = torch.randn(1, 3, *size_hw, dtype=torch.float64)
    with torch.no_grad():
        found = encoder(pixels)
        assert found.shape == (1, config.neck, *(side // config.patch for side in size_hw))
        assert (found - naive(encoder, pixels)).abs().max() <= 1e-10


def test_pictures_do_not_see_each_other_and_training_computes_the_same():
    encoder = random_tiny_vit()
    pixels = torch.randn(8, 3, 80, 48, dtype=torch.float64)
    with torch.no_grad():
        one_by_one = torch.cat([encoder(picture[None]) for picture in pixels])
        assert (encoder(pixels) - one_by_one).abs().max() <= 1e-12
        assert torch.equal(encoder.train()(pixels), encoder.eval()(pixels))
    # With gradients other kernels may run.
    assert (encoder.train()(pixels) - one_by_one).abs().max() <= 1e-12


def test_training_leaves_statistics_alone_and_reaches_every_parameter():
    encoder = random_tiny_vit().train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    target = torch.randn(2, SMALL.neck, 5, 3, dtype=torch.float64)
    out = encoder(torch.randn(2, 3, 80, 48, dtype=torch.float64))
    ((out - target) ** 2).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-8, name
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, before[name])


def test_gradients_are_the_twins():
    config = replace(TWO, length=LOG)
    encoder = random_tiny_vit(config)
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    pixels = torch.randn(1, 3, 24, 40, dtype=torch.float64)
    weight = torch.randn(1, 8, 3, 5, dtype=torch.float64)
    found = torch.autograd.grad((encoder(pixels) * weight).sum(), parameters)
    encoder.state_dict = lambda: (
        dict(zip(names, parameters, strict=True)) | dict(encoder.named_buffers())
    )
    twin = (naive(encoder, pixels, mobile_scale(LOG, 40)) * weight).sum()
    for name, a, b in zip(names, found, torch.autograd.grad(twin, parameters), strict=True):
        assert (a - b).abs().max() <= 1e-9 * max(1, b.abs().max()), name


def test_shapes_that_are_not_encoded():
    encoder = random_tiny_vit()
    for shape in ((3, 64, 64), (1, 3, 64, 40), (1, 4, 64, 64), (1, 3, 0, 64)):
        with pytest.raises(InputError, match="multiples of 16"):
            encoder(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("size_hw", [(16, 16), (16, 80), (80, 16), (32, 32), (96, 48)])
def test_half_precision_is_right_at_every_width(size_hw):
    config = replace(TinyViTConfig(), depths=(1, 1, 1, 1))
    wide = random_tiny_vit(config, dtype=torch.float32)
    pixels = torch.randn(2, 3, *size_hw)
    with torch.inference_mode():
        expected = wide(pixels)
        narrow = put(build_encoder(config), torch.device("cpu"), torch.bfloat16)
        narrow.load_state_dict(wide.state_dict())
        found = narrow(pixels.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            cast = wide(pixels)
    assert found.dtype == torch.bfloat16
    assert narrow.layers[0].blocks[0].conv1.bn.running_var.dtype == torch.float32
    for answer in (found.float(), cast.float()):
        assert (answer - expected).abs().mean() <= 0.03 * expected.abs().mean()
        assert (answer - expected).abs().max() <= 0.1 * expected.abs().max()


def test_a_transposed_picture_gives_the_transposed():
    encoder = random_tiny_vit()
    state = encoder.state_dict()
    for name, tensor in state.items():
        if tensor.ndim == 4:
            state[name] = tensor + tensor.transpose(2, 3)
        elif name.endswith("attention_biases"):
            side = int(tensor.shape[1] ** 0.5)
            table = tensor.unflatten(1, (side, side))
            state[name] = (table + table.transpose(1, 2)).flatten(1)
    encoder.load_state_dict(state)
    pixels = torch.randn(1, 3, 96, 208, dtype=torch.float64)
    with torch.no_grad():
        found = encoder(pixels.transpose(2, 3)).transpose(2, 3)
        assert (found - encoder(pixels)).abs().max() <= 1e-10


# Length adaptation.


@pytest.mark.parametrize(
    "length", [LOG, LengthConfig(scale="official", official_size=4096), LengthConfig(scale="none")]
)
def test_the_factor_follows_the_long_side(length):
    encoder = random_tiny_vit()
    pixels = torch.randn(1, 3, 48, 80, dtype=torch.float64)
    with torch.no_grad():
        plain = encoder(pixels)
        encoder.adapt(length)
        found = encoder(pixels)
        expected = naive(encoder, pixels, mobile_scale(length, 80))
    assert (found - expected).abs().max() <= 1e-10
    assert torch.equal(found, plain) == (length.scale == "none")


def test_the_training_length_changes_nothing():
    encoder = random_tiny_vit(TWO)
    pixels = torch.randn(1, 3, 16, 1024, dtype=torch.float64)
    with torch.no_grad():
        plain = encoder(pixels)
        encoder.adapt(LOG)
        assert torch.equal(encoder(pixels), plain)


def test_ways_that_have_no_meaning_here():
    for length in (LengthConfig(bias="distance"), LengthConfig(base=99.0)):
        with pytest.raises(InputError, match="neither a base nor a bias"):
            TinyViTConfig(length=length)
        with pytest.raises(InputError, match="neither a base nor a bias"):
            random_tiny_vit(TWO).adapt(length)


# Configurations.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": (8, 12, 16)}, "an encoder of 3 stages"),
        ({"dims": (8,), "depths": (1,), "heads": (), "windows": ()}, "an encoder of 1 stages"),
        ({"windows": (3, 4)}, "an encoder of 4 stages"),
        ({"depths": (1, 0, 1, 1)}, "are at least 1"),
        ({"dims": (1, 12, 16, 20)}, r"dims\[0\] 2"),
        ({"heads": (3, -2, 4)}, "are at least 1"),
        ({"heads": (3, 3, 4)}, "16 channels do not divide by 3 heads"),
        ({"local_conv": 4}, "must be odd"),
        ({"neck": 0}, r"TinyViTConfig\.neck is 0"),
    ],
)
def test_configurations_that_make_no_encoder(changes, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **changes)


def test_the_preset():
    config = preset("mobile_sam")
    assert (config.image_size, config.pad, config.encoder.patch) == (1024, "square", 16)
    assert (config.encoder.dim, config.encoder.blocks, config.encoder.window) == (320, 12, 14)
    with torch.device("meta"):
        parameters = build(config).parameters()
        count = sum(parameter.numel() for parameter in parameters)
    # The official model's, less those of the classifier.
    assert count == 10_130_092 - 320 * 1000 - 1000 - 2 * 320
    assert resized(config, 512).encoder.image_size == 512


def test_official_arguments(official):
    arguments = official[0]
    config = tiny_vit_config(arguments)
    assert (config.heads, config.windows, config.expand) == ((2, 2, 5), (7, 14, 7), 2.0)
    assert tiny_vit_config({}) == TinyViTConfig()
    assert sam_config({}, "mobile_sam") == preset("mobile_sam")
    for wrong, message in (
        ({"embed_dim": 8}, "TinyViT has no argument 'embed_dim'"),
        ({"num_heads": [1, 2]}, "an encoder of 4 stages"),
        ({"window_sizes": 7}, "window_sizes is 7"),
        ({"in_chans": 4}, "in_chans is 4"),
    ):
        with pytest.raises(InputError, match=message):
            tiny_vit_config(arguments | wrong)


# Checkpoints.


def leftovers(state, prefix=""):
    """What some files have besides."""
    extra = {}
    for name in state:
        stem, _, last = name.rpartition(".")
        if last == "running_var":
            extra[f"{stem}.num_batches_tracked"] = torch.tensor(7)
        if last == "attention_biases":
            extra[f"{stem}.attention_bias_idxs"] = torch.zeros(4, 4, dtype=torch.int64)
    for name in ("head", "norm_head"):
        extra |= {f"{prefix}{name}.weight": torch.ones(5), f"{prefix}{name}.bias": torch.ones(5)}
    return state | extra


ARGUMENTS = {
    "embed_dims": [8, 12, 16, 20],
    "depths": [1, 2, 1, 1],
    "num_heads": [7, 3, 2, 4],
    "window_sizes": [9, 3, 4, 2],
    "mlp_ratio": 1.5,
    "mbconv_expand_ratio": 2.5,
}


def test_an_encoder_with_and_without_leftovers():
    encoder = random_tiny_vit(replace(SMALL, neck=256), dtype=torch.float32)
    state = encoder.state_dict()
    prefixed = {f"image_encoder.{name}": tensor for name, tensor in state.items()}
    for given in (state, leftovers(state), prefixed, leftovers(prefixed, "image_encoder.")):
        found = from_official("mobile_sam", given, ARGUMENTS)
        assert found.config == encoder.config
        assert not found.training
        assert all(torch.equal(t, state[name]) for name, t in found.state_dict().items())


@pytest.mark.parametrize(
    "extra",
    [
        "layers.1.blocks.0.attn.coefficient",
        "layers.0.blocks.0.attn.attention_bias_idxs",
        "layers.4.bn.num_batches_tracked",
        "head.running_var",
        "norm.weight",
    ],
)
def test_other_names_are_errors(extra):
    state = random_tiny_vit(replace(SMALL, neck=256)).state_dict()
    with pytest.raises(WeightsError, match=rf"1 unexpected: {extra}"):
        from_official("mobile_sam", state | {extra: torch.ones(1)}, ARGUMENTS)
    del state["layers.2.blocks.0.attn.attention_biases"]
    with pytest.raises(WeightsError, match=r"1 missing: layers\.2\.blocks\.0\.attn\.attention_bi"):
        from_official("mobile_sam", state, ARGUMENTS)


def test_weights_of_another_model():
    state = random_tiny_vit(replace(SMALL, neck=256)).state_dict()
    with pytest.raises(WeightsError, match=r"mobile_sam: 12 with 320.*it has 5 blocks with 20"):
        from_official("mobile_sam", state)
    with pytest.raises(WeightsError, match="no published model"):
        from_official("sam", state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole MobileSAM with random weights, and its official file."""
    torch.manual_seed(3)
    model = build(preset("mobile_sam"))
    path = tmp_path_factory.mktemp("mobile") / "mobile_sam.pt"
    torch.save(leftovers(model.state_dict(), "image_encoder."), path)
    return model, path


def test_a_whole_checkpoint(whole, image):
    model, path = whole
    predictor = anyres.load("mobile_sam", weights=path, device="cpu", resolution=256)
    assert predictor.model.config == model.config
    assert predictor.model.dtype == torch.float32
    predictor.set_image(image)
    masks, scores, logits = predictor.predict([[70, 40]], [1])
    assert masks.shape == (3, *image.shape[:2])
    assert np.isfinite(scores).all()
    assert np.isfinite(logits).all()
    adapted = anyres.load("mobile_sam", weights=path, device="cpu", resolution=256, length=LOG)
    adapted.set_image(image)
    assert np.abs(adapted.predict([[70, 40]], [1])[2] - logits).max() > 1e-5
    assert adapted.model.config.encoder.length == LOG
    again = from_official("mobile_sam", weights.read_state_dict(path))
    assert again.config == model.config
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert load_weights("default", path).config == model.config


def test_a_whole_checkpoint_of_another_size():
    decoder = DecoderConfig(mlp=24, iou_hidden=24)
    config = ModelConfig(name="mobile_sam", encoder=replace(SMALL, neck=256), decoder=decoder)
    model = build(config)
    arguments = {
        "TinyViT": ARGUMENTS,
        "TwoWayTransformer": {"mlp_dim": 24},
        "MaskDecoder": {"iou_head_hidden_dim": 24},
    }
    found = from_official("mobile_sam", leftovers(model.state_dict(), "image_encoder."), arguments)
    assert found.config == config
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())


def test_a_file_of_another_sam(whole, tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match=r"12 blocks with 320 .*sam_vit_b has 12 with 768"):
        load_weights("sam_vit_b", whole[1])
    small = resized(preset("sam_ti"), 64)
    monkeypatch.setitem(PRESETS, "sam_vit_b", replace(small, name="sam_vit_b"))
    torch.save(build(small).state_dict(), tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match=r"12 blocks with 192 .*mobile_sam has 12 with 320"):
        load_weights("mobile_sam", tmp_path / "sam.pth")


def test_our_own_file(tmp_path):
    config = replace(
        preset("sam_ti"), encoder=replace(SMALL, neck=128, length=LOG), name="small", image_size=64
    )
    model = build(config)
    weights.save(model, tmp_path / "small.safetensors")
    found = weights.load(tmp_path / "small.safetensors")
    assert found.config == config
    pixels = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(found.encode(pixels).embedding, model.encode(pixels).embedding)
    tree = json.loads(config.to_json())
    assert tree["encoder"]["type"] == "tiny_vit"
    tree["encoder"]["heads"] = [3, 2]
    with pytest.raises(WeightsError, match="an encoder of 4 stages"):
        ModelConfig.from_json(json.dumps(tree))
