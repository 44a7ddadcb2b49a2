"""Tokenizers, and how many tokens of a text a model reads."""

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tamt.models.loading import TOKENIZER_FILES, check_pulled_folder, load, load_config
from tamt.runtime.errors import UserError

FEWEST_WORDS = 10
"""Least number of words that a tokenizer knows. Where a folder has none, transformers makes one of special tokens."""
UNLIMITED = 1 << 30
"""Length of the longest input of a model that has no limit."""
BLOCK_LENGTH = 512
"""Default tokens per block (paper, Table 1)."""


def load_tokenizer(name: str, masking: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of the model `name`, padding on the right; it has a mask token if `masking` says that it needs one.

    Raises:
        UserError: it cannot be loaded, knows no words, lacks the mask or the padding token, or has ids that the model
            does not know.
    """
    tokenizer = load(AutoTokenizer, name, "tokenizer")
    tokenizer.padding_side = "right"  # answers are found by positions in the row; some tokenizers pad on the left
    known = getattr(load_config(name), "vocab_size", None)
    _check_words(tokenizer, known, name)
    if masking and tokenizer.mask_token_id is None:
        raise UserError(f"the tokenizer of {name} has no mask token; choose an encoder of the BERT family")
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {name} has no padding token; set its pad_token and save it anew")
    largest = max(tokenizer.get_vocab().values())
    if known is not None and largest >= known:
        raise UserError(
            f"the tokenizer of {name} has ids up to {largest}, but the model's vocabulary ends at {known - 1}; give "
            "the tokenizer that the model was trained with"
        )
    return tokenizer


def _check_words(tokenizer: PreTrainedTokenizerBase, vocabulary: int | None, name: str) -> None:
    """Check that a tokenizer knows words; without words all text becomes the unknown token, or nothing."""
    words = len(tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens))
    if words < FEWEST_WORDS and (vocabulary is None or words < vocabulary / 2):
        check_pulled_folder(name)
        raise UserError(
            f"the tokenizer of {name} knows {words} words beside its special tokens where the model knows "
            f"{vocabulary}, as its files ({', '.join(TOKENIZER_FILES)}) are missing or cut; save the tokenizer that "
            "the model was trained with beside it"
        )


def longest_input(model: PreTrainedModel) -> int:
    """The longest input of the model in tokens, including special tokens; `UNLIMITED` if it has no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:  # positions are relative to each other
        return UNLIMITED
    # RoBERTa and related models count positions from the padding id on.
    embeddings = getattr(model.base_model, "embeddings", None)
    offset = getattr(embeddings, "padding_idx", None)
    # In XLM this is the word embedding, whose padding_idx says nothing about positions.
    return positions if offset is None or isinstance(embeddings, nn.Embedding) else positions - offset - 1


def input_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, asked: int | None, default: int
) -> int:
    """The number of tokens that the model `name` reads of a row; its tokenizer is set to it and saved with it.

    Args:
        model: whose configuration gets the tokenizer's padding id if it has none.
        tokenizer: its `model_max_length` is set.
        name: what a message calls the model.
        asked: the length asked for.
        default: the length if none is asked for; less if the longest input of the model is shorter.

    Raises:
        UserError: the longest input of the model is shorter than asked for.
    """
    longest = longest_input(model)
    if asked is not None and asked > longest:
        raise UserError(f"--max-length {asked} is more than the {longest} tokens of {name}")
    if model.config.pad_token_id is None:  # a decoder's classifier finds the last token of a row by it
        model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = asked or min(default, longest)
    return tokenizer.model_max_length


def block_length(asked: int | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The block length asked for, or the least of 512, the model's positions and the tokenizer's longest input.

    Raises:
        UserError: the model has fewer positions than asked for.
    """
    positions = longest_input(model)
    if asked is not None and asked > positions:
        raise UserError(f"--max-length {asked} is more than the {positions} positions of the model; lower it")
    return asked or min(BLOCK_LENGTH, positions, tokenizer.model_max_length)
