"""Checkpoints of self-supervised training as their libraries write them: trunk and head are found and reported."""

from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from twinsight.errors import UserError
from twinsight.models import checkpoint_model, torchvision_model
from twinsight.models.resnet import resnet_trunk

SIDE = 64


def norm(width, **options):
    made = nn.BatchNorm1d(width, **options)
    made.running_mean.normal_()
    made.running_var.uniform_(0.5, 2)
    return made


def mlp(*widths, last_norm=False):
    """Linear layers with norm and ReLU between them, and after the last a norm where asked for."""
    layers = []
    for first, second in pairwise(widths):
        layers += [nn.Linear(first, second), norm(second), nn.ReLU()]
    return nn.Sequential(*(layers[:-1] if last_norm else layers[:-2]))


def named(prefix, module):
    return {f"{prefix}{key}": value for key, value in module.state_dict().items()}


def by_place(network):
    """Lightly puts a ResNet's children into a Sequential."""
    return nn.Sequential(*list(network.children())[:-1])


def lightly(trunk, other):
    head = mlp(512, 16, 8, last_norm=True)
    momentum = named("backbone_momentum.", by_place(other)) | named("projection_head_momentum.layers.", head)
    state = named("backbone.", by_place(trunk)) | named("projection_head.layers.", head) | momentum
    return (
        {"state_dict": state, "epoch": 3},
        head,
        "lightly",
        "state_dict.backbone.",
        "state_dict.projection_head.layers.",
    )


def solo_learn(trunk, other):
    head = mlp(512, 16, 8)
    state = named("backbone.", trunk) | named("momentum_backbone.", other)
    del state["backbone.fc.weight"], state["backbone.fc.bias"]
    state |= named("classifier.", nn.Linear(512, 10)) | named("projector.", head) | named("predictor.", mlp(8, 4, 8))
    return {"state_dict": state}, head, "solo-learn", "state_dict.backbone.", "state_dict.projector."


def vissl(trunk, other):
    first, second = nn.Linear(512, 16), nn.Linear(16, 8)
    trunk = named("_feature_blocks.", trunk)
    heads = named("0.clf.0.", first) | named("1.clf.0.", second)
    content = {"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": heads}}}, "phase_idx": 1}
    prefix = "classy_state_dict.base_model.model."
    return (
        content,
        nn.Sequential(first, nn.ReLU(), second),
        "VISSL",
        f"{prefix}trunk._feature_blocks.",
        f"{prefix}heads.",
    )


def mmselfsup(trunk, other):
    fc0, bn0, fc1 = nn.Linear(512, 16), norm(16), nn.Linear(16, 8, bias=False)
    neck = named("fc0.", fc0) | named("bn0.", bn0) | named("fc1.", fc1)
    state = named("backbone.", trunk) | {f"neck.{key}": value for key, value in neck.items()}
    state |= {"data_preprocessor.mean": torch.zeros(3)}
    head = nn.Sequential(fc0, bn0, nn.ReLU(), fc1)
    return {"meta": {"epoch": 1}, "state_dict": state}, head, "MMSelfSup", "state_dict.backbone.", "state_dict.neck."


def moco(trunk, other):
    trunk.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8))
    state = named("module.encoder_k.", other) | named("module.encoder_q.", trunk) | {"module.queue": torch.zeros(8, 32)}
    return {"state_dict": state}, trunk.fc, "MoCo", "state_dict.module.encoder_q.", "state_dict.module.encoder_q.fc."


def dino(trunk, other):
    head = nn.Sequential(nn.Linear(512, 16), nn.GELU(), nn.Linear(16, 8))
    last = {"head.last_layer.weight_g": torch.ones(32, 1), "head.last_layer.weight_v": torch.randn(32, 8)}
    teacher = named("backbone.", trunk) | named("head.mlp.", head) | last
    student = {f"module.{key}": torch.zeros_like(value) for key, value in teacher.items()}
    return {"student": student, "teacher": teacher}, head, "DINO", "teacher.backbone.", "teacher.head.mlp."


def plain(trunk, other):
    return trunk.state_dict(), nn.Identity(), "plain names", "", None


