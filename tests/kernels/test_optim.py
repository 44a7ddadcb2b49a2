"""MaskAdamW: torch's AdamW and the separate operations in one step."""

import copy
import pickle

import pytest
import torch
from torch import nn

import tamt_kernels as tk

LR = 0.01
IDS = torch.randint(50, (200, 4, 3), generator=torch.Generator().manual_seed(0))


def make(ranking="signed"):
    torch.manual_seed(0)
    return nn.Sequential(
        tk.MaskedEmbedding.from_embedding(nn.Embedding(50, 8, padding_idx=0), 120, ranking=ranking),
        tk.MaskedLinear.from_linear(nn.Linear(8, 16), 50, ranking=ranking),
        nn.GELU(),
        tk.MaskedLinear.from_linear(nn.Linear(16, 4, bias=False), 20, ranking=ranking),
        nn.LayerNorm(4),
    )


def masked(model):
    return [module for module in model if hasattr(module, "mask")]


def backward(model, ids, scale=1.0):
    (model(ids).pow(3).sum() * scale).backward()


class Separate:
    """What ``MaskAdamW`` stands for: torch's AdamW, clipping and ``update_masks``, from the same gradients."""

    def __init__(self, model, others=(), max_norm=1.0, **options):
        self.model, self.max_norm = model, max_norm
        self.parameters = [*(module.score for module in masked(model)), *others]
        self.optimizer = torch.optim.AdamW(self.parameters, **{"weight_decay": 0.0, "lr": LR, **options})

    def step(self, source, norm):
        for module, other in zip(masked(self.model), masked(source), strict=True):
            module.score.grad = tk.ste_backward(other.masked.tensor.grad.to_dense(), module.weight)
        theirs = torch.nn.utils.get_total_norm([p.grad for p in self.parameters])
        torch.testing.assert_close(norm, theirs, rtol=1e-5, atol=1e-7)
        if self.max_norm:  # by our norm, since Adam makes much of the last bit of a factor
            torch._foreach_mul_([p.grad for p in self.parameters], (self.max_norm / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        tk.update_masks(self.model)


def assert_same(ours, theirs):
    for mine, other in zip(masked(ours), masked(theirs), strict=True):
        assert torch.equal(mine.mask, other.mask)
        assert int(mine.mask.sum()) == mine.keep
        torch.testing.assert_close(mine.score, other.score, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ranking", ["signed", "abs"])
@pytest.mark.parametrize("max_norm", [1.0, 1e-3, None])
def test_matches_adamw_and_the_separate_operations_over_200_steps(ranking, max_norm):
    ours, theirs = make(ranking), make(ranking)
    optimizer = tk.MaskAdamW(ours, ours[4].parameters(), lr=LR, max_norm=max_norm)
    separate = Separate(theirs, theirs[4].parameters(), max_norm)
    for ids in IDS:
        backward(ours, ids)
        for mine, other in zip(ours[4].parameters(), theirs[4].parameters(), strict=True):
            other.grad = mine.grad.clone()
        norm = optimizer.step()
        separate.step(ours, norm)
        optimizer.zero_grad()
        assert_same(ours, theirs)
    torch.testing.assert_close(ours[4].weight, theirs[4].weight, rtol=1e-5, atol=1e-6)


def test_gradients_of_several_backward_passes_are_added_up_before_the_product():
    ours, theirs = make(), make()
    optimizer, other = tk.MaskAdamW(ours, lr=LR), tk.MaskAdamW(theirs, lr=LR)
    for ids in IDS[:5]:
        backward(ours, ids[:2])
        backward(ours, ids[2:])
        backward(theirs, ids)
        torch.testing.assert_close(optimizer.step(), other.step())
        optimizer.zero_grad()
        other.zero_grad()
    for mine, their in zip(masked(ours), masked(theirs), strict=True):
        torch.testing.assert_close(mine.score, their.score, rtol=1e-4, atol=1e-6)


def test_weight_decay_and_a_schedule_are_adamws():
    ours, theirs = make(), make()
    optimizer = tk.MaskAdamW(ours, lr=LR, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    separate = Separate(theirs, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    schedules = [torch.optim.lr_scheduler.LinearLR(each, 1.0, 0.1, 20) for each in (optimizer, separate.optimizer)]
    for ids in IDS[:30]:
        optimizer.zero_grad()
        backward(ours, ids)
        separate.step(ours, optimizer.step())
        for schedule in schedules:
            schedule.step()
        assert_same(ours, theirs)


def test_the_forward_uses_what_the_step_wrote():
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR)
    for ids in IDS[:10]:
        optimizer.zero_grad()
        backward(model, ids)
        optimizer.step()
        for module in masked(model):
            assert torch.equal(module.masked.tensor, module.masked_weight())
            assert module.score.grad is None


def test_masks_may_be_renewed_later():
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR)
    first = [(module.mask, module.masked.tensor.detach().clone()) for module in masked(model)]
    values = [(module.value.clone(), module.cut.clone()) for module in masked(model)]
    for ids in IDS[:3]:
        optimizer.zero_grad()
        backward(model, ids)
        optimizer.step(renew=False)
    assert [(module.value, module.cut) for module in masked(model)] == values
    assert all(torch.equal(module.masked.tensor, made) for module, (_, made) in zip(masked(model), first, strict=True))
    tk.update_masks(model)
    assert any(not torch.equal(module.mask, mask) for module, (mask, _) in zip(masked(model), first, strict=True))
    assert all(torch.equal(module.masked.tensor, module.masked_weight()) for module in masked(model))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    ours, theirs = make(), make()
    optimizer = tk.MaskAdamW(ours, ours[4].parameters(), lr=LR)
    other = tk.MaskAdamW(theirs, theirs[4].parameters(), lr=LR)
    for i, ids in enumerate(IDS[:6]):
        if i == 3:
            backward(ours, ids, bad)
            before = copy.deepcopy([*ours.parameters()])
            assert not optimizer.step().isfinite()
            optimizer.zero_grad()
            assert all(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))
        for model, each in ((ours, optimizer), (theirs, other)):
            backward(model, ids)
            each.step()
            each.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_step_that_is_not_finite_leaves_masks_that_were_renewed_apart():
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR)
    for ids in IDS[:3]:
        optimizer.zero_grad()
        backward(model, ids)
        optimizer.step(renew=False)
    tk.update_masks(model)
    before = copy.deepcopy(model.state_dict())
    backward(model, IDS[3], torch.nan)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_a_learning_rate_may_be_a_tensor():
    ours, theirs = make(), make()
    lr = torch.tensor(LR)
    optimizer = tk.MaskAdamW(ours, ours[4].parameters(), lr=lr, weight_decay=0.1)
    other = tk.MaskAdamW(theirs, theirs[4].parameters(), lr=LR, weight_decay=0.1)
    schedules = [torch.optim.lr_scheduler.LinearLR(each, 1.0, 0.1, 20) for each in (optimizer, other)]
    for ids in IDS[:10]:
        for model, each in ((ours, optimizer), (theirs, other)):
            each.zero_grad()
            backward(model, ids)
            each.step()
        for schedule in schedules:
            schedule.step()
    assert lr < LR  # the very tensor follows the schedule, as a captured step needs
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="MaskAdamW: lr"):
        tk.MaskAdamW(make(), lr=torch.tensor([LR]))


