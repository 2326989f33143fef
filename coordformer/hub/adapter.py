"""What the card of an exported adapter of PEFT says of it: `inference.checkpoints` merges it into its base."""

from pathlib import Path

from ..inference.checkpoints import adapter_settings


def describe_adapter(checkpoint: str | Path) -> str | None:
    """What was merged into which weights, in words; None where the checkpoint is no adapter."""
    if (settings := adapter_settings(checkpoint)) is None:
        return None
    rank = f", rank {settings['r']}" if settings.get("r") else ""
    base = Path(settings["base_model_name_or_path"]).name
    return f"{settings.get('peft_type')}{rank}, merged into the weights of {base}"


def base_of_adapter(checkpoint: str | Path) -> str | None:
    """Hub name or folder of the model that an adapter was trained on; None where the checkpoint is no adapter."""
    settings = adapter_settings(checkpoint)
    return None if settings is None else str(settings["base_model_name_or_path"])
