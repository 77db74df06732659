"""Precision, compilation and chunk sizes: what a user may opt in to, and what happens where a machine cannot."""

import gc
import pickle
import weakref
from copy import deepcopy

import pytest
import torch

from toy import tiny_maps, tiny_model, tiny_pair
from twinsight import explain
from twinsight.engine import EXACT, Execution, NonFiniteEmbedding, PairBank, erased_windows, measured_chunk_size
from twinsight.engine import execution as module
from twinsight.errors import UserError
from twinsight.explainers import EXPLAINERS, ConditionalOcclusion, GradCAM, SmoothGrad
from twinsight.metrics.functional import insertion_deletion
from twinsight.models import TwoViewModel, folded, fused, small_two_view


def windows(image, count=5):
    boxes = torch.tensor([(index, 2 * index, 5, 5) for index in range(count)])
    return erased_windows(image, torch.zeros_like(image), boxes)


def test_bfloat16_is_close_to_single_precision_and_no_closer():
    model, (image,) = tiny_model(0), tiny_pair(0, 1)[0]
    exact = PairBank(model).perturbed(windows(image))
    for found in (
        PairBank(model, execution=Execution("bf16")).perturbed(windows(image)),
        PairBank(model, chunk_size=2, execution=Execution("bf16")).perturbed(windows(image)),
    ):
        assert found.dtype == torch.float32
        error = (found - exact).abs().max() / exact.abs().max()
        assert 1e-4 < error < 0.05


@pytest.mark.parametrize("execution", [Execution("tf32"), EXACT])
def test_tf32_changes_nothing_without_a_gpu(execution):
    model, (image,) = tiny_model(0), tiny_pair(0, 1)[0]
    found = PairBank(model, execution=execution).perturbed(windows(image))
    assert torch.equal(found, PairBank(model).perturbed(windows(image)))


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match=r"`engine\.precision`.*fp16.*fp32"):
        Execution("fp16")


def test_whole_views_and_gradients_are_in_the_chosen_precision_too():
    model, views = tiny_model(0), tiny_pair(0, 1)
    exact, rough = (
        SmoothGrad(model, samples=3)(*views, bank=PairBank(model, execution=execution))
        for execution in (EXACT, Execution("bf16"))
    )
    assert 0 < (exact.score - rough.score).abs().max() < 0.02
    assert 1e-4 < (exact.map1 - rough.map1).norm() / exact.map1.norm() < 0.2


def test_a_compiled_network_answers_as_it_does_uncompiled(monkeypatch):
    calls = []

    def compiled(network, dynamic, mode):
        assert (dynamic, mode) == (False, "default")
        return lambda images, view: calls.append(len(images)) or network(images, view)

    monkeypatch.setattr(torch, "compile", compiled)
    model, (image,) = tiny_model(0), tiny_pair(0, 1)[0]
    found = PairBank(model, 3, execution=Execution(compile=True)).perturbed(windows(image))
    torch.testing.assert_close(found, PairBank(model).perturbed(windows(image)), rtol=0, atol=1e-5)
    assert calls == [3, 3, 3]  # a trial and two chunks


@pytest.mark.parametrize("fault", ["no compiler", "wrong"])
def test_where_compiling_fails_a_line_says_so_and_results_are_right(monkeypatch, caplog, fault):
    def compiled(network, dynamic, mode):
        if fault == "no compiler":
            raise RuntimeError("no working C++ compiler\nand a long trace")
        return lambda images, view: network(images, view) + 1

    monkeypatch.setattr(torch, "compile", compiled)
    model, (image,) = tiny_model(0), tiny_pair(0, 1)[0]
    found = PairBank(model, execution=Execution(compile=True)).perturbed(windows(image))
    assert torch.equal(found, PairBank(model).perturbed(windows(image)))
    assert caplog.text.count("engine.compile: running uncompiled") == 1
    assert "long trace" not in caplog.text