@pytest.mark.parametrize(("scale", "max_norm"), [(torch.tensor(1024.0), 1.0), (1024.0, 1.0), (1024.0, None)])
def test_the_scale_of_the_loss_is_taken_out(scale, max_norm):
    ours, theirs = make(), make()
    optimizer = tk.MaskAdamW(ours, ours[4].parameters(), lr=LR, max_norm=max_norm)
    other = tk.MaskAdamW(theirs, theirs[4].parameters(), lr=LR, max_norm=max_norm)
    for ids in IDS[:5]:
        backward(ours, ids, 1024.0)
        backward(theirs, ids)
        torch.testing.assert_close(optimizer.step(scale=scale), other.step())
        optimizer.zero_grad()
        other.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_resumed_optimizer_goes_on_bit_for_bit():
    whole = make()
    optimizer = tk.MaskAdamW(whole, whole[4].parameters(), lr=LR)
    for i, ids in enumerate(IDS[:10]):
        if i == 5:
            scores = copy.deepcopy(whole.state_dict())
            state = copy.deepcopy(optimizer.state_dict())
        optimizer.zero_grad()
        backward(whole, ids)
        optimizer.step()
    resumed = make()
    again = tk.MaskAdamW(resumed, resumed[4].parameters(), lr=LR)
    resumed.load_state_dict(scores)
    tk.update_masks(resumed)
    again.load_state_dict(state)
    for ids in IDS[5:10]:
        again.zero_grad()
        backward(resumed, ids)
        again.step()
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_counts_of_another_type_are_taken_over():
    """As torch.optim.AdamW and other versions may have saved them; the scores share one count again."""
    model = make()
    optimizer = tk.MaskAdamW(model, model[4].parameters(), lr=LR)
    backward(model, IDS[0])
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    for each in state["state"].values():
        each["step"] = each["step"].double()
    optimizer.load_state_dict({"state": {}, "param_groups": state["param_groups"]})  # none yet
    assert not any(optimizer.state[module.score]["exp_avg"].any() for module in masked(model))
    optimizer.load_state_dict(state)
    backward(model, IDS[1])
    optimizer.step()
    assert [(float(each["step"]), each["step"].dtype) for each in optimizer.state.values()] == [(2, torch.float32)] * 5


