"""Whole steps of a search, and of what it is held against: each contender is one function that takes a step."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from benchmarks import scores
from benchmarks.kernels.eager import float_mask_weight
from benchmarks.kernels.threshold import by_kthvalue
from tamt.data.corpora import Blocks, train_batches
from tamt.data.token_masking import TokenMasking
from tamt.finetuning.loop import SPARE_MEMORY
from tamt.finetuning.sparse import train_kept_only
from tamt.masks.masking import apply_masks, keep_of, magnitude_masks, packed_masks, prunable_modules, prunable_weights
from tamt.models.language_model import MaskedLanguageModel
from tamt.models.speed import dense_twin, speed_up
from tamt.models.tokenizer import longest_input
from tamt.objectives import Losses, encode
from tamt.options.train import TrainOptions
from tamt.runtime.choices import Precision
from tamt.search.mask_training import start
from tamt.search.search import Plan, Search
from tamt.search.text import Text
from tamt.terms import needs_head, needs_teacher
from tamt.training.compute import Compute, set_up
from tamt.training.optimizer import make_optimizer
from tamt.training.precision import DTYPES
from tamt.training.step_graph import WARM_UP
from tamt.training.steps import Loss, Stepper

Step = Callable[[], object]

SPARSITY = 0.7
LEARNING_RATE = 5e-5
STEPS = 10**6  # of the schedule: more than are ever taken
MAX_NORM = 1.0

BERT, ROBERTA = (BertForMaskedLM, BertForSequenceClassification), (RobertaForMaskedLM, RobertaForSequenceClassification)
SMALL = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 300}
MODELS: dict[str, tuple[tuple[Any, Any], Callable[[], PreTrainedConfig]]] = {
    "bert-base": (BERT, BertConfig),
    "roberta-base": (ROBERTA, partial(RobertaConfig, max_position_embeddings=514, type_vocab_size=1)),
    "demo": (BERT, partial(BertConfig, **SMALL)),
    "tiny": (BERT, partial(BertConfig, **TINY)),
}
"""Random weights of the right shapes: speed does not look at the values."""


class Setting(NamedTuple):
    """``batch`` blocks of ``length`` tokens per step, in ``accumulation`` parts; ``bf16`` on a CPU, if asked for."""

    device: torch.device
    model: str
    batch: int
    length: int
    accumulation: int = 1
    bf16: bool = False

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def longest(self) -> int:
        """How many tokens the model reads at most."""
        heads, config = MODELS[self.model]
        with torch.device("meta"):
            return longest_input(heads[0](config()))

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precision(self) -> Precision:
        """What a training step computes in: bfloat16 on a GPU, float16 where it has none; on a CPU as asked for."""
        if not self.on_gpu:
            return "bf16" if self.bf16 else "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"

    def compute(self, spare_memory: float = 0.0) -> Compute:
        """As `tamt train` sets it up, or with `SPARE_MEMORY` as `tamt finetune` does."""
        return set_up(self.precision, 0, spare_memory)

    def masked_language_model(self) -> PreTrainedModel:
        return self._model(0)

    def classifier(self) -> PreTrainedModel:
        return self._model(1)

    def _model(self, head: int) -> PreTrainedModel:
        heads, config = MODELS[self.model]
        torch.manual_seed(0)
        return heads[head](config()).to(self.device)

    def blocks(self, vocabulary: int) -> Blocks:
        """Random text that fills its blocks, as that of a corpus does but for the last one."""
        tokens = torch.randint(5, vocabulary, (64 * (self.length - 2),), generator=torch.Generator().manual_seed(0))
        return Blocks(tokens.int(), self.length, [2], [3], 0)

    def search(
        self,
        teacher: bool,
        cuda_graphs: bool = True,
        compiled: bool = False,
        lr: float = LEARNING_RATE,
        steps: int = STEPS,
    ) -> Search:
        """A search as `tamt train` sets it up, but without a folder."""
        cuda_graphs = cuda_graphs and self.on_gpu
        model = self.masked_language_model()
        speed_up(model)
        decoder = model.get_output_embeddings()
        decoder.weight = nn.Parameter(decoder.weight.detach().clone(), requires_grad=False)
        compute, vocabulary = self.compute(), model.config.vocab_size
        options = TrainOptions(
            "tamt-mlm+kd", self.model, Path(), ["random"], sparsity=SPARSITY, check_every=STEPS, compile=compiled
        )
        text = Text(
            TokenMasking(4, vocabulary),
            self.blocks(vocabulary),
            None,
            batch_size=self.batch // self.accumulation,
            step_blocks=self.batch // self.accumulation * self.accumulation,
            parts=self.accumulation,
            fixed_shapes=cuda_graphs,
        )
        return Search(
            options,
            Plan(steps, steps, lr, "two-valued", cuda_graphs),
            folder=cast(Any, None),
            compute=compute,
            student=MaskedLanguageModel(model, fresh_head=False),
            teacher=dense_twin(model.base_model, compute.dtype) if teacher else None,
            text=text,
        )


def tamt(setting: Setting, objective: str, compiled: bool = False, cuda_graphs: bool = True) -> Step:
    """Mask training as `tamt train --dropout model` does it, with or without `--compile` and `--no-cuda-graphs`."""
    weights = dict.fromkeys(objective.split("+"), 1.0)
    search = setting.search(needs_teacher(weights), cuda_graphs, compiled)
    return _mask_training(search, needs_head(weights), lambda: Losses(weights, search.student, search.teacher))


def encoder_and_inference(setting: Setting) -> Step:
    """What KD cannot do without: the step of the masked encoder, and one forward of the dense one."""
    search = setting.search(teacher=True)
    teacher = search.teacher
    assert teacher is not None

    def loss(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode():
            encode(teacher, batch, hidden_states=False)
        return {"loss": encode(search.student.encoder, batch, hidden_states=False)[0].float().square().mean()}

    return _mask_training(search, False, lambda: loss)


def _mask_training(search: Search, mlm: bool, make_loss: Callable[[], Callable[[Any], Mapping[str, Tensor]]]) -> Step:
    """A step of a search that is under way: in its first ones, when scores have few values, thresholds take longer."""
    first_masks = magnitude_masks(prunable_weights(search.student.encoder), SPARSITY)
    masked, optimizer, schedule = start(search, first_masks, search.student.head_parameters() if mlm else {})
    drawn = scores.generator(search.compute.device)
    with torch.no_grad():  # the first step makes thresholds and masked weights of them
        for module in masked.values():
            scores.train_(module.score, scores.STEPS[scores.USUAL], drawn)
    stepper = Stepper(
        search.compute,
        search.student.model,
        optimizer,
        schedule,
        search.text.parts,
        STEPS,
        search.plan.cuda_graphs,
    )
    return _step(stepper, search.text.batches(1, masked=mlm), make_loss())


def _step(stepper: Stepper, batches: Iterator[Any], loss: Loss) -> Step:
    """Takes the next of tamt's training steps; those up to the recorded one, which takes a second, are done."""
    steps = stepper.take(batches, loss, 1, STEPS)
    for _ in range(WARM_UP + 1 if stepper.cuda_graphs else 0):
        next(steps)
    return partial(next, steps)


