"""Checkpoints: our own, official ones, and everything that only looks like one."""

import copy
import io
import json
import pickle
import struct
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from anyres.errors import InputError, WeightsError
from anyres.models import official, presets, reading, weights
from anyres.models.build import build, build_encoder
from anyres.models.config import DecoderConfig, HRSAMConfig, ModelConfig, ViTConfig
from anyres.models.official import hrsam_config, hrsam_model_config, sam_config, vit_config
from anyres.models.presets import preset
from anyres.models.weights import from_official, load_weights, segmenter_from_official

DECODER = DecoderConfig(dim=16, heads=2, mlp=24, iou_hidden=24)
TINY_SAM = ModelConfig(
    name="tiny",
    encoder=ViTConfig(
        dim=32, blocks=2, heads=2, global_blocks=(1,), window=3, image_size=64, neck=16
    ),
    decoder=DECODER,
    image_size=64,
    pixel_mean=(1.5, 2.5, 3.5),
)
TINY_HRSAM = ModelConfig(
    name="tiny_hrsam",
    encoder=HRSAMConfig(
        dim=32, blocks=2, heads=2, window=4, state=4, out_blocks=(0, 1), neck=16, table=4
    ),
    decoder=DECODER,
    image_size=64,
)
# The official constructors' arguments for TINY_SAM.
ENCODER_ARGUMENTS = {
    "img_size": 64,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "out_chans": 16,
    "use_rel_pos": True,
    "window_size": 3,
    "global_attn_indexes": [1],
}
ARGUMENTS = {
    "ImageEncoderViT": ENCODER_ARGUMENTS,
    "TwoWayTransformer": {"depth": 2, "num_heads": 2, "mlp_dim": 24},
    "MaskDecoder": {"iou_head_hidden_dim": 24},
    "Sam": {"pixel_mean": [1.5, 2.5, 3.5]},
}


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build(TINY_SAM)


@pytest.fixture(scope="module")
def saved(sam, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sam.safetensors"
    weights.save(sam, path)
    return path


@pytest.fixture
def tiny_presets(monkeypatch):
    """The published SAMs, but small: one wider and one deeper than the other."""
    encoder = TINY_SAM.encoder
    small = {
        "sam_vit_b": replace(TINY_SAM, name="sam_vit_b"),
        "sam_vit_l": replace(
            TINY_SAM, name="sam_vit_l", encoder=replace(encoder, dim=48, blocks=3, heads=3)
        ),
        "hrsam_b": replace(TINY_HRSAM, name="hrsam_b"),
    }
    for name, config in small.items():
        monkeypatch.setitem(presets.PRESETS, name, config)
    return small


# Our own files.


@pytest.mark.parametrize("config", [TINY_SAM, TINY_HRSAM, preset("hrsam_xs"), preset("default")])
def test_our_own_come_back_bit_for_bit(tmp_path, config):
    model = build(config).train()
    path = tmp_path / "model.safetensors"
    weights.save(model, path)
    state = torch.random.get_rng_state()
    found = weights.load(path)
    assert found.config == config
    assert same_weights(model, found)
    assert not found.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


def test_what_a_model_was_trained_on_lies_in_the_metadata(tmp_path):
    model, path = build(TINY_HRSAM), tmp_path / "model.safetensors"
    model.trained_on = {"DUTS-TR": [], "photos": ["89ab", "0123"]}
    weights.save(model, path)
    assert weights.load(path).trained_on == {"DUTS-TR": [], "photos": ["0123", "89ab"]}
    assert copy.deepcopy(weights.load(path)).trained_on == weights.load(path).trained_on


@pytest.mark.parametrize("text", ["DUTS", '["DUTS"]', '{"DUTS": 1}', '{"DUTS": [1]}'])
def test_a_broken_list_of_training_sets_is_an_error(saved, tmp_path, text):
    state, metadata = reading.read_safetensors(saved)
    path = tmp_path / "model.safetensors"
    save_file(state, path, metadata | {"trained_on": text})
    with pytest.raises(WeightsError, match=r"model\.safetensors: its trained_on is "):
        weights.load(path)


def test_the_configuration_lies_in_the_metadata_as_json(saved):
    content = saved.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    facts = header["__metadata__"]
    assert list(facts) == ["anyres.config", "anyres.format"]  # of itself the order would vary
    assert json.loads(facts["anyres.config"])["encoder"]["type"] == "vit"
    assert facts["anyres.format"] == "1"


def test_a_smaller_precision_in_the_file_is_float32_again(sam, tmp_path):
    path = tmp_path / "half.safetensors"
    weights.save(sam, path, dtype=torch.bfloat16)
    found = weights.load(path)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    for name, tensor in sam.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.bfloat16().float())
    assert path.stat().st_size < 0.6 * sum(4 * p.numel() for p in sam.parameters())