def test_an_embedding_holds_the_gradients_of_the_rows_looked_up():
    ours, theirs = make(), make()
    optimizer, separate = tk.MaskAdamW(ours, lr=LR), Separate(theirs)
    untouched = ours[0].score[40:].clone()
    for step, ids in enumerate(IDS[:60] % 40):
        optimizer.zero_grad()
        if step % 7:
            backward(ours, ids[:2])
            backward(ours, ids[1:])
        else:
            backward(ours, torch.zeros_like(ids))  # padding, which has no gradient
        assert ours[0].masked.tensor.grad.is_sparse
        separate.step(ours, optimizer.step())
        assert_same(ours, theirs)
    assert torch.equal(ours[0].score[40:], untouched)
    assert torch.equal(ours[0].masked.tensor, ours[0].masked_weight())


def test_a_frequent_token_has_its_whole_gradient_in_bfloat16():
    means = []
    for dtype in (torch.float32, torch.bfloat16):
        model = make()
        optimizer = tk.MaskAdamW(model, lr=LR, dtype=dtype)
        model[0](torch.tensor([3] + 4096 * [7])).sum().backward()
        optimizer.step()
        means.append(optimizer.state[model[0].score]["exp_avg"][[3, 7]])
    assert (means[0] != 0).any(1).all()
    torch.testing.assert_close(means[1], means[0], rtol=0.01, atol=0)


def test_rows_go_on_by_their_moments_in_an_optimizer_that_loads_them():
    ours, theirs = make(), make()
    optimizer, other = tk.MaskAdamW(ours, lr=LR), tk.MaskAdamW(theirs, lr=LR)
    for ids in IDS[:2]:
        backward(ours, ids)
        optimizer.step()
        optimizer.zero_grad()
    theirs.load_state_dict(ours.state_dict())
    tk.update_masks(theirs)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, each in ((ours, optimizer), (theirs, other)):
        backward(model, torch.full((2, 3), 7))
        each.step()
    for mine, their in zip(masked(ours), masked(theirs), strict=True):
        assert torch.equal(mine.score, their.score)


def test_a_sparse_and_a_whole_gradient_are_one():
    ours, theirs = make(), make()
    optimizer, separate = tk.MaskAdamW(ours, lr=LR), Separate(theirs)
    for ids in IDS[:4]:
        backward(ours, ids)
        ours[0].masked.tensor.grad = ours[0].masked.tensor.grad.to_dense()  # as several processes add it up
        separate.step(ours, optimizer.step())
        optimizer.zero_grad()
        backward(ours, ids)
        separate.step(ours, optimizer.step())
        optimizer.zero_grad()
        assert_same(ours, theirs)


def test_the_state_is_that_of_adamw():
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR)
    backward(model, IDS[0])
    optimizer.step()
    other = torch.optim.AdamW([module.score for module in masked(model)], lr=LR, weight_decay=0.0)
    other.load_state_dict(optimizer.state_dict())
    for module in masked(model):
        assert torch.equal(other.state[module.score]["exp_avg"], optimizer.state[module.score]["exp_avg"])


