"""Fine-tune a ticket with Hugging Face's Trainer: pruned weights stay zero, and the saved model is an ordinary one.

    python examples/trainer.py --model bert-base-uncased --ticket runs/kd-70 --train-file train.csv --dev-file dev.csv

The files have a column `sentence` and a column `label`, which counts from 0. Without `--ticket` the largest weights are
kept.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

import tamt


def accuracy(predicted: EvalPrediction) -> dict[str, float]:
    """The share of rows whose label has the largest logit."""
    return {"accuracy": float(np.mean(predicted.predictions.argmax(-1) == predicted.label_ids))}


def main() -> None:
    """Fine-tune, save the model, and print its score and its zeros."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bert-base-uncased", help="hub name or folder of the pre-trained model")
    parser.add_argument("--ticket", type=Path, help="run folder of tamt train, or a mask file")
    parser.add_argument("--train-file", required=True, help="CSV file of train rows")
    parser.add_argument("--dev-file", required=True, help="CSV file of dev rows")
    parser.add_argument("--max-length", type=int, default=128, help="tokens per row; more are cut off")
    parser.add_argument("--epochs", type=float, default=3, help="passes over the train rows")
    parser.add_argument("--output", default="runs/trainer", help="folder for the model")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = load_dataset("csv", data_files={"train": options.train_file, "dev": options.dev_file})
    rows = rows.map(lambda row: tokenizer(row["sentence"], truncation=True, max_length=options.max_length))
    labels = max(rows["train"]["label"]) + 1

    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=labels)
    ticket = tamt.Ticket.load(options.ticket) if options.ticket else tamt.Ticket.magnitude(model, 0.7)
    ticket.apply(model)

    trainer = Trainer(
        model,
        TrainingArguments(options.output, num_train_epochs=options.epochs, learning_rate=1.6e-4, report_to="none"),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows["train"],
        eval_dataset=rows["dev"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()

    weights = dict(model.base_model.named_parameters())
    revived = sum(int((weights[name] != 0)[~mask.to(model.device)].sum()) for name, mask in ticket.masks.items())
    print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f} with {ticket.sparsity:.1%} of the weights pruned")
    print(f"{revived} pruned weights have come back; the model is in {options.output}")


if __name__ == "__main__":
    main()