def test_a_failed_save_leaves_the_file_as_it_was(sam, saved, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved.read_bytes())
    broken = build(TINY_SAM)
    with torch.no_grad():
        broken.mask_decoder.iou_token.weight[0, 3] = float("nan")
    with pytest.raises(WeightsError, match=r"not finite .*mask_decoder\.iou_token\.weight"):
        weights.save(broken, path)
    large = build(TINY_SAM)
    nn.init.constant_(large.mask_decoder.iou_token.weight, 1e6)
    with pytest.raises(WeightsError, match="not finite"):
        weights.save(large, path, dtype=torch.float16)
    assert path.read_bytes() == saved.read_bytes()


def rewritten(saved, path, **metadata):
    """A copy of a file with other metadata."""
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        facts = file.metadata() | metadata
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {k: v for k, v in facts.items() if v})
    return path


def test_files_of_later_versions_and_other_programs(saved, tmp_path):
    path = tmp_path / "later.safetensors"
    with pytest.raises(WeightsError, match=r"format 2.*reads 1: install"):
        weights.load(rewritten(saved, path, **{"anyres.format": "2"}))
    with pytest.raises(WeightsError, match=r"no file of anyres.*from_official"):
        weights.load(rewritten(saved, path, **{"anyres.config": ""}))
    with pytest.raises(WeightsError, match=r"later\.safetensors: the model configuration"):
        weights.load(rewritten(saved, path, **{"anyres.config": "{]"}))
    strange = TINY_SAM.to_json().replace('"neck": 16', '"neck": 32')
    with pytest.raises(WeightsError, match=r"gives 32 channels and the decoder takes 16"):
        weights.load(rewritten(saved, path, **{"anyres.config": strange}))
    for wrong in ('"heads": 0', '"heads": -2', '"heads": "2"', '"heads": 99', '"heads": null'):
        strange = TINY_SAM.to_json().replace('"heads": 2', wrong, 1)
        with pytest.raises(WeightsError, match=r"later\.safetensors: "):
            weights.load(rewritten(saved, path, **{"anyres.config": strange}))