def test_a_layer_without_gradient_goes_on_by_its_moments():
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR)
    backward(model, IDS[0])
    model[0].masked.tensor.grad = None
    optimizer.step()
    assert torch.equal(model[0].score, make()[0].score)


def test_masked_weights_of_half_precision():
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR, dtype=torch.bfloat16)
    for ids in IDS[:3]:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(ids).pow(3).sum()
        loss.backward()
        optimizer.step()
    for module in masked(model):
        assert torch.equal(module.masked.tensor, module.masked_weight(torch.bfloat16))
        assert module.score.dtype == torch.float32


@pytest.mark.parametrize("transport", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_masks_its_weight_itself(transport):
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR)
    backward(model, IDS[0])
    other = transport(model)
    assert all(module.masked is None for module in masked(other))
    backward(other, IDS[0])
    assert all(module.score.grad is not None for module in masked(other))
    assert all(module.score.grad is None for module in masked(model))
    assert optimizer.step() > 0
    assert torch.equal(other[1].score, make()[1].score)


@pytest.mark.parametrize(
    "move", [lambda m: m.to("cpu"), lambda m: m.to(torch.float32), nn.Module.float, nn.Module.cpu, nn.Module.train]
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_move_to_the_same_place_keeps_the_masked_weights(move, overwrite):
    """As Hugging Face's Trainer and Accelerate call before the training; here it comes at any moment of a step."""
    ours, theirs = make(), make()
    optimizer = tk.MaskAdamW(ours, lr=LR, overwrite=overwrite)
    other = tk.MaskAdamW(theirs, lr=LR, overwrite=overwrite)
    for ids in IDS[:3]:
        for model, each in ((ours, optimizer), (theirs, other)):
            for act in (lambda: backward(model, ids), each.step, each.zero_grad):  # noqa: B023
                act()
                if model is ours:
                    move(model)
    assert all(module.masked is weight for module, weight in zip(masked(ours), optimizer.masked_weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("move", [nn.Module.bfloat16, lambda m: m.to("meta"), nn.Module.share_memory])
def test_after_a_move_the_step_says_what_to_do(move):
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR)
    move(model)
    backward(model, IDS[0].to(model[0].weight.device))
    assert model[0].masked is None
    with pytest.raises(RuntimeError, match=r"masked module 0 was moved, .* call \.to\(\) first"):
        optimizer.step()


def test_the_optimizer_of_before_says_that_another_has_the_modules():
    model = make()
    before, after = tk.MaskAdamW(model, lr=LR), tk.MaskAdamW(model, lr=LR)
    backward(model, IDS[0])
    with pytest.raises(RuntimeError, match="masked module 0 was moved, converted or given to another MaskAdamW"):
        before.step()
    assert after.step() > 0


def test_the_layers_compile_with_masked_weights():
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the second time with the weights that the step has written
        torch.testing.assert_close(compiled(IDS[0]), model(IDS[0]))
        compiled(IDS[0]).pow(3).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="modules has no MaskedLinear"):
        tk.MaskAdamW(nn.Linear(2, 2))
    for name, value in {"lr": -1.0, "eps": 0.0, "betas": (1.0, 0.9), "weight_decay": -0.1, "max_norm": 0.0}.items():
        with pytest.raises(ValueError, match=f"MaskAdamW: {name}"):
            tk.MaskAdamW(make(), **{name: value})
    with pytest.raises(TypeError, match="dtype"):
        tk.MaskAdamW(make(), dtype=torch.float64)
    frozen = make()
    frozen[0].score.requires_grad_(False)
    with pytest.raises(ValueError, match="the score of masked module 0 is frozen"):
        tk.MaskAdamW(frozen)
    mixed = nn.Sequential(make("abs"), make())
    with pytest.raises(ValueError, match="ranking 'signed' but must have 'abs'"):
        tk.MaskAdamW(mixed)
    optimizer = tk.MaskAdamW(make())
    with pytest.raises(RuntimeError, match="no gradient"):
        optimizer.step()
    with pytest.raises(TypeError, match="closure is a function but must be None"):
        optimizer.step(lambda: None)
    with pytest.raises(RuntimeError, match="a group cannot be added"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.deepcopy(optimizer)


def test_gradients_of_half_precision_beyond_its_range_are_clipped():
    model, head = make(), nn.Parameter(torch.zeros(4, dtype=torch.float16))
    optimizer = tk.MaskAdamW(model, [head], lr=LR)
    backward(model, IDS[0])
    head.grad = torch.full_like(head, 60_000)
    torch.testing.assert_close(optimizer.step(), torch.tensor(120_000.0), rtol=1e-3, atol=0)
    assert head.abs().max() > 0


def used(module):
    """The masked weight that a forward would use."""
    return module(torch.arange(module.num_embeddings)) if module.masked.at_lookup else module.masked.tensor


def linear_layers(model):
    return [module for module in masked(model) if isinstance(module, tk.MaskedLinear)]


def test_gradients_written_over_masked_weights_train_alike():
    ours, theirs = make(), make()
    optimizer, other = tk.MaskAdamW(ours, lr=LR, overwrite=True), tk.MaskAdamW(theirs, lr=LR)
    for ids in IDS[:20]:
        backward(ours, ids)
        backward(theirs, ids)
        for mine, their in zip(linear_layers(ours), linear_layers(theirs), strict=True):
            assert mine.masked.holds_gradient
            assert mine.masked.tensor.grad.data_ptr() == mine.masked.tensor.data_ptr()
            torch.testing.assert_close(mine.masked.tensor.grad, their.masked.tensor.grad)
            # They may differ in the last bit, which Adam makes a large difference of.
            mine.masked.tensor.grad.copy_(their.masked.tensor.grad)
        torch.testing.assert_close(optimizer.step(), other.step())
        optimizer.zero_grad()
        other.zero_grad()
        assert_same(ours, theirs)
        for module in masked(ours):
            assert not module.masked.holds_gradient
            assert torch.equal(used(module), module.masked_weight())


def test_an_embedding_masks_what_it_looks_up_and_keeps_nothing():
    model = make()
    model[0].weight.data[7] = -0.0
    optimizer = tk.MaskAdamW(model, lr=LR, overwrite=True)
    assert model[0].masked.tensor.untyped_storage().nbytes() == 4
    for ids in IDS[:5]:
        backward(model, ids)
        optimizer.step()
        optimizer.zero_grad()
        tk.update_masks(model)  # does nothing here, and must not take it for one to renew
        looked_up = model[0](torch.arange(50))
        assert torch.equal(looked_up.view(torch.int32), model[0].masked_weight().view(torch.int32))
    assert torch.signbit(looked_up[7]).any()


@pytest.mark.parametrize("keep", [0, 1, 400])
def test_what_a_mask_keeps_may_change(keep):
    """Of rows that were never looked up, too, which no step moves."""
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR)
    for _ in range(2):
        backward(model, IDS[0, :1])
        optimizer.step()
        optimizer.zero_grad()
        model[0].keep = keep
    assert int(model[0].mask.sum()) == keep
    assert torch.equal(model[0].masked.tensor, model[0].masked_weight())


def test_what_was_overwritten_is_made_anew_after_a_step_that_is_left_out():
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR, overwrite=True)
    backward(model, IDS[0])
    optimizer.step()
    optimizer.zero_grad()
    before = [module.masked.tensor.detach().clone() for module in masked(model)]
    backward(model, IDS[1], torch.nan)
    assert not optimizer.step().isfinite()
    assert all(torch.equal(module.masked.tensor, made) for module, made in zip(masked(model), before, strict=True))
    optimizer.zero_grad()
    backward(model, IDS[1])
    assert optimizer.step().isfinite()