def imp(setting: Setting, cuda_graphs: bool = True) -> Step:
    """A step of IMP between two prunings: all weights train, and the pruned ones stay zero."""
    search = setting.search(teacher=False, cuda_graphs=cuda_graphs)
    model = search.student.model
    model.requires_grad_(True)
    model.get_output_embeddings().weight.requires_grad_(False)
    masks = magnitude_masks(prunable_weights(model), SPARSITY)
    apply_masks(model, masks)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = make_optimizer(trained, LEARNING_RATE, STEPS, pruned=packed_masks(model, masks))
    stepper = Stepper(search.compute, model, optimizer, schedule, search.text.parts, STEPS, search.plan.cuda_graphs)
    return _step(stepper, search.text.batches(1, masked=True), Losses({"mlm": 1.0}, search.student))


def ordinary(setting: Setting, objective: str, compiled: bool = False) -> Step:
    """Mask training as it is commonly written: a mask of floats at every forward, torch's AdamW, kthvalue matrix by
    matrix after every step, logits of all positions, a teacher of its own."""
    model = setting.masked_language_model()
    teacher = copy.deepcopy(model.base_model).eval() if "kd" in objective else None
    decoder = model.get_output_embeddings()
    decoder.weight = nn.Parameter(decoder.weight.detach().clone(), requires_grad=False)
    model.requires_grad_(False)
    head = [p for name, p in model.named_parameters() if not name.startswith(model.base_model_prefix)]
    head = [p for p in head if p is not decoder.weight] if "mlm" in objective else []
    layers = []
    for name, module in prunable_modules(model).items():
        layers.append(_FloatMasked(cast("nn.Linear | nn.Embedding", module)))
        model.base_model.set_submodule(name, layers[-1])
    trained = [layer.score for layer in layers] + [parameter.requires_grad_() for parameter in head]
    asked = model if "mlm" in objective else model.base_model
    forward = torch.compile(asked) if compiled else asked

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        labels = {"labels": batch["labels"]} if "mlm" in objective else {}
        output = forward(**inputs, **labels, output_hidden_states=teacher is not None)
        total = output.loss if labels else torch.zeros((), device=setting.device)
        if teacher is None:
            return total
        with torch.no_grad():
            target = teacher(**inputs, output_hidden_states=True).hidden_states
        real = batch["attention_mask"].float()
        for t, s in zip(target[1:], output.hidden_states[1:], strict=True):
            distance = (1 - F.cosine_similarity(t.float(), s.float(), dim=-1)) * real
            total = total + distance.sum() / real.sum() / (len(target) - 1)
        return total

    def after() -> None:
        for layer in layers:
            layer.renew()

    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    return _plain_training(setting, model, optimizer, loss, "mlm" in objective, after)


