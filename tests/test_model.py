import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stabn.model import ATTENTIONS, DEPTHS, STABN, Attention, Config, Mixture, Output, loss


def tiny(**changes) -> Config:
    defaults = {
        "classes": 5,
        "frames": 8,
        "size": 32,
        "layers": (1, 1, 1, 1),
        "width": 4,
        "stem": (3, 3, 3),
        "pool": False,
    }
    return Config(**{**defaults, **changes})


def build(seed: int = 0, **changes) -> STABN:
    """A tiny network whose batch norms do something in eval mode."""
    torch.manual_seed(seed)
    model = STABN(tiny(**changes)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def clips(n: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, 8, 32, 32, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"classes": 0}, ValueError, "`classes` takes numbers of 1 or more, got 0"),
        ({"classes": "18"}, TypeError, "`classes` takes whole numbers, got '18'"),
        ({"frames": True}, TypeError, "`frames` takes whole numbers, got True"),
        ({"layers": (1, 1, 1)}, TypeError, r"`layers` must be a tuple of 4 numbers, got \(1, 1, 1\)"),
        ({"layers": (1, 0, 1, 1)}, ValueError, r"`layers` .* got \(1, 0, 1, 1\)"),
        ({"stem": (2, 7, 7)}, ValueError, r"`stem` must have odd kernel sizes .* got \(2, 7, 7\)"),
        ({"size": 7}, ValueError, "`size` is 7 pixels, but one cell .* takes 8: use 8 or more$"),
        ({"size": 15, "pool": True}, ValueError, "`size` is 15 .* use 16 or more, or pool=False$"),
        ({"block": "dense"}, ValueError, "`block` must be one of bottleneck, basic; got 'dense'"),
        ({"attention": None}, ValueError, "`attention` must be one of both, .* got None"),
        ({"dropout": 1.0}, ValueError, "`dropout` must be at least 0 and below 1, got 1.0"),
        ({"dropout": "half"}, TypeError, "`dropout` takes numbers, got 'half'"),
        ({"mean": (123.0, 117.0, 104.0)}, ValueError, r"`mean` is of RGB values scaled to 0..1, got \(123.0"),
        ({"std": (0.2, 0.2, 0.0)}, ValueError, r"`std` .* never 0, got \(0.2, 0.2, 0.0\)"),
        ({"pool": 1}, TypeError, "`pool` must be True or False, got 1"),
    ],
)
def test_a_wrong_config_is_named_with_its_value(changes, error, words):
    with pytest.raises(error, match=words):
        tiny(**changes)


def test_resnet_refuses_unknown_depths():
    with pytest.raises(ValueError, match="`depth` must be one of 18, 34, 50, 101, 152; got 20"):
        Config.resnet(20, classes=5)


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_has_the_papers_shapes(depth):
    config = Config.resnet(depth, classes=174, frames=8)
    with torch.device("meta"):
        model = STABN(config).eval()
        features = model.extract(torch.empty(2, 3, 8, 224, 224))
        attention, attention_logits = model.attend(features)
        logits = model.perceive(features, attention)
    channels = 256 if depth < 50 else 1024
    assert (config.channels, config.map_size) == (channels, 14)
    assert features.shape == (2, channels, 8, 14, 14)
    assert attention.spatial.shape == (2, 1, 8, 14, 14)
    assert attention.temporal.shape == (2, 1, 8, 1, 1)
    assert logits.shape == attention_logits.shape == (2, 174)
    assert model.mixing.weight.shape == (channels, 2 * channels, 1, 1, 1)


@pytest.mark.parametrize(("size", "pool", "cells"), [(64, False, 8), (65, False, 9), (16, True, 1), (100, True, 7)])
def test_map_size_is_what_the_network_gives(size, pool, cells):
    config = tiny(size=size, pool=pool)
    with torch.device("meta"):
        features = STABN(config).extract(torch.empty(1, 3, 8, size, size))
    assert features.shape[3:] == (cells, cells) == (config.map_size, config.map_size)


def test_bottlenecks_look_along_time_from_layer3_on():
    model = STABN(Config.resnet(50, classes=2, width=4))
    stages = [model.layer1, model.layer2, model.layer3, model.layer4, model.attention.blocks]
    assert [len(s) for s in stages] == [3, 4, 6, 3, 3]
    for blocks, temporal, stride in zip(stages, (1, 1, 3, 3, 3), (1, 2, 2, 2, 1), strict=True):
        assert {block.conv1.kernel_size for block in blocks} == {(temporal, 1, 1)}
        assert {block.conv2.kernel_size for block in blocks} == {(1, 3, 3)}
        assert [block.conv2.stride for block in blocks] == [(1, stride, stride)] + [(1, 1, 1)] * (len(blocks) - 1)