@pytest.mark.slow
def test_a_really_compiled_network_answers_as_it_does_uncompiled(caplog):
    model, views, maps = tiny_model(0), tiny_pair(0, 1), tiny_maps(0, 1)
    found, expected = (
        insertion_deletion(model, *views, *maps, points=9, bank=PairBank(model, 4, execution=execution))
        for execution in (Execution(compile=True), EXACT)
    )
    for curve, other in zip(found.curves.values(), expected.curves.values(), strict=True):
        torch.testing.assert_close(curve, other, rtol=0, atol=1e-5)
    assert "uncompiled" not in caplog.text or "compiler" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({4: 1.0, 8: 0.8, 16: 0.5, 32: 0.49, 64: 0.6, 128: 0.1}, 16),  # 32 gains less than 5 %, 64 loses: no further
        ({4: 1.0, 8: 1.1, 16: 1.3}, 4),
        ({4: 1.0, 8: 0.5, 16: torch.OutOfMemoryError("CUDA out of memory")}, 8),
    ],
)
def test_the_smallest_chunk_that_is_nearly_fastest_is_chosen(monkeypatch, seconds, expected):
    def timed(model, device, execution, size):
        if isinstance(seconds[size], Exception):
            raise seconds[size]
        return seconds[size]

    monkeypatch.setattr(module, "_seconds_an_image", timed)
    assert measured_chunk_size(tiny_model(0), torch.device("cpu")) == expected


def test_a_chunk_size_is_measured_where_something_fits(monkeypatch):
    model = tiny_model(0)
    assert measured_chunk_size(model, torch.device("cpu"), candidates=(1, 2)) in (1, 2)

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_seconds_an_image", full)
    with pytest.raises(UserError, match=r"`engine\.chunk_size=auto`: not even 4 images fit"):
        measured_chunk_size(model, torch.device("cpu"))


FLAGS = (
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "benchmark"),
)


@pytest.fixture(params=[True, False])
def before(request):
    found = [getattr(backend, name) for backend, name in FLAGS]
    for backend, name in FLAGS:
        setattr(backend, name, request.param)  # these backends know no `delattr`, which monkeypatch asks for
    yield request.param
    for (backend, name), value in zip(FLAGS, found, strict=True):
        setattr(backend, name, value)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_products_on_a_gpu_are_exact_and_deterministic_and_what_was_set_is_set_again(precision, before):
    found = []

    def fails():
        found.extend(getattr(backend, name) for backend, name in FLAGS)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Execution(precision).products(torch.device("cuda")):
        fails()
    assert found == [precision == "tf32", precision == "tf32", True, False]
    assert [getattr(backend, name) for backend, name in FLAGS] == [before] * 4


@pytest.mark.gpu
@pytest.mark.parametrize("build", [GradCAM, SmoothGrad], ids=["Grad-CAM", "SmoothGrad"])
def test_a_gpu_gives_the_same_bits_twice(build):
    model, views = tiny_model(0).cuda(), [view.cuda() for view in tiny_pair(0, 2)]
    first, second = (build(model)(*views) for _ in range(2))
    assert torch.equal(first.map1, second.map1)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_agrees_with_the_cpu(precision, compiled):
    model, views = tiny_model(0), tiny_pair(0, 1)
    expected = ConditionalOcclusion(model, window=9, stride=5)(*views)
    gpu = model.cuda()
    bank = PairBank(gpu, execution=Execution(precision, compiled))
    found = ConditionalOcclusion(gpu, window=9, stride=5)(*(view.cuda() for view in views), bank=bank)
    # PyTorch allows tf32 in convolutions unless told otherwise, which `fp32` must.
    assert torch.backends.cudnn.allow_tf32
    tolerance = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 5e-2}[precision]
    torch.testing.assert_close(found.map1.cpu(), expected.map1, rtol=0, atol=tolerance)


def test_a_network_is_folded_once_until_it_changes(monkeypatch):
    made = []
    monkeypatch.setattr(module, "folded", lambda *arguments: made.append(folded(*arguments)) or made[-1])
    model, views = small_two_view(widths=(8, 16), blocks=1, input_size=32).eval(), torch.rand(2, 1, 3, 32, 32)
    for _ in range(2):
        explain(model, *views, explainer="gradcam")
        explain(model, *views, explainer="input_x_gradient")
    assert len(made) == 1
    assert made[0] is not None
    before = PairBank(model).embedding(views[0][0])
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    after = PairBank(model).embedding(views[0][0])
    assert len(made) == 2
    assert not torch.equal(after, before)