def hugging_face(setting: Setting, compiled: bool = False) -> Step:
    """Dense MLM training of the same model: labels given to AutoModelForMaskedLM's class, fused AdamW, clipping.

    Compiled, a GPU starts it from CUDA graphs.
    """
    model = setting.masked_language_model()
    forward = torch.compile(model, mode="reduce-overhead" if setting.on_gpu else None) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        return forward(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss

    return _plain_training(setting, model, optimizer, loss, mlm=True)


def hugging_face_fine_tuning(setting: Setting) -> Step:
    """Fine-tuning of the full model as users have it: AutoModelForSequenceClassification's class, AdamW, clipping."""
    model = setting.classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return model(**inputs, labels=batch["input_ids"][:, 1] % 2).loss

    return _plain_training(setting, model, optimizer, loss, mlm=False)


def in_bf16(make: Callable[[Setting], Step]) -> Callable[[Setting], Step]:
    """A contender that computes in bfloat16 on a CPU."""
    return lambda setting: make(setting._replace(bf16=True))


def _plain_training(
    setting: Setting,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    mlm: bool,
    after: Callable[[], None] = lambda: None,
) -> Step:
    # Not `set_up`, which would reuse freed memory.
    dtype = DTYPES[setting.precision]
    vocabulary = model.config.vocab_size
    masking = TokenMasking(4, vocabulary) if mlm else None
    size = setting.batch // setting.accumulation
    batches = train_batches(setting.blocks(vocabulary), size, 0, 0, masking)
    model.train()

    def step() -> None:
        for _ in range(setting.accumulation):
            batch = {name: tensor.to(setting.device) for name, tensor in next(batches).items()}
            with torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32):
                part = loss(batch) / setting.accumulation
            part.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        after()

    return step


class _FloatMasked(nn.Module):
    """A frozen layer over weight * mask, where the mask is made of floats at every forward."""

    def __init__(self, layer: nn.Linear | nn.Embedding) -> None:
        super().__init__()
        self.layer = layer
        self.score = nn.Parameter(layer.weight.detach().abs())
        self.keep = keep_of(layer.weight.numel(), SPARSITY)
        self.threshold = torch.zeros((), device=layer.weight.device)
        self.renew()

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @torch.no_grad()
    def renew(self) -> None:
        self.threshold.copy_(by_kthvalue(self.score.flatten(), self.keep))

    def forward(self, x: Tensor) -> Tensor:
        weight = float_mask_weight(self.layer.weight, self.score, self.threshold, self.layer.weight.dtype)
        if isinstance(self.layer, nn.Embedding):
            return F.embedding(x, weight, self.layer.padding_idx)
        return F.linear(x, weight, self.layer.bias)