def test_basic_blocks_are_3x3x3_throughout():
    model = STABN(Config.resnet(18, classes=2, width=4))
    for blocks, stride in zip((model.layer1, model.layer4, model.attention.blocks), (1, 2, 1), strict=True):
        assert {c.kernel_size for b in blocks for c in (b.conv1, b.conv2)} == {(3, 3, 3)}
        assert [b.conv1.stride for b in blocks] == [(1, stride, stride), (1, 1, 1)]
        assert {b.conv2.stride for b in blocks} == {(1, 1, 1)}


# ------------------------------------------------------------------------------ the network


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_variant_learns_with_all_its_parameters(attention, block):
    torch.manual_seed(0)
    model = STABN(tiny(attention=attention, block=block, dropout=0.1)).train()
    assert sum(p.numel() for p in model.parameters()) < 110_000
    output = model(clips(4))
    assert output.logits.shape == (4, 5)
    if attention == "none":
        assert output.attention_logits is None
        assert output.attention is None
    else:
        assert output.attention_logits.shape == (4, 5)
        cells = {"spatial": (4, 1, 8, 4, 4), "temporal": (4, 1, 8, 1, 1)}
        for name, shape in cells.items():
            part = getattr(output.attention, name)
            if attention in ("both", name):
                assert part.shape == shape
                assert ((part > 0) & (part < 1)).all()
            else:
                assert part is None
    loss(output, torch.tensor([0, 1, 2, 3])).total.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_the_mechanism_is_the_papers_concatenation():
    model = build()
    features = model.extract(clips())
    attention, _ = model.attend(features)
    both = torch.cat([(1 + attention.spatial) * features, attention.temporal * features], dim=1)
    x = model.mixing_bn(F.conv3d(both, model.mixing.weight))
    expected = model.fc(model.layer4(x).mean((2, 3, 4)))
    torch.testing.assert_close(model.perceive(features, attention), expected)


def test_the_mechanism_by_hand():
    """C = 2 features of 1 and 10, W1 = I, W2 swaps: (1 + 0.5) * (1, 10) + 0.25 * (10, 1) = (4, 15.25)."""
    model = build(width=1, block="basic", layers=(1, 1, 1, 1))
    channels = model.config.channels  # 4
    eye = torch.eye(channels)
    model.mixing.weight.data[:, :, 0, 0, 0] = torch.cat([eye, eye[[1, 0, 2, 3]]], dim=1)
    model.mixing_bn = torch.nn.Identity()
    seen = []
    model.layer4.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = torch.tensor([1.0, 10.0, 0.0, 0.0]).reshape(1, channels, 1, 1, 1).expand(1, channels, 8, 4, 4)
    model.perceive(features, Attention(torch.full((1, 1, 8, 4, 4), 0.5), torch.full((1, 1, 8, 1, 1), 0.25)))
    expected = torch.tensor([4.0, 15.25, 0.0, 0.0]).reshape(1, channels, 1, 1, 1).expand_as(features)
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(("attention", "factor"), [("spatial", 1.25), ("temporal", 0.5), ("none", 1.0)])
def test_single_attentions_go_into_perception_unmixed(attention, factor):
    model = build(attention=attention)
    assert not hasattr(model, "mixing")
    seen = []
    model.layer4.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = model.extract(clips(1))
    model.perceive(features, Attention(torch.full((1, 1, 8, 4, 4), 0.25), torch.full((1, 1, 8, 1, 1), 0.5)))
    torch.testing.assert_close(seen[0], factor * features)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_perceive_takes_features_or_their_mixture(attention):
    model = build(attention=attention)
    features = model.extract(clips())
    weights, _ = model.attend(features)
    mixture = model.mix(features)
    assert isinstance(mixture, Mixture)
    assert torch.equal(model.perceive(mixture, weights), model.perceive(features, weights))


def test_many_attentions_over_one_mixture():
    model = build()
    features = model.extract(clips(1))
    mixture = model.mix(features)
    attention, _ = model.attend(features)
    edits = [attention, attention.invert(spatial=True), attention.invert(temporal=True)]
    batch = Attention(torch.cat([e.spatial for e in edits]), torch.cat([e.temporal for e in edits]))
    expected = torch.cat([model.perceive(features, edit) for edit in edits])
    torch.testing.assert_close(model.perceive(mixture, batch), expected)
    assert len({tuple(row.tolist()) for row in expected}) == 3


