"""LoRA on convolutions: against PyTorch, PEFT and loralib's formula, merged, counted; and wrong gradients."""

import itertools
import math
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import close

import minilora
from minilora import ops
from minilora.adapters.lora_conv import LoRAConv1d, LoRAConv2d, from_loralib
from minilora.nn import Conv1d, Conv2d, Costs, Flatten, Gelu, Gradients, Linear, MetaArray, Pass, Sequential
from minilora.verify.op_cases import OPS

KINDS = {1: (Conv1d, LoRAConv1d), 2: (Conv2d, LoRAConv2d)}
each_kind = pytest.mark.parametrize("axes", KINDS)
EXACT = 1e-12


def base(axes, rng, n_in=3, n_out=5, **options):
    kernel = (3, 2)[:axes]
    return KINDS[axes][0](rng.standard_normal((n_out, n_in, *kernel)), rng.standard_normal(n_out), **options)


def adapter(axes, rng, r=2, **options):
    """Off its start, with a window that differs along each axis."""
    made = KINDS[axes][1](base(axes, rng, stride=(2, 1)[:axes], padding=(1, 2)[:axes], dilation=2), r, 3, rng=rng,
                          **options)  # fmt: skip
    made.lora_B.data = rng.standard_normal(made.lora_B.data.shape)
    return made


def signal(axes, rng, n_in=3):
    return rng.standard_normal((4, n_in, *(9, 7)[:axes]))


def cnn(rng, dtype="float64"):
    """A small network over images of 2 x 8 x 8."""
    normal = lambda *shape: (0.3 * rng.standard_normal(shape)).astype(dtype)  # noqa: E731
    return Sequential({
        "conv_1": Conv2d(normal(4, 2, 3, 3), normal(4), stride=2, padding=1),
        "gelu_1": Gelu(approximate=False),
        "conv_2": Conv2d(normal(6, 4, 3, 3), normal(6), padding=1),
        "gelu_2": Gelu(approximate=False),
        "flatten": Flatten(),
        "classifier": Linear(normal(3, 96), normal(3)),
    })  # fmt: skip


def adapted_cnn(rng):
    model = cnn(rng)
    paths = minilora.attach_lora(model, ["conv_1", "conv_2"], r=2, alpha=3, rng=rng)
    assert paths == ["conv_1", "conv_2"]
    for path in paths:
        B = model[path].lora_B
        B.data = rng.standard_normal(B.data.shape)
    return model


@each_kind
def test_a_new_adapter_changes_no_bit_of_the_output_and_a_moved_one_does(axes, rng):
    plain, x = base(axes, rng), signal(axes, rng)
    made = KINDS[axes][1](plain, 2, 3, rng=0)
    assert made.forward(x)[0].tobytes() == plain.forward(x)[0].tobytes()
    made.lora_B.data = made.lora_B.data + 1
    assert np.abs(made.forward(x)[0] - plain.forward(x)[0]).max() > 1e-3


@each_kind
def test_the_adapter_is_the_merged_kernel_and_unmerging_gives_the_base_back(axes, rng):
    model = Sequential({"conv": base(axes, rng, stride=2, padding=1)})
    W = model["conv"].weight
    minilora.attach_lora(model, ["conv"], r=2, alpha=3, rng=rng)
    model["conv"].lora_B.data = rng.standard_normal((5, 2))
    x, bits = signal(axes, rng), W.data.tobytes()
    before, delta = model.forward(x)[0], model["conv"].delta()
    assert minilora.merge(model) == ["conv"]
    assert model["conv"].weight.data.shape == W.data.shape
    assert close(model.forward(x)[0], before, EXACT)
    assert close(model["conv"].weight.data - W.data, delta, EXACT)
    assert minilora.unmerge(model) == ["conv"]
    assert model["conv"].weight is W
    assert W.data.tobytes() == bits
    assert model.forward(x)[0].tobytes() == before.tobytes()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), axes=st.sampled_from([1, 2]))
