"""DINO's student and teacher from a full checkpoint, and the score of its training."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from twinsight.errors import UserError
from twinsight.explainers import ConditionalOcclusion, GradCAM
from twinsight.models import dino_model

SIDE = 64


class Head(nn.Module):
    """As DINO's code has it: a perceptron, a norm, and a last layer with weight norm."""

    def __init__(self, width, prototypes=12):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 8))
        self.last_layer = nn.utils.weight_norm(nn.Linear(8, prototypes, bias=False))
        self.last_layer.weight_g.data.fill_(1)

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


@pytest.fixture
def trained(tmp_path):
    """Student and teacher, and the file that holds them."""
    torch.manual_seed(0)
    networks = {}
    for side in ("student", "teacher"):
        backbone = resnet18().eval()
        backbone.fc = nn.Identity()
        networks[side] = nn.ModuleDict({"backbone": backbone, "head": Head(512).eval()})
    center = torch.randn(1, 12)
    content = {
        "student": {f"module.{key}": value for key, value in networks["student"].state_dict().items()},
        "teacher": networks["teacher"].state_dict(),
        "optimizer": {"state": {}},
        "dino_loss": {"center": center},
        "epoch": 100,
    }
    torch.save(content, tmp_path / "full.pth")
    return networks, center, tmp_path / "full.pth"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_the_student_sees_view_1_and_the_teacher_view_2(trained):
    networks, center, path = trained
    model = dino_model(path, input_size=SIDE)
    x1, x2 = torch.rand(2, 2, 3, SIDE, SIDE)
    with torch.no_grad():
        student = networks["student"]["head"](networks["student"]["backbone"](x1))
        teacher = networks["teacher"]["head"](networks["teacher"]["backbone"](x2))
        torch.testing.assert_close(model(x1, view=1), student)
        torch.testing.assert_close(model(x2, view=2), teacher)
        torch.testing.assert_close(model.embed(model.features(x2, 2), 2), teacher)
        expected = (F.softmax((teacher - center) / 0.04, dim=-1) * F.log_softmax(student / 0.1, dim=-1)).sum(dim=-1)
        torch.testing.assert_close(model.similarity(model(x1, 1), model(x2, 2)), expected)
    assert model.load_report.left == {}
    assert model.load_report.architecture == "resnet18"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_both_sides_are_explained(trained):
    _, _, path = trained
    model = dino_model(path, input_size=SIDE)
    view1, view2 = torch.rand(2, 1, 3, SIDE, SIDE)
    for explainer in (GradCAM(model, form="elementwise"), ConditionalOcclusion(model, window=32, stride=32)):
        found, swapped = explainer(view1, view2), explainer(view2, view1)
        assert found.score < 0
        assert not torch.equal(found.score, swapped.score)
        assert torch.isfinite(found.map1).all()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_a_checkpoint_without_both_networks_is_refused(trained, tmp_path):
    networks, _, _ = trained
    torch.save({"teacher": networks["teacher"].state_dict()}, tmp_path / "teacher.pth")
    with pytest.raises(UserError, match="holds no student: give the full checkpoint of DINO's training"):
        dino_model(tmp_path / "teacher.pth")
    half = {"student": networks["student"]["backbone"].state_dict(prefix="backbone.")}
    torch.save(half, tmp_path / "half.pth")
    with pytest.raises(UserError, match=r"holds no head of the student \(head\.mlp, head\.last_layer\)"):
        dino_model(tmp_path / "half.pth", input_size=SIDE)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_a_transformer_has_its_class_token_read(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sides = {}
    for side in ("student", "teacher"):
        backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0)
        sides[side] = nn.ModuleDict({"backbone": backbone, "head": Head(192)}).eval()
    torch.save({side: network.state_dict() for side, network in sides.items()}, tmp_path / "vit.pth")
    model = dino_model(tmp_path / "vit.pth", architecture="vit_tiny_patch16_224")
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(x, 2), sides["teacher"]["head"](sides["teacher"]["backbone"](x)))
    assert model.prefix_rows == 1
    assert math.isfinite(GradCAM(model)(x, x.flip(-1)).map1.sum())
