"""`tamt train`: from a model and a text to a mask file."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

import tamt_kernels as tk
from tamt.data.corpora import load_corpus, load_held_out
from tamt.data.token_masking import TokenMasking
from tamt.masks.masking import check_pattern_fits, prunable_weights, sparsity_from
from tamt.methods import SCHEDULE_STEPS, find_method
from tamt.models.language_model import MaskedLanguageModel, load_masked_language_model, read_head
from tamt.models.loading import load_pooler
from tamt.models.relations import projections_of
from tamt.models.shrink import check_structure_fits
from tamt.models.speed import checkpoint_activations, dense_twin
from tamt.models.tokenizer import block_length, load_tokenizer
from tamt.options.base import command
from tamt.options.train import TrainOptions
from tamt.recipes import search_recipe
from tamt.runtime import processes
from tamt.runtime.choices import MASKS_BY_NAME, scores_of_start
from tamt.runtime.console import say
from tamt.runtime.errors import UserError
from tamt.runtime.structure import Structure
from tamt.search.head import warm_up_head
from tamt.search.learning_rate import default_rate
from tamt.search.scores import read_initial
from tamt.search.search import HEAD_FILE, Plan, Search
from tamt.search.text import Text
from tamt.terms import needs_head
from tamt.training.compute import report_compute, set_up
from tamt.training.dev_losses import check_encoder_runs
from tamt.training.half_precision import or_in_fp32
from tamt.training.new_output import with_output
from tamt.training.precision import as_begun
from tamt.training.run_folder import CHECKPOINTS, RunFolder, check_output
from tamt.training.step_graph import starts_from_graphs


class _Inputs(NamedTuple):
    """The inputs of a search."""

    student: MaskedLanguageModel
    pooler: Tensor | None
    text: Text


@command(TrainOptions)
def train(options: TrainOptions) -> dict:
    """Run `tamt train`."""
    processes.join()
    kept = options.structure or options.pattern or f"{options.share():g}"
    with with_output(options, lambda: [options.model, options.method, kept]) as settled:
        processes.by_first(partial(check_output, settled.output, settled.resume))
        return or_in_fp32(_train, settled)


def _train(options: TrainOptions) -> dict:
    asked, output, method = options.precision, options.output, find_method(options.method)
    options = as_begun(options)
    compute = set_up(options.precision, options.seed)
    student, pooler, text = _load(options)
    student.model.to(compute.device)
    if blocks := text.train or text.dev:
        check_encoder_runs(student, options.model, compute, blocks)
    in_place = not method.trains_scores  # these set the student's own weights to zero, so the teacher needs a copy
    teacher = copy.deepcopy(student.encoder) if in_place else dense_twin(student.encoder, compute.dtype)
    one_by_one = options.no_cuda_graphs or options.structure is not None  # a graph with gates was never tried
    cuda_graphs = not method.one_shot and starts_from_graphs(one_by_one, options.activation_checkpointing)
    text = replace(text, fixed_shapes=cuda_graphs)
    if options.activation_checkpointing:
        checkpoint_activations(student.model, options.model)

    with RunFolder(output, options.settings(), options.resume, options.keep, options.track) as folder:
        report_compute(compute, asked)
        if options.structure is not None and compute.device.type == "cuda":
            say("masks of a structure are trained without CUDA graphs, which takes longer")
        search = Search(options, _plan(options, cuda_graphs), folder, compute, student, teacher, text, pooler)
        if student.fresh_head and needs_head(options.weights()):
            _warm_up_head(search)
        processes.own_dropout()
        results = method.function()(search)
        folder.finish({"results": results})
    say(f"the mask is in {results[-1]['mask']}")
    return {"results": results}


def _warm_up_head(search: Search) -> None:
    """Train the fresh head, or on --resume read the one that was trained: it is θ0 of IMP's head."""
    name = f"{CHECKPOINTS}/{HEAD_FILE}"
    if search.folder.resumed:
        path = search.folder.path / name
        search.student.load_head(read_head(path), path)
    else:
        warm_up_head(search, search.options.head_warmup_steps)
        search.save_head(name)


def _step_blocks(options: TrainOptions) -> int:
    """Blocks per optimizer step, over all processes."""
    return options.batch_size * options.accumulation * (options.processes_of_step or 1)


def _check_contrast(options: TrainOptions, parts: int) -> None:
    smallest = _step_blocks(options) // (parts * processes.count())
    if "contrastive" in options.weights() and smallest < 2:
        raise UserError(
            f"the contrastive term compares the blocks of a batch with each other, and a batch has {smallest}; raise "
            "--batch-size"
        )


def _load(options: TrainOptions) -> _Inputs:
    """Read the model and the text, and check the mask and the head that the options name."""
    parts = processes.parts_of_step(_step_blocks(options), options.batch_size)
    _check_contrast(options, parts)
    weights, corpus, dev_corpus = options.weights(), options.corpus, options.dev_corpus
    with processes.one_first():
        need_head = needs_head(weights) or options.head is not None
        student = load_masked_language_model(options.model, need_head, options.drops_out())
        if options.head is not None:
            student.load_head(read_head(options.head), options.head)
        if "attention" in weights:
            projections_of(student.encoder)
        sparsity = sparsity_from(options.pattern, options.structure, options.share())
        if isinstance(sparsity, tk.Pattern):
            check_pattern_fits(prunable_weights(student.encoder, embedding=not options.dense_embedding), sparsity)
        elif isinstance(sparsity, Structure):
            check_structure_fits(student.model, sparsity)
        if options.initial is not None and options.initial not in MASKS_BY_NAME:
            read_initial(Path(options.initial), student.encoder, sparsity, not options.dense_embedding)
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
    text = Text(
        masking=TokenMasking.of(tokenizer, student.model),
        train=train_blocks,
        dev=dev_blocks,
        batch_size=options.batch_size,
        step_blocks=_step_blocks(options),
        parts=parts,
        seed=options.seed,
    )
    return _Inputs(student, pooler, text)


def _plan(options: TrainOptions, cuda_graphs: bool) -> Plan:
    """Decide what the options leave open."""
    method, steps = find_method(options.method), options.last_step()
    recipe = search_recipe(options.recipe, method)
    scores = scores_of_start(options.scores or recipe.get("scores"), options.initial)
    lr = recipe.get("lr") if options.lr is None else options.lr
    default = default_rate(method, scores, steps, options.share(), options.structure is not None)
    return Plan(
        steps=steps,
        schedule_steps=options.steps or SCHEDULE_STEPS,
        lr=(default if lr is None else lr) or 0.0,
        scores=scores,
        cuda_graphs=cuda_graphs,
    )