def test_backward_of_windows_is_the_transpose_of_windows(seed, axes):
    """⟨windows(x), dX⟩ = ⟨x, windows_backward(dX)⟩"""
    rng = np.random.default_rng(seed)
    window = OPS[f"convolution, {axes}-D"].draw(lambda low=1, high=4: int(rng.integers(low, high + 1)), rng)
    x, window = window.inputs["x"], window.constants["window"]
    X = ops.windows(x, window)
    dX = rng.standard_normal(X.shape)
    dx = ops.windows_backward(dX, window, x.shape)
    assert dx.shape == x.shape
    assert np.isclose((X * dX).sum(), (x * dx).sum(), rtol=1e-10, atol=1e-10)


def test_a_kernel_of_one_is_the_linear_layer_of_every_position(rng):
    x, W, b = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((6, 3)), rng.standard_normal(6)
    y, _ = Conv2d(W[:, :, None, None], b).forward(x)
    assert close(y, ops.channels_first(ops.linear_forward(ops.channels_last(x), W, b)[0]), EXACT)


# ---- wrong gradients must fail ----


def strided_as_dense(dX, window, shape):
    """dx as though every window began where the last one did, one number on."""
    return ops.windows_backward(dX, window._replace(stride=(1,) * len(window.stride)), shape)


def last_window_wins(dX, window, shape):
    """dx[where] = dX in the place of +=: a number in many windows gets the gradient of one."""
    N, C, *size = shape
    L, dX = dX.shape[1:-1], dX.reshape(*dX.shape[:-1], C, *window.kernel)
    padded = np.zeros((N, C, *(n + 2 * p for n, p in zip(size, window.padding, strict=True))), dX.dtype)
    for k, where in window.slices(L):
        padded[where] = ops.channels_first(dX[k])
    return padded[(..., *(slice(p, p + n) for p, n in zip(window.padding, size, strict=True)))]


def padding_forgotten(dX, window, shape):
    """The first numbers of dx̄, those of the padding among them."""
    wide = [n + 2 * p for n, p in zip(shape[2:], window.padding, strict=True)]
    whole = ops.windows_backward(dX, window._replace(padding=(0,) * len(wide)), (*shape[:2], *wide))
    return whole[(..., *(slice(n) for n in shape[2:]))]


def kernel_reversed(dX, window, shape):
    """The kernel turned round a second time."""
    C = shape[1]
    X = dX.reshape(*dX.shape[:-1], C, *window.kernel)
    X = np.flip(X, axis=tuple(range(-len(window.kernel), 0)))
    return ops.windows_backward(X.reshape(dX.shape), window, shape)


WRONG = strided_as_dense, last_window_wins, padding_forgotten, kernel_reversed


@each_kind
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_dx_fails_the_check(axes, wrong, rng):
    op = OPS[f"low rank, convolution, {axes}-D"]
    case = op.draw(lambda low=1, high=4: min(high, 2) + (low == 0), rng)
    constants = case.constants["window"]
    assert min(constants.kernel) > 1
    assert min(constants.stride) > 1
    assert min(constants.padding) > 0

    def grad(dy, x, A, B, s, window):
        _, dA, dB = op.grad(dy, x, A, B, s=s, window=window)
        dX, _ = ops.lora_backward(ops.channels_last(dy), ops.kernels(A), B, s)
        return wrong(dX, window, x.shape), dA, dB

    report = op.check(case, rng, grad)
    assert {row.tensor: row.verdict == "right" for row in report.rows} != dict.fromkeys("xAB", True)
    assert not report.ok


