import importlib.util
import os
import resource
import sys

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from medkd.errors import DataError, ParameterError
from medkd.models.device import GIB, autocast, has_native_bfloat16, keep_freed_memory, pick_device, to_device
from medkd.models.encoders import (
    FeatureHead,
    build_feature_encoder,
    build_image_encoder,
    build_vector_encoder,
    encoder_names,
    trunk,
    trunk_width,
)
from medkd.models.resnet12 import GhostBatchNorm2d


class Attack:
    """What a pickle asks for when it is loaded without a guard."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_a_weights_file_that_runs_code_is_refused_and_not_run(tmp_path):
    torch.save({"blocks.0.weight": Attack(tmp_path / "canary")}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match=r"evil\.pt.* cannot be read as a state dict"):
        build_image_encoder("conv4", weights=tmp_path / "evil.pt")
    assert not (tmp_path / "canary").exists()


HAS_TIMM = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")
TIMM = "tf_efficientnet_lite0"
SMALL = {"resnet12": 0.125, "conv4": 0.25, "resnet18": 1.0, "mobilenet_v3_small": 1.0} | (
    {TIMM: 1.0} if HAS_TIMM else {}
)


@pytest.fixture
def without_timm(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))


@pytest.mark.parametrize("name", SMALL)
def test_images_become_features_of_the_asked_for_length(name):
    model = build_image_encoder(name, dim=10, width=SMALL[name])
    features = model(torch.rand(4, 3, 32, 32))
    assert features.shape == (4, 10)
    assert (features < 0).any() and (features > 0).any()


@pytest.mark.parametrize("name", SMALL)
def test_feature_encoder_is_centring_backbone_linear_norm_and_relu(name):
    model = build_feature_encoder(name, dim=10, width=SMALL[name]).eval()
    images = torch.rand(4, 3, 32, 32)
    head = [module for module in model.modules() if isinstance(module, FeatureHead)]
    assert len(head) == 1
    pooled = []
    handle = head[0].register_forward_hook(lambda _, args, out: pooled.append(args[0]))
    features = model(images)
    handle.remove()
    by_hand = head[0].norm(head[0].linear(pooled[0])).clamp(min=0)
    torch.testing.assert_close(features, by_hand)
    torch.testing.assert_close(model[1]((images - 0.5) / 0.5), features, atol=1e-5, rtol=1e-4)
    assert features.shape == (4, 10) and features.min() >= 0


def test_every_name_on_offer_ends_in_a_linear_layer_of_the_asked_for_length(without_timm):
    names = encoder_names()
    assert {"resnet12", "conv4", "resnet18", "densenet121", "vit_b_16"} <= set(names)
    assert not [name for name in names if name.startswith(("squeezenet", "inception", "googlenet"))]
    with torch.device("meta"):  # no memory, no random numbers
        for name in ("vgg11", "densenet121", "vit_b_16", "swin_t", "convnext_tiny", "efficientnet_b0", "maxvit_t"):
            linear = [m for m in build_image_encoder(name, dim=7).modules() if isinstance(m, nn.Linear)][-1]
            assert linear.out_features == 7


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ParameterError, match=r'unknown image encoder "resnet81"; nearest known: .*resnet18'):
        build_image_encoder("resnet81")


def test_unknown_name_says_how_to_get_timm_where_it_is_missing(without_timm):
    with pytest.raises(ParameterError, match=r'unknown .*"timm:resnet18".*resnet18.*pip install "medkd\[pretrained\]"'):
        build_image_encoder("timm:resnet18")


@needs_timm
def test_the_prefix_picks_the_library_and_torchvision_comes_first():
    names = encoder_names()
    assert len(set(names)) == len(names) and {"resnet18", TIMM, "levit_128s"} <= set(names)
    with torch.device("meta"):
        assert type(build_image_encoder("resnet18")).__module__.startswith("torchvision.")
        assert type(build_image_encoder("timm:resnet18")).__module__.startswith("timm.")
    with pytest.raises(ParameterError, match=r'unknown image encoder "timm:resnet81"; nearest known: .*resnet18'):
        build_image_encoder("timm:resnet81")


@needs_timm
def test_timm_model_whose_classifier_is_no_linear_layer_gets_ours(tmp_path):
    import timm

    published = timm.create_model("dla34", num_classes=11)  # its classifier is a 1x1 convolution
    torch.save(published.state_dict(), tmp_path / "dla34.pt")
    model = build_image_encoder("dla34", dim=7, weights=tmp_path / "dla34.pt").eval()
    images = torch.rand(2, 3, 64, 64)
    pooled = published.eval().forward_head(published.forward_features(images), pre_logits=True).flatten(1)
    torch.testing.assert_close(model(images), pooled @ model.head.weight.T + model.head.bias, atol=1e-5, rtol=1e-4)
    again = tmp_path / "ours.pt"
    torch.save(model.state_dict(), again)
    torch.testing.assert_close(build_image_encoder("dla34", dim=7, weights=again).eval()(images), model(images))


@needs_timm
def test_batch_norm_parts_keep_the_activation_that_timm_puts_into_its_norm_layers():
    plain = build_image_encoder(TIMM, dim=6)
    parts = build_image_encoder(TIMM, dim=6, bn_splits=2)
    parts.load_state_dict(plain.state_dict())
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(parts.eval()(images), plain.eval()(images))
    half = plain.train()(images[:2])  # each part is normalised as if it were the whole batch
    torch.testing.assert_close(parts.train()(images)[:2], half, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_trunk_gives_what_the_last_linear_layer_would_see(name, tmp_path):
    whole = build_image_encoder(name, dim=5, width=SMALL[name])
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    backbone, dim = trunk(name, tmp_path / "weights.pt", width=SMALL[name])
    last = [module for module in whole.modules() if isinstance(module, nn.Linear)][-1]
    seen = []
    last.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    images = torch.rand(2, 3, 32, 32)
    whole.eval()(images * 2 - 1)
    assert dim == trunk_width(name, SMALL[name]) == last.in_features
    torch.testing.assert_close(backbone.eval()(images), seen[0])


def test_a_model_that_reads_its_own_weights_when_built_has_a_trunk_width_and_draws_no_numbers():
    state = torch.get_rng_state()
    assert trunk_width("regnet_y_400mf") == trunk("regnet_y_400mf")[1] == 440
    torch.set_rng_state(state)
    trunk_width.cache_clear()
    trunk_width("regnet_y_400mf")
    assert torch.equal(torch.get_rng_state(), state)


@needs_timm
def test_a_timm_model_without_a_classifier_is_refused(monkeypatch):
    monkeypatch.setattr("timm.create_model", lambda name, **settings: torch.nn.Linear(2, 2))
    with pytest.raises(ParameterError, match='timm\'s "tf_efficientnet_lite0" has no classifier'):
        build_image_encoder(TIMM)


def test_width_of_a_torchvision_model_is_refused():
    with pytest.raises(ParameterError, match='width=0.5 has no meaning for "resnet18"'):
        build_image_encoder("resnet18", width=0.5)


def test_batch_norm_parts_reach_every_layer_of_a_torchvision_model():
    model = build_image_encoder("mobilenet_v3_small", dim=8, bn_splits=2)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    plain = build_image_encoder("mobilenet_v3_small", dim=8)
    theirs = [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(isinstance(norm, GhostBatchNorm2d) and norm.splits == 2 for norm in norms)
    assert [(norm.eps, norm.momentum) for norm in norms] == [(norm.eps, norm.momentum) for norm in theirs]
    assert model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("build", [build_image_encoder, build_feature_encoder])
def test_weights_of_a_thousand_class_model_fill_all_but_the_last_layer(build, suffix, tmp_path):
    published = torchvision.models.resnet18(num_classes=1000)
    path = tmp_path / f"resnet18{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(published.state_dict(), path)
    model = build("resnet18", dim=8, weights=path)
    backbone = model[1] if build is build_feature_encoder else model
    for key, value in published.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(
                backbone.get_buffer(key) if "running" in key or "num_b" in key else backbone.get_parameter(key), value
            )
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 8)


def test_last_layer_is_taken_too_when_it_fits(tmp_path):
    first = build_image_encoder("resnet12", dim=8, width=0.125, bn_splits=4)
    torch.save(first.state_dict(), tmp_path / "url.pt")
    second = build_image_encoder("resnet12", dim=8, width=0.125, weights=str(tmp_path / "url.pt"))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(first.eval()(images), second.eval()(images))


def test_weights_without_a_last_layer_are_enough(tmp_path):
    state = build_image_encoder("conv4", dim=8, width=0.25).state_dict()
    body = {key: value for key, value in state.items() if not key.startswith("head.")}
    torch.save(body, tmp_path / "body.pt")
    model = build_image_encoder("conv4", dim=5, width=0.25, weights=tmp_path / "body.pt")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in body.items())


def test_weights_that_do_not_fit_name_an_entry(tmp_path):
    state = build_image_encoder("conv4", width=0.25).state_dict()
    torch.save(state, tmp_path / "narrow.pt")
    with pytest.raises(DataError, match=r"do not fit .*blocks\.0\.bias"):
        build_image_encoder("conv4", width=0.5, weights=tmp_path / "narrow.pt")
    torch.save({key: value for key, value in state.items() if key != "blocks.4.bias"}, tmp_path / "hole.pt")
    with pytest.raises(DataError, match=r"1 entries .*blocks\.4\.bias"):
        build_image_encoder("conv4", width=0.25, weights=tmp_path / "hole.pt")


def test_missing_or_broken_weights_file_is_named(tmp_path):
    with pytest.raises(DataError, match="absent.pt.* is not a file"):
        build_image_encoder("conv4", weights=tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(DataError, match="text.pt.* cannot be read as a state dict"):
        build_image_encoder("conv4", weights=tmp_path / "text.pt")


def test_vector_encoder_has_the_published_number_of_weights():
    """14,483 with the classifier of three classes."""
    model = build_vector_encoder(80, dim=128)
    counted = sum(parameter.numel() for parameter in nn.Sequential(model, nn.Linear(128, 3)).parameters())
    assert counted == 14_483


def test_vector_encoder_starts_with_variance_one_over_fan_in_and_no_bias():
    linears = [m for m in build_vector_encoder(400).modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(400, 64), (64, 48), (48, 32), (32, 128)]
    assert linears[0].weight.std().item() == pytest.approx(400**-0.5, rel=0.02)  # 25,600 draws
    assert all((m.bias == 0).all() for m in linears)


def test_vector_encoder_equals_its_layers_written_out():
    model = build_vector_encoder(6, dim=9).eval()
    x = expected = torch.rand(5, 6) * 4 - 2
    for linear in (m for m in model.modules() if isinstance(m, nn.Linear)):
        z = expected @ linear.weight.T + linear.bias
        expected = torch.where(z > 0, z, z.exp() - 1)
    torch.testing.assert_close(model(x), expected.clamp(min=0))


def test_automatic_device_is_the_gpu_only_where_there_is_one():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_device_that_cannot_be_had_is_refused(name):
    with pytest.raises(ParameterError, match=f'device="{name}"'):
        pick_device(name)


def test_autocast_follows_the_asked_for_precision():
    cpu, x = torch.device("cpu"), torch.ones(2, 2)
    expected = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    expected["auto"] = torch.bfloat16 if has_native_bfloat16(cpu) else torch.float32
    for precision, dtype in expected.items():
        with autocast(cpu, precision):
            assert (x @ x).dtype == dtype
    with pytest.raises(ParameterError, match='precision="half" is unknown'):
        autocast(cpu, "half")


@pytest.mark.parametrize(("has", "native"), [("avx512_f", False), ("avx512_bf16", True), ("amx_bf16", True)])
def test_a_cpu_that_would_emulate_bfloat16_trains_in_float32(monkeypatch, has, native):
    """oneDNN emulates it on every CPU with AVX-512: a step took 2.7 times as long as in float32."""
    names = ("avx512_f", "avx512_bf16", "amx_bf16", "cpu_name")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: name == has for name in names})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert has_native_bfloat16(torch.device("cpu")) is native


def test_moved_model_has_channels_last_weights():
    model = to_device(build_image_encoder("conv4", width=0.25), torch.device("cpu"))
    assert model.blocks[4].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_mixed_precision_training_step_gives_finite_gradients_close_to_float32(precision):
    images = torch.rand(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model = to_device(build_image_encoder("resnet12", dim=6, width=0.125, bn_splits=2), torch.device("cpu"))
    with autocast(torch.device("cpu"), precision):
        features = model(images)
    features.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with autocast(torch.device("cpu"), precision):
        mixed = model.eval()(images).float()
    # bfloat16 has 8 significant bits; twelve layers leave a few per cent
    assert (mixed - model(images)).norm() <= 0.05 * model(images).norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_features_equal_those_of_the_cpu():
    model = build_image_encoder("resnet12", dim=6, width=0.125).eval()
    images = torch.rand(4, 3, 32, 32)
    expected = model(images)
    torch.testing.assert_close(
        to_device(model, torch.device("cuda"))(images.cuda()).cpu(), expected, atol=1e-3, rtol=1e-2
    )


def test_a_vector_of_another_length_is_refused_in_one_sentence():
    encoder = build_vector_encoder(80)
    with pytest.raises(DataError, match=r"built for vectors of 80 numbers, shape \(n, 80\), and got \(4, 46\)"):
        encoder(torch.zeros(4, 46))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_blocks_that_were_freed_are_taken_again_without_new_pages():
    def n_faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.zeros(50 << 18)  # 50 MiB, which glibc maps anew each time
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    try:
        keep_freed_memory(32 << 20)
        given_back = n_faults()
        keep_freed_memory()
        torch.zeros(50 << 18)
        assert n_faults() < given_back / 5
    finally:
        keep_freed_memory(GIB)