def test_the_attention_branch_by_hand():
    """Constant maps of value k + 1 in class k: the score layer averages, M_s and M_t follow by sums."""
    model = build(classes=2, dropout=0.5)
    branch = model.attention
    branch.maps = torch.nn.Identity()
    branch.blocks = torch.nn.Identity()
    maps = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 8, 4, 4)

    branch.scores.weight.data = torch.tensor([[1.0, 1.0], [3.0, -1.0]]).reshape(2, 2, 1, 1, 1)
    branch.spatial[0].weight.data = torch.tensor([0.5, 0.25]).reshape(1, 2, 1, 1, 1)
    branch.spatial[1] = torch.nn.Identity()
    temporal = branch.temporal
    temporal.squeeze[0].weight.data.zero_()
    temporal.squeeze[0].weight.data[0, :, 0, 1, 1] = 1.0  # the previous frame: nothing before frame 0
    temporal.squeeze[1] = torch.nn.Identity()
    shift = torch.eye(8).roll(1, 0)  # frame t takes what frame t - 1 had, frame 0 what the last had
    temporal.exchange.weight.data = shift.reshape(8, 8, 1, 1, 1)
    temporal.weigh[2].bias.data = torch.arange(8.0)

    attention, scores = model.attend(maps)
    torch.testing.assert_close(scores, torch.tensor([[3.0, 1.0]]))
    torch.testing.assert_close(attention.spatial, torch.full((1, 1, 8, 4, 4), 1.0).sigmoid())
    expected = (torch.tensor([3.0, 0.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]) + torch.arange(8.0)).sigmoid()
    torch.testing.assert_close(attention.temporal.flatten(), expected)


def test_at_first_a_frame_is_weighed_by_itself():
    """M_t is local in an untrained network: other frames of the maps only matter within the 3x3x3 kernel."""
    temporal = build().attention.temporal
    maps = torch.rand(1, 5, 8, 4, 4)
    changed = maps.clone()
    changed[:, :, 5] += 1
    temporal.squeeze[0].weight.data.abs_()
    difference = (temporal(changed) - temporal(maps)).abs().flatten()
    assert (difference[4:7] > 1e-6).all()
    assert not difference[[0, 1, 2, 3, 7]].any()


def test_forward_is_the_three_parts_and_the_same_every_time():
    model = build()
    x = clips()
    features = model.extract(x)
    attention, attention_logits = model.attend(features)
    output = model(x)
    assert torch.equal(output.logits, model.perceive(features, attention))
    assert torch.equal(output.attention_logits, attention_logits)
    assert torch.equal(model(x).logits, output.logits)
    assert not torch.equal(model.train()(x).logits, output.logits)


def test_the_loss_is_the_sum_of_two_cross_entropies():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0])
    first = (np.log(1 + np.exp(-2)) + np.log(1 + np.exp(1))) / 2
    output = Output(logits, torch.zeros(2, 2), None)
    total, perception, attention = loss(output, labels)
    assert perception.item() == pytest.approx(first, rel=1e-6)
    assert attention.item() == pytest.approx(np.log(2), rel=1e-6)
    assert total.item() == pytest.approx(first + np.log(2), rel=1e-6)
    total, perception, attention = loss(Output(logits, None, None), labels)
    assert total.item() == perception.item() == pytest.approx(first, rel=1e-6)
    assert attention.item() == 0


def test_inverting_the_attention():
    attention = Attention(torch.rand(1, 1, 8, 4, 4), torch.rand(1, 1, 8, 1, 1))
    spatial, temporal = attention.invert(spatial=True)
    torch.testing.assert_close(spatial, 1 - attention.spatial)
    assert temporal is attention.temporal
    spatial, temporal = attention.invert(temporal=True)
    assert spatial is attention.spatial
    torch.testing.assert_close(temporal, 1 - attention.temporal)
    twice = attention.invert(spatial=True, temporal=True).invert(spatial=True, temporal=True)
    for before, after in zip(attention, twice, strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=2**-23)
    with pytest.raises(ValueError, match="`temporal` attention cannot be inverted: this network has none"):
        Attention(attention.spatial, None).invert(spatial=True, temporal=True)


def test_compiled_without_graph_breaks():
    graph = torch._dynamo.explain(build())(clips())
    torch._dynamo.reset()
    assert graph.graph_break_count == 0


@pytest.mark.parametrize(
    ("clip", "error", "words"),
    [
        (
            torch.zeros(1, 3, 16, 32, 32),
            ValueError,
            "`clips` has 16 frames, this network takes 8: .*frames=8",
        ),
        (
            torch.zeros(1, 3, 8, 32, 48),
            ValueError,
            "`clips` has frames of 32 x 48 pixels, this network takes 32 x 32",
        ),
        (
            torch.zeros(1, 1, 8, 32, 32),
            ValueError,
            r"`clips` must be RGB, \(N, 3, T, S, S\), but has 1 channels",
        ),
        (
            torch.zeros(3, 8, 32, 32),
            ValueError,
            r"`clips` must have the 5 dimensions .* got 4: \(3, 8, 32, 32\)",
        ),
        (
            torch.zeros(1, 3, 8, 32, 32, dtype=torch.uint8),
            TypeError,
            "`clips` has torch.uint8 values, .*: use model.preprocess",
        ),
        (np.zeros((1, 3, 8, 32, 32)), TypeError, "`clips` has type ndarray"),
    ],
)
def test_wrong_clips_are_refused_at_the_door(clip, error, words):
    with pytest.raises(error, match=words):
        build()(clip)