def test_no_official_file_is_taken_for_ours(sam, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(sam.state_dict(), path)
    with pytest.raises(WeightsError, match="no file of anyres"):
        weights.load(path)


# Files that are damaged or something else.


class Code:
    def __reduce__(self):
        return print, ("this must never be run",)


def png():
    content = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


def archive(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, b"\x80\x02}q\x00." if name.endswith(".pkl") else b"text")
    return content.getvalue()


def torch_bytes(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


STATE = {"a.weight": torch.ones(8, 8), "a.bias": torch.zeros(8)}
OURS = "model.safetensors"
THEIRS = "model.pth"
FOREIGN = {
    "nothing": (b"", r"is empty: download or copy it again"),
    "zeros": (bytes(500), r"begins with zeros"),
    "one byte": (b"\x80", "no checkpoint"),
    "text": (b"this is text, and much of it", r"no checkpoint.*\.safetensors files and those"),
    "picture": (png(), "but a PNG picture"),
    "page": (b"<!DOCTYPE html><html>Sign in</html>", "a web page: the download failed"),
    "large file": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(40), "unpack it"),
    "zip": (archive("readme.txt"), "a zip archive but no PyTorch checkpoint"),
    "empty archive of torch": (
        archive("model/data.pkl", "model/version"),
        r"no state dict|damaged",
    ),
    "pickle": (pickle.dumps({"a": [1, 2]}), r"is damaged or no PyTorch checkpoint"),
    "pickle with code": (pickle.dumps({"a": Code()}), r"damaged or no PyTorch|more than tensors"),
    "torch with code": (torch_bytes({"a": Code()}), r"holds more than tensors \(.*print\)"),
    "old torch with code": (
        torch_bytes({"a": Code()}, _use_new_zipfile_serialization=False),
        r"holds more than tensors \(.*print\)",
    ),
    "module": (torch_bytes(nn.Linear(2, 2)), r"holds more than tensors \(torch\.nn.*Linear\)"),
    "list": (torch_bytes([torch.ones(2)]), "holds a list and no state dict"),
    "numbers": (
        torch_bytes({"epoch": 3, "loss": 0.5}),
        "no state dict: epoch, loss are no tensors",
    ),
    "empty dict": (torch_bytes({}), "it is empty"),
    "two state dicts": (
        torch_bytes({"model": STATE, "ema": STATE}),
        r"holds 2 state dicts \('model', 'ema'\)",
    ),
}


@pytest.mark.parametrize("name", [OURS, THEIRS])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint(tmp_path, capsys, kind, name):
    content, message = FOREIGN[kind]
    path = tmp_path / name
    path.write_bytes(content)
    if kind in ("text", "one byte") and name == OURS:
        message = r"no \.safetensors file, or its header is damaged"
    for read in (weights.read_state_dict, partial(load_weights, "sam_vit_b")):
        with pytest.raises(WeightsError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
    with pytest.raises(WeightsError):
        weights.load(path)
    assert "never be run" not in capsys.readouterr().out


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(WeightsError, match="there are no weights at"):
        weights.load(tmp_path / "missing.safetensors")
    with pytest.raises(WeightsError, match="is a folder"):
        weights.read_state_dict(tmp_path)


@pytest.mark.parametrize("keep", [1, 7, 8, 9, 200, 0.3, 0.9, -1])
@pytest.mark.parametrize("kind", ["ours", "theirs", "old"])
def test_a_file_that_ends_too_early(sam, saved, tmp_path, kind, keep):
    if kind == "ours":
        content = saved.read_bytes()
    else:
        content = torch_bytes(sam.state_dict(), _use_new_zipfile_serialization=kind == "theirs")
    length = int(keep * len(content)) if isinstance(keep, float) else keep
    path = tmp_path / (OURS if kind == "ours" else THEIRS)
    path.write_bytes(content[:length])
    with pytest.raises(WeightsError, match=r"again|no checkpoint") as caught:
        load_weights("default", path)
    assert str(path) in str(caught.value)


def test_a_header_with_one_byte_wrong_never_gives_another_model(sam, saved, tmp_path):
    content = bytearray(saved.read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    path = tmp_path / OURS
    refused = 0
    for at in [*range(10), *range(10, end, 97)]:
        for flip in (0x01, 0x80):
            content[at] ^= flip
            path.write_bytes(content)
            content[at] ^= flip
            try:
                found = weights.load(path)
            except WeightsError:
                refused += 1
                continue
            # A digit of a number that weights do not depend on.
            assert same_weights(found, sam)
    assert refused > 100


def test_tensors_of_torch_in_any_wrapping(sam, tmp_path):
    state = sam.state_dict()
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    trainer = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    for content in (state, {"model": state}, {"state_dict": parallel, **trainer}, parallel):
        for options in ({}, {"_use_new_zipfile_serialization": False}):
            path = tmp_path / "model.anything"
            path.write_bytes(torch_bytes(content, **options))
            found = from_official("sam", weights.read_state_dict(path), ARGUMENTS)
            assert same_weights(found, sam)
            assert found.config.pixel_mean == (1.5, 2.5, 3.5)


# State dicts of the official code.


def test_a_whole_sam_is_a_segmenter_and_its_encoder_an_encoder(sam):
    state = sam.state_dict()
    found = from_official("sam", state, ARGUMENTS)
    assert same_weights(found, sam)
    assert replace(found.config, name="tiny") == TINY_SAM
    with_prefix = {n: t for n, t in state.items() if n.startswith("image_encoder.")}
    plain = {n.removeprefix("image_encoder."): t for n, t in with_prefix.items()}
    for part in (with_prefix, plain):
        for arguments in (ENCODER_ARGUMENTS, ARGUMENTS):
            encoder = from_official("sam", part, arguments)
            assert same_weights(encoder, sam.image_encoder)
            assert not encoder.training
    odd = replace(TINY_SAM.encoder, neck=10)
    arguments = ENCODER_ARGUMENTS | {"out_chans": 10}  # no decoder here would take 10 channels
    assert from_official("sam", build_encoder(odd).state_dict(), arguments).config == odd
    # A copy: what is done to the model later is not done to the state dict.
    with torch.no_grad():
        encoder.pos_embed.zero_()
    assert state["image_encoder.pos_embed"].abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "name", "part", "case"),
    [
        ("hrsam", "hrsam_encoder", "HRSAMViT", "128x192_b1"),
        ("hrsam++", "hrsam_plusplus_encoder", "HRSAMPlusPlusViT", "160x128_b2"),
    ],
)
def test_hrsam_encoders(golden, kind, name, part, case):
    facts, tensors = golden(name)
    state = {name: tensor for name, tensor in tensors.items() if "::" not in name}
    encoder = from_official(kind, state, facts["constructor_args"])
    wrapped = from_official(
        kind,
        {f"backbone.{name}": tensor for name, tensor in state.items()},
        {part: facts["constructor_args"]},
    )
    assert same_weights(encoder, wrapped)
    with torch.no_grad():
        found = encoder(tensors[f"in::{case}::image_i8"] / 32)
    assert (found - tensors[f"out::{case}::embed"]).abs().max() <= 1e-4


def test_a_whole_hrsam_plus_plus(golden):
    facts, tensors = golden("hrsam_prompt_decoder")
    encoder = golden("hrsam_plusplus_encoder")
    state = {name: tensor for name, tensor in tensors.items() if "::" not in name}
    state |= {f"backbone.{n}": t for n, t in encoder[1].items() if "::" not in n}
    arguments = facts["constructor_args"] | {"HRSAMPlusPlusViT": encoder[0]["constructor_args"]}
    model = segmenter_from_official("hrsam++", state, arguments)
    assert (model.config.bgr, model.config.pad) == (True, "square")
    assert (model.config.encoder.anchor, model.config.encoder.shift_anchor) == (64, True)
    with torch.no_grad():
        pixels = encoder[1]["in::128x128_b2::image_i8"] / 32
        found = model.encode(pixels).embedding
    assert (found - encoder[1]["out::128x128_b2::embed"]).abs().max() <= 1e-4
    del state["backbone.ms_mamba_blocks.1.Ds"]
    with pytest.raises(WeightsError, match=r"1 missing: backbone\.ms_mamba_blocks\.1\.Ds"):
        segmenter_from_official("hrsam++", state, arguments)


def test_every_name_that_is_missing_or_unexpected_or_of_another_shape_is_told(sam):
    state = dict(sam.state_dict())
    del state["image_encoder.blocks.1.norm2.bias"]
    del state["mask_decoder.mask_tokens.weight"]
    state["image_encoder.blocks.1.attn.coefficient"] = torch.ones(1)
    state["prompt_encoder.no_mask_embed.weight"] = torch.ones(1, 17)
    with pytest.raises(WeightsError) as caught:
        from_official("sam", state, ARGUMENTS)
    message = str(caught.value)
    assert (
        "2 missing: image_encoder.blocks.1.norm2.bias, mask_decoder.mask_tokens.weight" in message
    )
    assert "1 unexpected: image_encoder.blocks.1.attn.coefficient" in message
    assert "prompt_encoder.no_mask_embed.weight is 1x17 and not 1x16" in message


@pytest.mark.parametrize("name", list(build(TINY_SAM).state_dict()))
def test_any_name_alone(sam, name):
    state = dict(sam.state_dict())
    state[f"{name}_"] = state.pop(name)
    with pytest.raises(WeightsError, match=rf"1 missing: {name}\. 1 unexp|1 missing: {name}; 1"):
        from_official("sam", state, ARGUMENTS)


def test_very_many_names_are_counted(sam):
    state = {f"{name}_": tensor for name, tensor in sam.image_encoder.state_dict().items()}
    with pytest.raises(WeightsError, match=rf"{len(state)} missing: .* and {len(state) - 20} more"):
        from_official("sam", state, ENCODER_ARGUMENTS)


def test_hrsam_errors_use_the_names_in_the_file(golden):
    facts, tensors = golden("hrsam_prompt_decoder")
    encoder = golden("hrsam_encoder")
    state = {name: tensor for name, tensor in tensors.items() if "::" not in name}
    state |= {f"backbone.{n}": t for n, t in encoder[1].items() if "::" not in n}
    del state["neck.point_embeds.2.weight"]
    arguments = facts["constructor_args"] | {"HRSAMViT": encoder[0]["constructor_args"]}
    with pytest.raises(WeightsError, match=r"1 missing: neck\.point_embeds\.2\.weight"):
        segmenter_from_official("hrsam", state, arguments)


def test_a_whole_hrsam_is_no_encoder():
    state = {"backbone.pos_embed": torch.ones(1), "neck.no_mask_embed.weight": torch.ones(1)}
    with pytest.raises(InputError, match="segmenter_from_official"):
        from_official("hrsam", state)


def test_weights_that_are_no_weights(sam):
    state = dict(sam.state_dict())
    state["image_encoder.pos_embed"] = torch.full_like(state["image_encoder.pos_embed"], torch.inf)
    with pytest.raises(WeightsError, match=r"not finite .*: image_encoder\.pos_embed;"):
        from_official("sam", state, ARGUMENTS)
    state["image_encoder.pos_embed"] = torch.zeros(1, 4, 4, 32, dtype=torch.int64)
    with pytest.raises(WeightsError, match=r"image_encoder\.pos_embed is int64 1x4x4x32 and not"):
        from_official("sam", state, ARGUMENTS)
    state["image_encoder.pos_embed"] = [1.0]
    with pytest.raises(WeightsError, match=r"image_encoder\.pos_embed are no tensors"):
        from_official("sam", state, ARGUMENTS)
    with pytest.raises(WeightsError, match="empty"):
        from_official("sam", {}, ARGUMENTS)


@pytest.mark.parametrize("kind", ["mobile-sam", "sam2"])
def test_kinds_that_are_not_there(kind):
    with pytest.raises(InputError, match=r"there are: 'sam', 'mobile_sam', 'hrsam'"):
        from_official(kind, {"a": torch.ones(1)})
    with pytest.raises(InputError, match=r"there are: 'sam', 'mobile_sam', 'hrsam'"):
        segmenter_from_official(kind, {"a": torch.ones(1)})
    with pytest.raises(InputError, match="from_official"):
        segmenter_from_official("sam", {"a": torch.ones(1)})


# Constructor arguments.

WHOLE = {
    "ImageEncoderViT": ENCODER_ARGUMENTS
    | {
        "in_chans": 3,
        "qkv_bias": True,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
        "act_layer": nn.GELU,
        "rel_pos_zero_init": False,
    },
    "PromptEncoder": {
        "embed_dim": 16,
        "image_embedding_size": (4, 4),
        "input_image_size": [64, 64],
        "mask_in_chans": 16,
        "activation": nn.GELU,
    },
    "TwoWayTransformer": {
        "depth": 2,
        "embedding_dim": 16,
        "mlp_dim": 24,
        "num_heads": 2,
        "activation": nn.ReLU,
        "attention_downsample_rate": 2,
    },
    "MaskDecoder": {
        "num_multimask_outputs": 3,
        "transformer_dim": 16,
        "iou_head_depth": 3,
        "iou_head_hidden_dim": 24,
    },
    "Sam": {"pixel_mean": [1.5, 2.5, 3.5], "pixel_std": [58.395, 57.12, 57.375]},
}


def test_all_official_arguments_are_read():
    assert replace(sam_config(WHOLE), name="tiny") == TINY_SAM
    assert replace(sam_config(ARGUMENTS), name="tiny") == TINY_SAM


def test_published_sizes_are_presets_again():
    for name, blocks in (("sam_vit_b", [2, 5, 8, 11]), ("sam_vit_h", [7, 15, 23, 31])):
        encoder = preset(name).encoder
        arguments = {
            "embed_dim": encoder.dim,
            "depth": encoder.blocks,
            "num_heads": encoder.heads,
            "use_rel_pos": True,
            "window_size": 14,
            "global_attn_indexes": blocks,
            "norm_layer": "partial(torch.nn.LayerNorm, eps=1e-6)",
        }
        assert sam_config(arguments) == preset(name)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("ImageEncoderViT", "image_size", 64, "ImageEncoderViT has no argument 'image_size'"),
        ("ImageEncoderViT", "thd", False, "no argument 'thd'"),
        ("ImageEncoderViT", "img_size", "64", "img_size is '64'"),
        ("ImageEncoderViT", "depth", 0, "depth is 0"),
        ("ImageEncoderViT", "depth", True, "depth is True"),
        ("ImageEncoderViT", "window_size", -1, "window_size is -1"),
        ("ImageEncoderViT", "mlp_ratio", float("nan"), "mlp_ratio is nan"),
        ("ImageEncoderViT", "use_abs_pos", 1, "use_abs_pos is 1"),
        ("ImageEncoderViT", "num_heads", 3, "32 channels do not divide by its 3 heads"),
        ("ImageEncoderViT", "in_chans", 4, "in_chans is 4; anyres reads 3"),
        ("ImageEncoderViT", "qkv_bias", False, "anyres reads True"),
        ("ImageEncoderViT", "global_attn_indexes", [1.0], "a sequence of whole numbers"),
        ("ImageEncoderViT", "norm_layer", nn.LayerNorm, "a LayerNorm with eps 1e-06"),
        ("ImageEncoderViT", "norm_layer", "LayerNorm(eps=1e-5)", "a LayerNorm with eps 1e-06"),
        ("ImageEncoderViT", "norm_layer", nn.BatchNorm2d, "a LayerNorm with eps 1e-06"),
        ("ImageEncoderViT", "act_layer", nn.ReLU, "anyres reads GELU"),
        ("PromptEncoder", "input_image_size", [64, 32], r"anyres reads \(64, 64\)"),
        ("PromptEncoder", "dim", 16, "PromptEncoder has no argument 'dim'"),
        ("TwoWayTransformer", "embedding_dim", 32, "anyres reads 16"),
        ("TwoWayTransformer", "num_heads", 3, "16 channels do not divide by twice its 3 heads"),
        ("MaskDecoder", "transformer_dim", 8, "anyres reads 16"),
        ("MaskDecoder", "transformer", nn.Identity(), "no argument 'transformer'"),
        ("Sam", "pixel_std", [1.0], "three numbers"),
    ],
)
def test_official_arguments_that_cannot_be_read(part, name, value, message):
    arguments = WHOLE | {part: WHOLE[part] | {name: value}}
    with pytest.raises(InputError, match=message):
        sam_config(arguments)


