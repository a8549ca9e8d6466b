import pytest
import torch
from torch.nn import functional as F

from medkd.errors import ParameterError
from medkd.models.fusion import FUSIONS, BilinearFusion, ConcatFusion, LowRankFusion

DIM1, DIM2, OUT = 4, 3, 5


def inputs(n=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, DIM1, generator=generator), torch.randn(n, DIM2, generator=generator)


@pytest.mark.parametrize("skip", [False, True])
def test_bilinear_fusion_equals_the_formula_one_sample_at_a_time(skip):
    fusion, (x1, x2) = BilinearFusion(DIM1, DIM2, OUT, skip=skip).eval(), inputs()
    one = torch.ones(1)
    for u, v, found in zip(x1.relu(), x2.relu(), fusion(x1, x2), strict=True):
        gate1 = torch.einsum("i,kij,j->k", u, fusion.linear_z1.weight, v) + fusion.linear_z1.bias
        gate2 = torch.einsum("i,kij,j->k", u, fusion.linear_z2.weight, v) + fusion.linear_z2.bias
        o1 = torch.cat([fusion.linear_o1[0](gate1.sigmoid() * fusion.linear_h1[0](u).relu()).relu(), one])
        o2 = torch.cat([fusion.linear_o2[0](gate2.sigmoid() * fusion.linear_h2[0](v).relu()).relu(), one])
        # fresh batch norms divide by sqrt(1 + eps) only
        first = (fusion.encoder1[0](torch.outer(o1, o2).flatten()) / (1 + 1e-5) ** 0.5).relu()
        seen = torch.cat([first, o1, o2]) if skip else first
        expected = (fusion.encoder2[0](seen) / (1 + 1e-5) ** 0.5).relu()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_gmcd_sizes_have_the_published_number_of_parameters():
    assert sum(p.numel() for p in BilinearFusion(128, 128, 128).parameters()) == 6_407_808


def test_linear_weights_start_with_variance_one_over_fan_in():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fusion = BilinearFusion(64, 64, 64)
    weight = fusion.encoder1[0].weight
    assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.02)
    assert fusion.encoder1[0].bias.abs().max() == 0


@pytest.mark.parametrize("fusion_class", FUSIONS.values())
def test_output_is_non_negative_and_depends_on_both_inputs(fusion_class):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        fusion = fusion_class(DIM1, DIM2, OUT, dropout=0.0)
    x1, x2 = (x.abs().requires_grad_() for x in inputs())
    out = fusion(x1, x2)
    assert out.shape == (6, OUT) and out.min() >= 0
    (out * torch.arange(OUT)).sum().backward()
    assert x1.grad.abs().sum() > 0 and x2.grad.abs().sum() > 0


def test_concat_fusion_is_one_encoder_on_both_inputs():
    fusion, (x1, x2) = ConcatFusion(DIM1, DIM2, OUT).eval(), inputs()
    linear = fusion.encoder1[0]
    expected = F.linear(torch.cat([x1, x2], 1), linear.weight, linear.bias).div((1 + 1e-5) ** 0.5).relu()
    torch.testing.assert_close(fusion(x1, x2), expected)


def test_low_rank_fusion_equals_the_full_weight_tensor_on_the_outer_product():
    fusion, (x1, x2) = LowRankFusion(DIM1, DIM2, OUT, rank=3).eval(), inputs()
    torch.nn.init.normal_(fusion.bias)
    tensor = torch.zeros(OUT, DIM1 + 1, DIM2 + 1)
    for w, u, v in zip(fusion.weight, fusion.factor1, fusion.factor2, strict=True):
        for k in range(OUT):
            tensor[k] += w * torch.outer(u[k], v[k])
    for a, b, found in zip(x1, x2, fusion(x1, x2), strict=True):
        product = torch.outer(torch.cat([a, torch.ones(1)]), torch.cat([b, torch.ones(1)]))
        mixed = (tensor * product).sum(dim=(1, 2)) + fusion.bias
        expected = (mixed / (1 + 1e-5) ** 0.5).relu()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_low_rank_fusion_refuses_rank_zero():
    with pytest.raises(ParameterError, match="rank=0"):
        LowRankFusion(DIM1, DIM2, OUT, rank=0)


def test_dropout_acts_in_training_only():
    fusion, (x1, x2) = BilinearFusion(DIM1, DIM2, OUT, dropout=0.5), inputs()
    assert torch.equal(fusion.eval()(x1, x2), fusion(x1, x2))
    fusion.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(fusion(x1, x2), fusion(x1, x2))