def test_what_was_overwritten_is_made_anew_without_a_step():
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR, overwrite=True)
    before = [module.masked.tensor.detach().clone() for module in masked(model)]
    backward(model, IDS[0])
    assert not all(torch.equal(module.masked.tensor, made) for module, made in zip(masked(model), before, strict=True))
    optimizer.zero_grad()
    assert all(torch.equal(module.masked.tensor, made) for module, made in zip(masked(model), before, strict=True))


def test_an_overwritten_masked_weight_is_not_used():
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR, overwrite=True)
    backward(model, IDS[0])
    with pytest.raises(RuntimeError, match="its masked weight holds its gradient"):
        model(IDS[1])
    with pytest.raises(RuntimeError, match="update_masks: a masked weight holds its gradient"):
        tk.update_masks(model)
    with pytest.raises(RuntimeError, match="renew is False but must be True"):
        optimizer.step(renew=False)
    optimizer.step()
    with torch.no_grad():  # of which no backward pass can come
        assert model(IDS[1]).isfinite().all()
    backward(model, IDS[1])
    assert all(module.masked.holds_gradient for module in linear_layers(model))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_what_gelu_made_is_not_kept_but_made_again(approximate):
    torch.manual_seed(0)
    model = nn.Sequential(tk.MaskedLinear.from_linear(nn.Linear(8, 16), 60), nn.GELU(approximate))
    model.append(tk.MaskedLinear.from_linear(nn.Linear(16, 4), 30))
    other, x, kept = copy.deepcopy(model), torch.randn(5, 8), []
    optimizer, plain = tk.MaskAdamW(model, overwrite=True), tk.MaskAdamW(other)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        activation = model[:2](x)
        loss = model[2](activation).square().sum()
    assert activation.data_ptr() not in kept
    loss.backward()
    other(x).square().sum().backward()
    for mine, their in zip(masked(model), masked(other), strict=True):
        torch.testing.assert_close(mine.masked.tensor.grad, their.masked.tensor.grad)
    torch.testing.assert_close(optimizer.step(), plain.step())


