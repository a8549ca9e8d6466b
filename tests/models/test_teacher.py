import pytest
import torch
from torch import nn

from medkd.models.encoders import build_feature_encoder, build_vector_encoder
from medkd.models.teacher import MultimodalTeacher, SingleModalityNet

DIM, N_CLASSES = 8, 3


class MeanFusion(nn.Module):
    """A stand-in: the mean of both features."""

    def forward(self, first, second):
        return (first + second) / 2


def image_encoder():
    return build_feature_encoder("resnet12", dim=DIM, width=0.125)


def vector_encoder():
    return build_vector_encoder(5, dim=DIM)


IMAGES, VECTORS = torch.linspace(0, 1, 4 * 3 * 32 * 32).reshape(4, 3, 32, 32), torch.linspace(-2, 2, 20).reshape(4, 5)


def test_single_network_scores_its_own_features():
    net = SingleModalityNet(image_encoder(), DIM, N_CLASSES).eval()
    output = net(IMAGES)
    torch.testing.assert_close(output.features, net.encoder(IMAGES))
    by_hand = output.features @ net.classifier.weight.T + net.classifier.bias
    torch.testing.assert_close(output.logits, by_hand)
    assert output.logits.shape == (4, N_CLASSES)


@pytest.mark.parametrize("slots", ["image_vector", "vector_image", "image_image", "vector_vector"])
def test_either_slot_takes_an_image_or_a_vector(slots):
    encoders, inputs = {"image": image_encoder, "vector": vector_encoder}, {"image": IMAGES, "vector": VECTORS}
    main, second = slots.split("_")
    teacher = MultimodalTeacher(encoders[main](), encoders[second](), MeanFusion(), DIM, N_CLASSES).eval()
    output = teacher(inputs[main], inputs[second])
    torch.testing.assert_close(output.main, teacher.main.encoder(inputs[main]))
    torch.testing.assert_close(output.second, teacher.second.encoder(inputs[second]))
    torch.testing.assert_close(output.fused, (output.main + output.second) / 2)


def test_each_head_reads_its_own_branch():
    teacher = MultimodalTeacher(image_encoder(), vector_encoder(), MeanFusion(), DIM, N_CLASSES).eval()
    output = teacher(IMAGES, VECTORS)
    torch.testing.assert_close(output.logits_fused, teacher.classifier(output.fused))
    torch.testing.assert_close(output.logits_main, teacher.main.classifier(output.main))
    torch.testing.assert_close(output.logits_second, teacher.second.classifier(output.second))
    assert not torch.equal(output.logits_main, output.logits_second)


def test_fused_loss_trains_both_encoders_and_a_branch_loss_only_its_own():
    teacher = MultimodalTeacher(image_encoder(), vector_encoder(), MeanFusion(), DIM, N_CLASSES)

    def trained(module):
        return any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())

    teacher(IMAGES, VECTORS).logits_fused.square().sum().backward()
    assert trained(teacher.main.encoder) and trained(teacher.second.encoder)
    teacher.zero_grad()
    teacher(IMAGES, VECTORS).logits_main.square().sum().backward()
    assert trained(teacher.main) and not trained(teacher.second) and not trained(teacher.classifier)


def test_main_branch_alone_equals_the_teacher_s_main_output():
    teacher = MultimodalTeacher(image_encoder(), vector_encoder(), MeanFusion(), DIM, N_CLASSES).eval()
    torch.testing.assert_close(teacher.main(IMAGES).logits, teacher(IMAGES, VECTORS).logits_main)


def test_fusion_runs_in_float32_under_autocast():
    class Recorder(MeanFusion):
        def forward(self, first, second):
            self.seen = (first.dtype, second.dtype, (first @ first.T).dtype)
            return super().forward(first, second)

    teacher = MultimodalTeacher(image_encoder(), vector_encoder(), Recorder(), DIM, N_CLASSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = teacher(IMAGES, VECTORS)
    assert teacher.fusion.seen == (torch.float32,) * 3
    assert output.logits_fused.dtype == torch.float32


def test_scores_of_one_modality_have_full_precision_under_autocast():
    network, x = SingleModalityNet(nn.Linear(4, 8), 8, 3), torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(x)
    assert output.features.dtype == torch.bfloat16 and output.logits.dtype == torch.float32
    assert torch.equal(output.logits, network.classifier(output.features.float()))