def test_a_kept_copy_goes_when_its_network_does():
    model = small_two_view(widths=(8, 16), blocks=1).eval()
    PairBank(model).embedding(tiny_pair(0, 1)[0][0])
    copy = vars(model)["_fast"][2]
    model.head.__dict__["owner"] = model  # a circle
    gone = weakref.ref(model), weakref.ref(copy)
    del model, copy
    gc.collect()
    assert [one() for one in gone] == [None, None]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "head", torch.nn.Softmax(1)),
        lambda model: setattr(model, "pool", torch.nn.AdaptiveMaxPool2d(1)),
        lambda model: setattr(model.trunk[0], "stride", (1, 1)),
        lambda model: setattr(model.trunk[1], "eps", 0.5),
        lambda model: setattr(model.trunk, "2", torch.nn.GELU()),
        lambda model: next(model.parameters()).data.mul_(1.1),
        lambda model: next(model.parameters()).numpy().__imul__(1.1),
    ],
)
def test_a_kept_copy_is_not_used_for_a_network_that_has_changed(change):
    layers = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)
    model = TwoViewModel(torch.nn.Sequential(*layers), torch.nn.Flatten(), input_size=32).eval().requires_grad_(False)
    image = tiny_pair(0, 1)[0][0]
    before = PairBank(model).embedding(image)
    change(model)
    model.eval()
    torch.testing.assert_close(PairBank(model).embedding(image), model(image[None])[0], rtol=0, atol=1e-5)
    assert not torch.equal(PairBank(model).embedding(image), before)


def test_weights_put_where_others_lay_are_not_taken_for_them():
    layer = torch.nn.Conv2d(3, 8, 3)
    model, image = TwoViewModel(torch.nn.Sequential(layer), input_size=32).eval(), tiny_pair(0, 1)[0][0]
    for _ in range(20):
        PairBank(model).embedding(image)
        for _ in range(2):
            layer.weight = torch.nn.Parameter(torch.randn(8, 3, 3, 3), requires_grad=False)
        torch.testing.assert_close(PairBank(model).embedding(image), model(image[None])[0].detach(), rtol=0, atol=1e-5)


class _Untraceable(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.convolution(x).relu() if x.sum() > -1e9 else x


def test_that_a_network_cannot_be_folded_is_found_out_once(monkeypatch):
    made = []
    monkeypatch.setattr(module, "folded", lambda *arguments: made.append(folded(*arguments)))
    model, views = TwoViewModel(_Untraceable(), input_size=32), torch.rand(2, 1, 3, 32, 32)
    for _ in range(2):
        explain(model, *views, explainer="conditional_occlusion")
    assert made == [None]


class _Log(torch.nn.Module):
    def forward(self, x):
        return x.log()


def test_nan_that_arises_within_a_folded_network_is_not_made_zero():
    layers = torch.nn.Conv2d(3, 8, 3), _Log(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU()
    model = TwoViewModel(torch.nn.Sequential(*layers), input_size=32).eval()
    with torch.no_grad():
        layers[0].weight.abs_()
        layers[0].bias.fill_(0.1)
    image = tiny_pair(0, 1)[0][0].abs()
    assert PairBank(model).embedding(image).isfinite().all()
    assert vars(model)["_fast"][2] is not None
    with pytest.raises(NonFiniteEmbedding):
        PairBank(model).embedding(image - 9)


def test_a_copy_folded_in_inference_mode_serves_gradients_too():
    model = small_two_view(widths=(8, 16), blocks=1).eval().double()
    views = [view.double() for view in tiny_pair(0, 1)]
    with torch.inference_mode():
        PairBank(model).encode(views[0])
    assert EXPLAINERS["input_x_gradient"](model)(*views).map1.isfinite().all()


def test_neither_copies_nor_files_of_a_network_hold_the_folded_one():
    model = small_two_view(widths=(8, 16), blocks=1).eval()
    PairBank(model).embedding(tiny_pair(0, 1)[0][0])
    assert "_fast" in vars(model)
    assert "_fast" not in vars(deepcopy(model))
    assert "_fast" not in vars(pickle.loads(pickle.dumps(model)))


def test_the_first_explanation_leaves_the_global_random_state_alone():
    fused.fused_kernels.cache_clear()
    model, (image,) = tiny_model(0), tiny_pair(0, 1)[0]
    before = torch.get_rng_state()
    PairBank(model).embedding(image)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_whole_view_has_the_same_embedding_with_a_graph_as_without():
    model, (image,) = small_two_view(widths=(8, 16), blocks=1).eval(), tiny_pair(0, 1)[0]
    bank = PairBank(model)
    with torch.enable_grad():
        embedding = bank.encode_whole(image[None].clone().requires_grad_())
    assert embedding.requires_grad
    assert torch.equal(embedding[0], bank.embedding(image))
    assert bank.forwards == 2