def test_a_layer_that_is_called_twice_keeps_its_masked_weight():
    torch.manual_seed(0)
    layer, x = tk.MaskedLinear.from_linear(nn.Linear(8, 8), 20), torch.randn(5, 8)
    other = copy.deepcopy(layer)
    optimizer, plain = tk.MaskAdamW(layer, overwrite=True), tk.MaskAdamW(other)
    for module in (layer, other):
        module(module(x)).square().sum().backward()
    assert not layer.masked.holds_gradient
    torch.testing.assert_close(layer.masked.tensor.grad, other.masked.tensor.grad)
    optimizer.step()
    plain.step()
    optimizer.zero_grad()
    layer(x).sum().backward()
    assert layer.masked.holds_gradient


def test_a_bias_that_trains_gets_its_gradient():
    torch.manual_seed(0)
    layer, x = tk.MaskedLinear.from_linear(nn.Linear(8, 6), 20), torch.randn(2, 3, 8)
    layer.bias.requires_grad_()
    optimizer = tk.MaskAdamW(layer, [layer.bias], overwrite=True)
    layer(x).square().sum().backward()
    masked_weight = layer.masked_weight().detach()
    torch.testing.assert_close(layer.bias.grad, 2 * (x @ masked_weight.t() + layer.bias.detach()).sum((0, 1)))
    assert optimizer.step().isfinite()


def test_overwriting_under_autocast():
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR, dtype=torch.bfloat16, overwrite=True)
    for ids in IDS[:3]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(ids).pow(3).sum()
        loss.backward()
        for module in linear_layers(model):
            assert module.masked.tensor.grad.dtype == torch.bfloat16
            assert module.masked.holds_gradient
        optimizer.step()
        optimizer.zero_grad()
    for module in masked(model):
        assert torch.equal(used(module), module.masked_weight(torch.bfloat16))


def test_overwriting_under_another_type_than_autocasts():
    """The masked weight's type is computed in, as its gradient is written over it."""
    model = make()
    optimizer = tk.MaskAdamW(model, lr=LR, overwrite=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model[1](torch.randn(3, 8)).dtype == torch.float32
        with torch.no_grad():
            assert model[1](torch.randn(3, 8)).dtype == torch.float32
        loss = model(IDS[0]).pow(3).sum()
    optimizer.zero_grad()
    loss.backward()
    assert optimizer.step().isfinite()
    with pytest.raises(RuntimeError, match="dtype"):  # as torch's own layer
        model[1](torch.randn(3, 8).bfloat16())