# ---- what is refused ----


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda W: Conv1d(W), r"weight of a Conv1d is \(out, in, kernel\), not of shape \(4, 2, 3, 3\)"),
        (lambda W: Conv2d(W, stride=0), "stride 0 is not a whole number from 1 up, or 2 of them"),
        (lambda W: Conv2d(W, padding="same"), "padding 'same' is not a whole number from 0 up"),
        (lambda W: Conv2d(W, dilation=(1, 1, 1)), r"dilation \(1, 1, 1\) is not"),
        (lambda W: Conv2d(W).forward(np.ones((1, 8, 9, 9))), "2 channels.* there are no groups"),
        (lambda W: Conv2d(W).forward(np.ones((1, 2, 2, 9))), r"size \(2, 9\) is smaller than a window"),
        (lambda W: LoRAConv1d(Conv2d(W), rng=0), "this adapter is for a Conv1d, and this is of type Conv2d"),
        (lambda W: LoRAConv2d(Conv2d(W), rng=0, init="pissa"), "init 'pissa' is of ResidualLoRALinear, for a Linear"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make(np.ones((4, 2, 3, 3)))


def test_other_variants_refuse_a_convolution_and_the_model_stays(rng):
    model = cnn(rng)
    with pytest.raises(ValueError, match="conv_1: this adapter is for a Linear, and this is of type Conv2d"):
        minilora.attach(model, "vera", ["conv_1"], rng=0)
    assert all(p.trainable for p in model.parameters())


def test_a_rank_above_the_numbers_of_a_window_is_said_to_be_wasted_and_one_above_the_channels_is_not(rng):
    model = Sequential({"conv": Conv2d(rng.standard_normal((20, 1, 3, 3)))})
    minilora.attach_lora(model, ["conv"], r=9, rng=0)  # 1 channel, 9 numbers in a window
    model = Sequential({"conv": Conv2d(rng.standard_normal((20, 1, 3, 3)))})
    with pytest.warns(UserWarning, match="rank 10 of conv is above 9"):
        minilora.attach_lora(model, ["conv"], r=10, rng=0)


# ---- counted ----


def arrays_of(cache, found=None):
    found = {} if found is None else found
    if isinstance(cache, np.ndarray):
        owner = cache if cache.base is None else cache.base
        found[id(owner)] = cache
    elif isinstance(cache, tuple | list):
        for part in cache:
            arrays_of(part, found)
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_what_is_kept_is_counted_to_the_byte(dropout, rng):
    model = cnn(rng, "float32")
    minilora.attach_lora(model, ["conv_1", "conv_2"], r=2, alpha=3, rng=rng, dropout=dropout)
    x = rng.standard_normal((5, 2, 8, 8)).astype(np.float32)
    _, caches = model.forward(x, run=Pass(np.random.default_rng(0)))
    costs = Costs(model, 4, dropout=True)
    model.costs(MetaArray(x.shape, 4), costs)
    assert sum(a.nbytes for a in arrays_of(caches).values()) == sum(kept.nbytes for kept in costs.alive())


def test_parameters_and_flops_are_those_of_the_page(rng):
    """256 -> 256 channels, 3 x 3, r = 8: 20,480 numbers beside 589,824; the FLOPs of each position in proportion."""
    model = Sequential({"conv": Conv2d(np.zeros((256, 256, 3, 3), "float32"), padding=1)})
    minilora.attach_lora(model, ["conv"], r=8, rng=0)
    sizes = {path: p.data.size for path, p in model.named_parameters().items()}
    assert sizes == {"conv.weight": 589_824, "conv.lora_A": 8 * 2304, "conv.lora_B": 8 * 256}
    costs = Costs(model, 4)
    y = model.costs(MetaArray((2, 256, 4, 4), 4), costs)
    assert y.shape == (2, 256, 4, 4)
    forward = {product.kind: product.flops for product in costs.forward}
    assert forward == {"linear": 2 * 32 * 589_824, "adapter": 2 * 32 * 20_480}


# ---- loralib ----


def test_an_adapter_of_loralib_is_one_of_pefts_shapes_and_of_a_higher_rank(rng):
    """layers.py, ConvLoRA: W + (B @ A).view(W.shape) * s"""
    r, k, n_in, n_out, s = 2, 3, 4, 5, 0.7
    A, B = rng.standard_normal((r * k, n_in * k)), rng.standard_normal((n_out * k, r * k))
    theirs = s * (B @ A).reshape(n_out, n_in, k, k)
    ours_A, ours_B = from_loralib(A, B, k)
    assert ours_A.shape == (r * k * k, n_in, k, k)
    assert ours_B.shape == (n_out, r * k * k)
    made = LoRAConv2d.of(
        Conv2d(np.zeros((n_out, n_in, k, k))), {"lora_A": ours_A, "lora_B": ours_B}, r=r * k * k, alpha=s * r * k * k
    )
    assert close(made.delta(), theirs, EXACT)
    assert np.linalg.matrix_rank(ops.kernels(theirs)) > r


# ---- PyTorch and PEFT ----


def torch_cnn(torch, model):
    """The same network, of the same numbers."""
    layers = OrderedDict()
    for name, layer in model.layers.items():
        layer = getattr(layer, "base", layer)
        if isinstance(layer, Conv2d):
            n_out, n_in, *kernel = layer.weight.data.shape
            layers[name] = torch.nn.Conv2d(n_in, n_out, tuple(kernel), *layer.window[1:])
        elif isinstance(layer, Linear):
            layers[name] = torch.nn.Linear(*layer.weight.data.shape[::-1])
        else:
            layers[name] = torch.nn.GELU() if isinstance(layer, Gelu) else torch.nn.Flatten()
        if isinstance(layer, Conv2d | Linear):
            layers[name].double()
            with torch.no_grad():
                layers[name].weight.copy_(torch.tensor(layer.weight.data))
                layers[name].bias.copy_(torch.tensor(layer.bias.data))
    return torch.nn.Sequential(layers)


@pytest.mark.oracle
def test_outputs_gradients_and_merged_kernels_of_a_cnn_are_those_of_peft(rng):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = adapted_cnn(rng)
    theirs = peft.get_peft_model(
        torch_cnn(torch, model), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["conv_1", "conv_2"])
    ).double()
    names = dict(theirs.named_parameters())
    for path, slot in itertools.product(["conv_1", "conv_2"], LoRAConv2d.slots):
        x = slot.to_file(getattr(model[path], slot.name).data)
        with torch.no_grad():
            parameter = names[f"base_model.model.{path}.{slot.name}.default.weight"]
            assert parameter.shape == x.shape
            parameter.copy_(torch.tensor(x))
    x, dy = rng.standard_normal((3, 2, 8, 8)), rng.standard_normal((3, 3))
    expected = theirs(torch.tensor(x))
    expected.backward(torch.tensor(dy))
    y, caches = model.forward(x)
    grads = Gradients()
    model.backward(dy, caches, grads)
    assert close(y, expected.detach().numpy(), EXACT)
    for path, slot in itertools.product(["conv_1", "conv_2"], LoRAConv2d.slots):
        gradient = names[f"base_model.model.{path}.{slot.name}.default.weight"].grad.numpy()
        assert close(slot.to_file(grads[getattr(model[path], slot.name)]), gradient, 1e-10)
    assert len(grads) == 4
    minilora.merge(model)
    merged = theirs.merge_and_unload()
    for path in ("conv_1", "conv_2"):
        assert close(model[path].weight.data, getattr(merged, path).weight.detach().numpy(), EXACT)