def test_arguments_that_are_none():
    with pytest.raises(InputError, match="no argument 'ImageEncoder'"):
        sam_config(WHOLE | {"ImageEncoder": {}})
    with pytest.raises(InputError, match="a dict of names and values"):
        sam_config({"ImageEncoderViT": [1]})
    with pytest.raises(InputError, match="a dict of names and values"):
        from_official("hrsam", {"a": torch.ones(1)}, [("img_size", 64)])
    with pytest.raises(InputError, match="no argument 'ImageEncoderViT'"):
        from_official("hrsam", {"a": torch.ones(1)}, {"HRSAMViT": {}, "ImageEncoderViT": {}})
    with pytest.raises(InputError, match="no argument 'downsample_sizes'"):
        hrsam_config({"downsample_sizes": [64]})
    with pytest.raises(InputError, match="a sequence of one size"):
        hrsam_config({"downsample_sizes": [64, 32]}, "hrsam++")
    with pytest.raises(InputError, match="out_blocks"):
        hrsam_config({"depth": 4, "out_indices": [1, 4]})
    with pytest.raises(InputError, match="input_image_size"):
        hrsam_model_config({"SAMPromptEncoder": {"input_image_size": [64, 128]}})


def test_official_defaults_are_those_of_the_constructors():
    assert vit_config({}) == ViTConfig(window=0, global_blocks=(), relative_positions=False)
    published = hrsam_model_config({})
    assert replace(published.encoder, positions="crop") == preset("hrsam_b").encoder
    assert (published.name, published.image_size, published.bgr) == ("hrsam_b", 1024, True)
    joint = hrsam_model_config({}, "hrsam++").encoder
    assert joint == replace(published.encoder, anchor=512, shift_anchor=True)


