"""Structure as an input of protein language models: coordinates in an ESM-style encoder, for Hugging Face Transformers.

`import coordformer` registers the config, the models, the tokenizer and the processor with the Auto classes, and the
tasks of its pipelines.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .model.chain import Chain, Complex, StructureError
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
from .model.structure import read_chains, read_complex, read_proteins
from .training.conversion import from_esm, from_paper_state_dict

__version__ = "0.2.0"

AutoConfig.register("coordformer", CoordformerConfig, exist_ok=True)
AutoModel.register(CoordformerConfig, CoordformerModel, exist_ok=True)
AutoModelForMaskedLM.register(CoordformerConfig, CoordformerForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(CoordformerConfig, CoordformerForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(CoordformerConfig, CoordformerForTokenClassification, exist_ok=True)
AutoTokenizer.register(CoordformerConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
AutoProcessor.register(CoordformerConfig, CoordformerProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline("protein-fill-mask", ProteinFillMaskPipeline, AutoModelForMaskedLM)
PIPELINE_REGISTRY.register_pipeline("protein-feature-extraction", ProteinFeatureExtractionPipeline, AutoModel)
PIPELINE_REGISTRY.register_pipeline("protein-contact-prediction", ProteinContactPredictionPipeline, AutoModel)
PIPELINE_REGISTRY.register_pipeline("protein-design", ProteinDesignPipeline, AutoModelForMaskedLM)
PIPELINE_REGISTRY.register_pipeline("protein-variant-scoring", ProteinVariantScoringPipeline, AutoModelForMaskedLM)

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
    "read_chains",
    "read_complex",
    "read_proteins",
]
