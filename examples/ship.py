"""A classifier or a contact head as a folder like those of hub_cards/: weights, records and card, no code.

    python examples/ship.py runs/function/full_with_coordinates_0 hub_cards/coordformer-1M-ec
    python examples/ship.py contacts_output/head_both hub_cards/coordformer-1M-contacts

The folder of the run is one that examples/function/function.py or examples/contacts/contacts.py left, with what it
measured in evaluation.json, and in words in evaluation.md. The card is that of `coordformer export`, with these words
for its evaluation.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from coordformer.data.files import write_json, write_text
from coordformer.hub.export import export

WEIGHTS = ("model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
RECORDS = ("run.json", "train.json", "log.csv", "evaluation.json")
UNKNOWN = "Not measured."  # of a card without reports of `coordformer evaluate`


def ship(run: Path, output: Path) -> None:
    """Export in bfloat16, checked, and keep what a folder needs where the package is installed.

    Raises:
        ValueError: the output is there already, or cannot be exported.
        OSError: a record is missing.
    """
    if output.exists():
        raise ValueError(f"{output} exists already; delete it or give the name of a new folder.")
    evaluation = (run / "evaluation.md").read_text(encoding="utf-8").strip()
    with tempfile.TemporaryDirectory() as scratch:
        exported = Path(scratch) / output.name
        export(run, exported, dtype="bfloat16")
        card = (exported / "README.md").read_text(encoding="utf-8")
        config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
        config.pop("custom_pipelines", None)  # which are code
        output.mkdir(parents=True)
        write_json(output / "config.json", config)
        write_text(output / "README.md", card.replace(f"\n{UNKNOWN}\n", f"\n{evaluation}\n"))
        for folder, names in ((exported, WEIGHTS), (run, RECORDS)):
            for name in names:
                shutil.copy(folder / name, output / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    try:
        ship(arguments.run, arguments.output)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