@pytest.mark.oracle
@each_kind
def test_a_layer_is_pefts_with_its_stride_and_padding_and_peft_forgets_a_dilation(axes, rng):
    """PEFT 0.21.2 gives lora_A the base's stride and padding, and not its dilation (layer.py, _ConvNd.update_layer)."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    made = adapter(axes, rng)
    window = made.base.window
    kind = torch.nn.Conv1d if axes == 1 else torch.nn.Conv2d
    theirs = torch.nn.Sequential(kind(3, 5, *window)).double()
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"])).double()
    lora_A = theirs.base_model.model[0].lora_A["default"]
    assert lora_A.stride == window.stride
    assert lora_A.padding == window.padding
    assert lora_A.dilation == (1,) * axes
    assert math.prod(lora_A.weight.shape) == made.lora_A.data.size
    theirs = torch.nn.Sequential(torch.nn.Conv1d(3, 5, 3, dilation=2)).double()
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=2, target_modules=["0"])).double()
    with pytest.raises(RuntimeError, match="must match the size"):
        theirs(torch.tensor(signal(1, rng)))
    theirs = torch.nn.Sequential(torch.nn.Conv1d(3, 5, 3, stride=8, dilation=2)).double()  # one window for both
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)).double()
    x = torch.tensor(signal(1, rng)[..., :8])
    before = theirs(x)
    assert (theirs.merge_and_unload()(x) - before).abs().max() > 1e-3
