"""`tamt train`: from a model and a text to a mask file."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tamt.data.corpora import Blocks, load_corpus, load_held_out
from tamt.data.token_masking import TokenMasking
from tamt.methods import SCHEDULE_STEPS, find_method
from tamt.models.loading import (
    MaskedLanguageModel,
    block_length,
    checkpoint_activations,
    dense_twin,
    load_masked_language_model,
    load_pooler,
    load_tokenizer,
    read_head,
)
from tamt.models.relations import projections_of
from tamt.options.base import command
from tamt.options.train import TrainOptions
from tamt.recipes import search_recipe
from tamt.runtime import processes
from tamt.runtime.choices import MASKS_BY_NAME, scores_of_start
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.search.head import warm_up_head
from tamt.search.learning_rate import default_rate
from tamt.search.scores import read_initial
from tamt.search.search import HEAD_FILE, Search
from tamt.terms import needs_head
from tamt.training.dev_losses import check_encoder_runs
from tamt.training.loop import (
    HalfPrecisionError,
    as_begun,
    choose_fp32,
    compute_dtype,
    make_accelerator,
    report_arithmetic,
)
from tamt.training.new_output import with_output
from tamt.training.run_folder import CHECKPOINTS, RunFolder, check_output
from tamt.training.step_graph import starts_from_graphs


class _Inputs(NamedTuple):
    """What a search reads before it begins."""

    student: MaskedLanguageModel
    tokenizer: PreTrainedTokenizerBase
    pooler: Tensor | None
    train_blocks: Blocks | None
    dev_blocks: Blocks | None


@command(TrainOptions)
def train(options: TrainOptions) -> dict:
    """Run `tamt train`."""
    processes.join()
    with with_output(options, lambda: [options.model, options.method, f"{options.sparsity:g}"]) as settled:
        return _train(settled)


def _train(options: TrainOptions) -> dict:
    processes.by_first(partial(check_output, options.output, options.resume))
    asked, output, method = options.precision, options.output, find_method(options.method)
    options = as_begun(options)
    parts = processes.parts_of_step(_step_blocks(options), options.batch_size)
    accelerator = make_accelerator(options.precision, parts, options.seed)
    _check_contrast(options, accelerator)
    inputs = _load(options)
    student = inputs.student
    student.model.to(accelerator.device)
    try:
        if text := inputs.train_blocks or inputs.dev_blocks:
            check_encoder_runs(student, options.model, accelerator, text)
    except HalfPrecisionError as error:
        choose_fp32(asked, error)
        return _train(replace(options, precision="fp32"))
    in_place = not method.trains_scores  # these cut the student's own weights, so the teacher needs its own
    teacher = copy.deepcopy(student.encoder) if in_place else dense_twin(student.encoder, compute_dtype(accelerator))
    checkpointing = options.activation_checkpointing
    cuda_graphs = not method.one_shot and starts_from_graphs(options.no_cuda_graphs, checkpointing)
    if checkpointing:
        checkpoint_activations(student.model, options.model)

    with RunFolder.start(output, options.settings(), options.resume, options.keep, options.track) as folder:
        report_arithmetic(accelerator, asked)
        search = _search(options, inputs, folder, accelerator, teacher, cuda_graphs)
        if student.fresh_head and needs_head(search.objective):
            warmed_up = f"{CHECKPOINTS}/{HEAD_FILE}"  # θ0 of IMP's head, which a resumed run needs
            if folder.resumed:
                student.load_head(read_head(output / warmed_up), output / warmed_up)
            else:
                warm_up_head(search, options.head_warmup_steps)
                search.save_head(warmed_up)
        processes.own_dropout()
        results = method.function()(search)
        folder.finish({"results": results})
    say(f"the mask is in {results[-1]['mask']}")
    return {"results": results}


def _step_blocks(options: TrainOptions) -> int:
    """Blocks of an optimizer step, over all processes."""
    return options.batch_size * options.accumulation * (options.processes_of_step or 1)


def _check_contrast(options: TrainOptions, accelerator: Accelerator) -> None:
    smallest = _step_blocks(options) // (accelerator.gradient_accumulation_steps * processes.count())
    if "contrastive" in options.weights() and smallest < 2:
        raise UserError(
            f"the contrastive term compares the blocks of a batch with each other, and a batch has {smallest}; raise "
            "--batch-size"
        )


def _load(options: TrainOptions) -> _Inputs:
    """Read the model and the text, and check the mask and the head that the options name."""
    weights, corpus, dev_corpus = options.weights(), options.corpus, options.dev_corpus
    with processes.one_first():
        need_head = needs_head(weights) or options.head is not None
        student = load_masked_language_model(options.model, need_head=need_head)
        if options.head is not None:
            student.load_head(read_head(options.head), options.head)
        if "attention" in weights:
            projections_of(student.encoder)
        if options.initial is not None and options.initial not in MASKS_BY_NAME:
            read_initial(Path(options.initial), student.encoder, options.sparsity, not options.dense_embedding)
        pooler = load_pooler(options.model) if options.prune_pooler else None
        tokenizer = load_tokenizer(options.model)
        length = block_length(options.max_length, student.model, tokenizer)
        train_blocks = dev_blocks = None
        if corpus and find_method(options.method).needs_text:
            train_blocks, dev_blocks = load_corpus(corpus, dev_corpus, tokenizer, length)
        elif corpus or dev_corpus:
            dev_blocks = load_held_out(corpus or [], dev_corpus, tokenizer, length)
    if dev_blocks is not None and options.eval_blocks is not None:
        dev_blocks, _ = dev_blocks.split(options.eval_blocks)
    return _Inputs(student, tokenizer, pooler, train_blocks, dev_blocks)


def _search(
    options: TrainOptions,
    inputs: _Inputs,
    folder: RunFolder,
    accelerator: Accelerator,
    teacher: PreTrainedModel,
    cuda_graphs: bool,
) -> Search:
    """The search that the options ask for."""
    method, steps = find_method(options.method), options.last_step()
    recipe = search_recipe(options.recipe, method)
    scores = scores_of_start(options.scores or recipe.get("scores"), options.initial)
    lr = recipe.get("lr") if options.lr is None else options.lr
    return Search(
        folder=folder,
        accelerator=accelerator,
        student=inputs.student,
        masking=TokenMasking.of(inputs.tokenizer, inputs.student.model),
        model=options.model,
        method=options.method,
        sparsity=options.sparsity,
        seed=options.seed,
        batch_size=options.batch_size,
        step_blocks=_step_blocks(options),
        check_every=options.check_every,
        steps=steps,
        schedule_steps=options.steps or SCHEDULE_STEPS,
        lr=(default_rate(method, scores, steps) if lr is None else lr) or 0.0,
        log_every=options.log_every,
        eval_every=options.eval_every,
        save_every=options.save_every,
        save_at=options.save_at or [],
        teacher=teacher,
        train_blocks=inputs.train_blocks,
        dev_blocks=inputs.dev_blocks,
        objective=options.weights(),
        scores=scores,
        initial=options.initial,
        scope=options.scope,
        ranking=options.ranking,
        threshold_every=options.threshold_every,
        pooler=inputs.pooler,
        dense_embedding=options.dense_embedding,
        compile=options.compile,
        cuda_graphs=cuda_graphs,
        activation_checkpointing=options.activation_checkpointing,
    )