def fine_tuning(setting: Setting, sparsity: float = 0.0, sparse: bool = False, cuda_graphs: bool = True) -> Step:
    """Fine-tuning as `tamt finetune` does it: of a subnetwork, dense or with `--sparse on`, or of the full model."""
    model, compute = setting.classifier(), setting.compute(SPARE_MEMORY)
    speed_up(model)
    masks = magnitude_masks(prunable_weights(model), sparsity) if sparsity else {}
    if masks:
        apply_masks(model, masks)
    pruned = (train_kept_only if sparse else packed_masks)(model, masks)
    optimizer, schedule = make_optimizer(model.parameters(), LEARNING_RATE, STEPS, pruned=pruned)
    size = setting.batch // setting.accumulation

    def batches() -> Iterator[dict[str, Tensor]]:
        for batch in train_batches(setting.blocks(model.config.vocab_size), size, 0, 0):
            yield {"input_ids": batch["input_ids"], "labels": batch["input_ids"][:, 1] % 2}

    def loss(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(model(batch["input_ids"]).logits.float(), batch["labels"])}

    stepper = Stepper(compute, model, optimizer, schedule, setting.accumulation, STEPS, cuda_graphs and setting.on_gpu)
    return _step(stepper, batches(), loss)


OURS, OURS_COMPILED = "tamt", "tamt --compile"
NO_GRAPHS, NO_GRAPHS_COMPILED = "tamt --no-cuda-graphs", "tamt --no-cuda-graphs --compile"
ORDINARY, COMPILED = "ordinary", "ordinary, torch.compile"
OURS_BF16 = "tamt --precision bf16"
HUGGING_FACE, HF_BF16, HF_COMPILED = "HF dense MLM", "HF dense MLM, bf16 autocast", "HF dense MLM, torch.compile"
HF_FINE_TUNING, HF_FINE_TUNING_BF16 = "HF fine-tuning", "HF fine-tuning, bf16 autocast"
IMP, IMP_NO_GRAPHS, DENSE = "IMP", "IMP --no-cuda-graphs", "dense"
NEEDED, FINE_TUNING = "encoder step + inference", "fine-tuning"

CONTENDERS: dict[str, dict[str, Callable[[Setting], Step]]] = {
    "mlm": {
        OURS: partial(tamt, objective="mlm"),
        NO_GRAPHS: partial(tamt, objective="mlm", cuda_graphs=False),
        OURS_COMPILED: partial(tamt, objective="mlm", compiled=True),
        NO_GRAPHS_COMPILED: partial(tamt, objective="mlm", compiled=True, cuda_graphs=False),
        ORDINARY: partial(ordinary, objective="mlm"),
        COMPILED: partial(ordinary, objective="mlm", compiled=True),
        OURS_BF16: in_bf16(partial(tamt, objective="mlm")),
        HUGGING_FACE: hugging_face,
        HF_BF16: in_bf16(hugging_face),
        HF_COMPILED: partial(hugging_face, compiled=True),
        IMP: imp,
        IMP_NO_GRAPHS: partial(imp, cuda_graphs=False),
    },
    "kd": {
        OURS: partial(tamt, objective="kd"),
        NO_GRAPHS: partial(tamt, objective="kd", cuda_graphs=False),
        OURS_BF16: in_bf16(partial(tamt, objective="kd")),
        ORDINARY: partial(ordinary, objective="kd"),
        NEEDED: encoder_and_inference,
    },
    "mlm+kd": {
        OURS: partial(tamt, objective="mlm+kd"),
        NO_GRAPHS: partial(tamt, objective="mlm+kd", cuda_graphs=False),
        ORDINARY: partial(ordinary, objective="mlm+kd"),
    },
    **{
        objective: {
            OURS: partial(tamt, objective=objective),
            NO_GRAPHS: partial(tamt, objective=objective, cuda_graphs=False),
        }
        for objective in ("attention", "logits", "contrastive", "kd+attention", "kd+contrastive")
    },
    FINE_TUNING: {
        OURS: partial(fine_tuning, sparsity=SPARSITY),
        NO_GRAPHS: partial(fine_tuning, sparsity=SPARSITY, cuda_graphs=False),
        OURS_BF16: in_bf16(partial(fine_tuning, sparsity=SPARSITY)),
        DENSE: fine_tuning,
        HF_FINE_TUNING: hugging_face_fine_tuning,
        HF_FINE_TUNING_BF16: in_bf16(hugging_face_fine_tuning),
    },
}
NEEDS_COMPILER = {OURS_COMPILED, NO_GRAPHS_COMPILED, COMPILED, HF_COMPILED}
NEEDS_BF16_CPU = {OURS_BF16, HF_BF16, HF_FINE_TUNING_BF16}
"""Contenders for CPUs with bf16 instructions; on a GPU all compute in half precision."""
NEEDS_GPU = {NO_GRAPHS, NO_GRAPHS_COMPILED, IMP_NO_GRAPHS}