# Files for a model asked for by its name.


def official_file(path, config):
    torch.manual_seed(1)
    model = build(config)
    torch.save(model.state_dict(), path)
    return model


def test_a_named_model_and_any_file_of_it(tiny_presets, tmp_path):
    for name in ("sam_vit_b", "sam_vit_l"):
        path = tmp_path / f"{name}.pth"
        model = official_file(path, tiny_presets[name])
        plain = tmp_path / f"{name}.safetensors"
        save_file(model.state_dict(), plain)
        own = tmp_path / f"{name}_own.safetensors"
        weights.save(model, own)
        for file in (path, plain, own):
            for asked in (name, "default"):
                found = load_weights(asked, file)
                assert same_weights(found, model)
                assert found.config == tiny_presets[name]
        encoder = from_official("sam", model.image_encoder.state_dict())
        assert same_weights(encoder, model.image_encoder)
    with pytest.raises(InputError, match="no model is called"):
        load_weights("sam_vit_x", path)


def test_files_of_another_model(tiny_presets, tmp_path):
    path = tmp_path / "l.pth"
    model = official_file(path, tiny_presets["sam_vit_l"])
    with pytest.raises(
        WeightsError, match=r"l\.pth: .* 3 blocks with 48 .* sam_vit_b has 2 with 32"
    ):
        load_weights("sam_vit_b", path)
    own = tmp_path / "own.safetensors"
    weights.save(model, own)
    with pytest.raises(WeightsError, match=r"holds the model 'sam_vit_l' and not 'sam_vit_b'"):
        load_weights("sam_vit_b", own)
    encoder = tmp_path / "encoder.pth"
    torch.save(model.image_encoder.state_dict(), encoder)
    with pytest.raises(WeightsError, match=r"no whole model.*There are pos_embed.*from_official"):
        load_weights("sam_vit_l", encoder)
    strange = dict(model.state_dict())
    strange["image_encoder.pos_embed"] = torch.zeros(1, 8, 8, 48)
    torch.save(strange, path)
    with pytest.raises(WeightsError, match=r"l\.pth: .*pos_embed is 1x8x8x48 and not 1x4x4x48"):
        load_weights("sam_vit_l", path)
    narrow = build_encoder(replace(TINY_SAM.encoder, dim=20)).state_dict()
    with pytest.raises(WeightsError, match=r"sam_vit_l: 3 with 48.*it has 2 blocks with 20"):
        from_official("sam", narrow)
    with pytest.raises(WeightsError, match="it has no image encoder"):
        from_official("hrsam", {"a": torch.ones(1)})


def test_a_named_hrsam_and_its_official_file(tiny_presets, tmp_path, monkeypatch):
    config = replace(
        tiny_presets["hrsam_b"],
        encoder=replace(TINY_HRSAM.encoder, positions="stretch"),
        decoder=replace(DECODER, positions="stretch"),
    )
    model = build(config)
    monkeypatch.setattr(official, "hrsam_model_config", lambda *_: config)
    state = {
        next(t + n.removeprefix(o) for t, o in official.HRSAM_NAMES if n.startswith(o)): tensor
        for n, tensor in model.state_dict().items()
    }
    path = tmp_path / "hrsam.pth"
    torch.save({"state_dict": state, "meta": {"epoch": 3}}, path)
    assert same_weights(load_weights("hrsam_b", path), model)
    with pytest.raises(WeightsError, match="holds the model 'hrsam_b' and not 'sam_vit_b'"):
        load_weights("sam_vit_b", path)