def test_wrong_attention_is_refused():
    model = build()
    features = model.extract(clips(2))
    attention, _ = model.attend(features)
    with pytest.raises(ValueError, match="`attention` has no temporal part"):
        model.perceive(features, Attention(attention.spatial, None))
    with pytest.raises(ValueError, match="`attention` has no spatial part"):
        model.perceive(features, None)
    with pytest.raises(
        ValueError, match=r"`attention.spatial` must have shape \(N, 1, 8, 4, 4\), got \(2, 1, 8, 4, 1\)"
    ):
        model.perceive(features, attention._replace(spatial=attention.spatial[..., :1]))
    with pytest.raises(
        ValueError, match=r"`attention.temporal` must have shape \(N, 1, 8, 1, 1\), got \(3, 1, 8, 1, 1\)"
    ):
        model.perceive(features, attention._replace(temporal=torch.rand(3, 1, 8, 1, 1)))


def test_class_names_must_be_as_many_as_classes():
    assert STABN(tiny()).classes == ["class 0", "class 1", "class 2", "class 3", "class 4"]
    with pytest.raises(ValueError, match="`classes` has 2 names, the config says 5 classes"):
        STABN(tiny(), ["up", "down"])


# ------------------------------------------------------------------------------ from frames to clips


def frames(height: int, width: int, count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_preprocess_of_the_right_size_only_normalises():
    model = build(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    source = frames(32, 32)
    clip = model.preprocess(source)
    assert (clip.shape, clip.dtype) == ((1, 3, 8, 32, 32), torch.float32)
    expected = (source / 255.0 - [0.5, 0.25, 0.0]) / [0.5, 0.25, 1.0]
    np.testing.assert_allclose(clip[0].permute(1, 2, 3, 0).numpy(), expected, atol=1e-6)
    assert torch.equal(model.preprocess(torch.from_numpy(source)), clip)


def test_preprocess_halves_by_antialiased_averaging():
    """Squares of 2 x 2 equal pixels, far from edges in colour: a constant stays, the mean stays near."""
    model = build(crop=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    flat = np.full((8, 64, 96, 3), 51, np.uint8)
    torch.testing.assert_close(model.preprocess(flat), torch.full((1, 3, 8, 32, 32), 0.2))
    checkerboard = np.indices((8, 128, 128)).sum(0) % 2 * 255
    clip = model.preprocess(np.repeat(checkerboard[..., None], 3, 3).astype(np.uint8))
    torch.testing.assert_close(clip, torch.full_like(clip, 0.5), rtol=0, atol=0.02)  # plain bilinear: 0 or 1 too


@pytest.mark.parametrize("shape", [(32, 51), (51, 32)])
def test_the_crop_is_the_centre_and_seen_says_so(shape):
    source = frames(*shape)
    cropping, whole = build(crop=True), build(crop=False)
    top, left, height, width = map(int, cropping.seen(*shape))
    assert sorted((top, left)) == [0, 9]
    assert (height, width) == (32, 32)
    part = source[:, top : top + 32, left : left + 32]
    assert torch.equal(cropping.preprocess(source), cropping.preprocess(part))
    assert whole.seen(*shape) == (0, 0, *shape)
    assert not torch.equal(whole.preprocess(source), cropping.preprocess(source))


def test_preprocess_leaves_its_input_alone_and_takes_any_array():
    model = build()
    source = frames(40, 40)
    source.flags.writeable = False
    clip = model.preprocess(source)
    assert torch.equal(model.preprocess(np.asfortranarray(source)), clip)
    reversed_twice = np.ascontiguousarray(source[::-1])[::-1]
    assert torch.equal(model.preprocess(reversed_twice), clip)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (
            frames(32, 32, 1),
            ValueError,
            "`frames` has 1 frame, this network takes 8: read the clip with frames=8",
        ),
        (frames(32, 32).astype(np.float32), TypeError, "`frames` has float32 values, RGB in uint8"),
        (frames(32, 32)[..., :1], ValueError, r"must be RGB of shape \(T, H, W, 3\), got \(8, 32, 32, 1\)"),
        (frames(32, 0), ValueError, r"got \(8, 32, 0, 3\)"),
        ([[0]], TypeError, "`frames` must be a numpy array or a tensor, got list"),
    ],
)
def test_wrong_frames_are_refused_at_the_door(source, error, words):
    with pytest.raises(error, match=words):
        build().preprocess(source)


def test_seen_refuses_an_empty_frame():
    with pytest.raises(ValueError, match="at least 1 x 1 pixel, got 0 x 9"):
        build().seen(0, 9)
