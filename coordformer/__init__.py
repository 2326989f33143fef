"""Structure as an input of protein language models: coordinates in an ESM-style encoder, for Hugging Face Transformers.

`import coordformer` registers the config, the models, the tokenizer and the processor with the Auto classes, and the
tasks of its pipelines. Chains and the readers of structures are there at once; all that needs torch and Transformers is
imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .auto_classes import hook
from .model.chain import Chain, Complex, StructureError
from .model.structure import read_chains, read_complex, read_proteins

__version__ = "0.2.0"

# Of each name that is imported when it is first asked for.
_MODULES = {
    "CoordformerConfig": "model.configuration_coordformer",
    "CoordformerForContactPrediction": "model.modeling_coordformer",
    "CoordformerForMaskedLM": "model.modeling_coordformer",
    "CoordformerForSequenceClassification": "model.modeling_coordformer",
    "CoordformerForTokenClassification": "model.modeling_coordformer",
    "CoordformerModel": "model.modeling_coordformer",
    "CoordformerPreTrainedModel": "model.modeling_coordformer",
    "CoordformerProcessor": "model.processing_coordformer",
    "ProteinContactPredictionPipeline": "model.pipeline_coordformer",
    "ProteinDesignPipeline": "model.pipeline_coordformer",
    "ProteinFeatureExtractionPipeline": "model.pipeline_coordformer",
    "ProteinFillMaskPipeline": "model.pipeline_coordformer",
    "ProteinVariantScoringPipeline": "model.pipeline_coordformer",
    "build_tokenizer": "model.processing_coordformer",
    "design": "model.design",
    "from_esm": "training.conversion",
    "from_paper_state_dict": "training.conversion",
    "from_proteinmpnn": "training.from_proteinmpnn",
}

if TYPE_CHECKING:
    from .model.configuration_coordformer import CoordformerConfig
    from .model.design import design
    from .model.modeling_coordformer import (
        CoordformerForContactPrediction,
        CoordformerForMaskedLM,
        CoordformerForSequenceClassification,
        CoordformerForTokenClassification,
        CoordformerModel,
        CoordformerPreTrainedModel,
    )
    from .model.pipeline_coordformer import (
        ProteinContactPredictionPipeline,
        ProteinDesignPipeline,
        ProteinFeatureExtractionPipeline,
        ProteinFillMaskPipeline,
        ProteinVariantScoringPipeline,
    )
    from .model.processing_coordformer import CoordformerProcessor, build_tokenizer
    from .training.conversion import from_esm, from_paper_state_dict
    from .training.from_proteinmpnn import from_proteinmpnn
else:  # a type checker reads the names above, and would take any other for one of these

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "Chain",
    "Complex",
    "CoordformerConfig",
    "CoordformerForContactPrediction",
    "CoordformerForMaskedLM",
    "CoordformerForSequenceClassification",
    "CoordformerForTokenClassification",
    "CoordformerModel",
    "CoordformerPreTrainedModel",
    "CoordformerProcessor",
    "ProteinContactPredictionPipeline",
    "ProteinDesignPipeline",
    "ProteinFeatureExtractionPipeline",
    "ProteinFillMaskPipeline",
    "ProteinVariantScoringPipeline",
    "StructureError",
    "build_tokenizer",
    "design",
    "from_esm",
    "from_paper_state_dict",
    "from_proteinmpnn",
    "read_chains",
    "read_complex",
    "read_proteins",
]

hook.install()