LIBRARIES = {each.__name__: each for each in (lightly, solo_learn, vissl, mmselfsup, moco, dino, plain)}


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_network_in_a_checkpoint_is_the_one_that_was_trained(library, tmp_path):
    torch.manual_seed(0)
    trunk, other = resnet18().eval(), resnet18().eval()
    content, head, name, trunk_prefix, head_prefix = LIBRARIES[library](trunk, other)
    torch.save(content, tmp_path / "last.ckpt")
    model = checkpoint_model(tmp_path / "last.ckpt", input_size=SIDE)
    x = torch.rand(2, 3, SIDE, SIDE)
    body = nn.Sequential(
        OrderedDict((key, child) for key, child in trunk.named_children() if key not in ("fc", "avgpool"))
    )
    with torch.no_grad():
        features = body(x)
        expected = head.eval()(features.mean(dim=(-2, -1)))
        torch.testing.assert_close(model.features(x), features)
        torch.testing.assert_close(model(x), expected)
    report = model.load_report
    assert (report.library, report.trunk, report.head) == (name, trunk_prefix, head_prefix)
    assert report.architecture == "resnet18"
    total = sum(1 for _ in flat(content))
    assert report.used + sum(report.left.values()) == total
    assert "last.ckpt" in str(report)


def flat(content):
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from flat(value)


def test_what_was_left_is_named_and_counted(tmp_path):
    trunk = resnet18()
    content, *_ = solo_learn(trunk, resnet18())
    torch.save(content, tmp_path / "last.ckpt")
    left = checkpoint_model(tmp_path / "last.ckpt", input_size=SIDE).load_report.left
    assert left == {"state_dict.momentum_backbone": 122, "state_dict.classifier": 2, "state_dict.predictor": 9}


def test_the_copy_and_another_head_are_taken_when_they_are_named(tmp_path):
    torch.manual_seed(0)
    trunk, other = resnet18().eval(), resnet18().eval()
    content, *_ = solo_learn(trunk, other)
    torch.save(content, tmp_path / "last.ckpt")
    model = checkpoint_model(tmp_path / "last.ckpt", prefix="state_dict.momentum_backbone.", head=None, input_size=SIDE)
    torch.testing.assert_close(model.trunk.conv1.weight, other.conv1.weight)
    assert model.load_report.head is None
    with pytest.raises(UserError, match=r"`head=nothing\.`: no key of .* begins so: .* `state_dict\.backbone`"):
        checkpoint_model(tmp_path / "last.ckpt", head="nothing.", input_size=SIDE)


def test_a_small_stem_and_other_depths_are_told_apart(tmp_path):
    torch.save({"state_dict": named("backbone.", resnet_trunk("resnet34", small_stem=True))}, tmp_path / "last.ckpt")
    model = checkpoint_model(tmp_path / "last.ckpt", input_size=32)
    assert model.load_report.architecture == "resnet34 with a small stem"
    assert model.features(torch.rand(1, 3, 32, 32)).shape == (1, 512, 4, 4)


def test_a_transformer_of_timm_is_taken_by_its_name(tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    head = nn.Sequential(nn.Linear(192, 16), nn.GELU(), nn.Linear(16, 8))
    last = {"head.last_layer.weight_g": torch.ones(4, 1)}
    torch.save({"teacher": named("backbone.", network) | named("head.mlp.", head) | last}, tmp_path / "dino.pth")
    model = checkpoint_model(tmp_path / "dino.pth", architecture="vit_tiny_patch16_224")
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(x), head(network(x)))
    assert model.prefix_rows == 1


def test_a_file_without_such_a_network_is_refused_with_what_it_holds(tmp_path):
    torch.save({"state_dict": {"encoder.weight": torch.zeros(3, 3)}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"holds no ResNet of torchvision: 1 tensors, in `state_dict\.encoder` \(1\)"):
        checkpoint_model(tmp_path / "other.ckpt")
    torch.save(resnet18().state_dict(), tmp_path / "r18.pth")
    with pytest.raises(UserError, match=r"does not fit resnet34: .* first `layer1\.2\.conv1\.weight`"):
        checkpoint_model(tmp_path / "r18.pth", architecture="resnet34")
    with pytest.raises(UserError, match="unknown `architecture` 'resnet19': did you mean"):
        checkpoint_model(tmp_path / "r18.pth", architecture="resnet19")


def test_files_fill_networks_of_torchvision_whatever_stands_before_their_keys(tmp_path):
    torch.manual_seed(0)
    trained = resnet18().eval()
    torch.save({"state_dict": named("module.", trained)}, tmp_path / "r18.pth")
    model = torchvision_model("resnet18", weights=tmp_path / "r18.pth", embedding="logits", input_size=SIDE)
    x = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained(x))
    with pytest.raises(UserError, match=r"does not fit resnet34: 80 of 216 tensors do not fit"):
        torchvision_model("resnet34", weights=tmp_path / "r18.pth", input_size=SIDE)
