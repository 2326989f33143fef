"""Registration with Transformers: of the classes with the Auto classes, and of the tasks with the pipelines.

It takes the classes themselves: Transformers' own lazy mappings look names up in its own folder alone. Importing them
takes torch and most of Transformers, seconds for which reading a structure is not to wait. So `import coordformer`
registers at once what Transformers has imported already; for the rest a hook stands by.
"""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from itertools import dropwhile, islice
from types import ModuleType
from typing import Any


def register_classes() -> None:
    """With `AutoConfig`, `AutoModel`, `AutoTokenizer`, `AutoProcessor` and their like."""
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

    from .model import modeling_coordformer as models
    from .model.configuration_coordformer import CoordformerConfig
    from .model.processing_coordformer import CoordformerProcessor

    AutoConfig.register("coordformer", CoordformerConfig, exist_ok=True)
    AutoModel.register(CoordformerConfig, models.CoordformerModel, exist_ok=True)
    AutoModelForMaskedLM.register(CoordformerConfig, models.CoordformerForMaskedLM, exist_ok=True)
    AutoModelForSequenceClassification.register(
        CoordformerConfig, models.CoordformerForSequenceClassification, exist_ok=True
    )
    AutoModelForTokenClassification.register(CoordformerConfig, models.CoordformerForTokenClassification, exist_ok=True)
    AutoTokenizer.register(CoordformerConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
    AutoProcessor.register(CoordformerConfig, CoordformerProcessor, exist_ok=True)


def register_pipelines() -> None:
    """With `pipeline`: a task for each of the package's pipelines."""
    from transformers import AutoModel, AutoModelForMaskedLM
    from transformers.pipelines import PIPELINE_REGISTRY

    from .model import pipeline_coordformer as pipelines

    register = PIPELINE_REGISTRY.register_pipeline
    register("protein-fill-mask", pipelines.ProteinFillMaskPipeline, AutoModelForMaskedLM)
    register("protein-feature-extraction", pipelines.ProteinFeatureExtractionPipeline, AutoModel)
    register("protein-contact-prediction", pipelines.ProteinContactPredictionPipeline, AutoModel)
    register("protein-design", pipelines.ProteinDesignPipeline, AutoModelForMaskedLM)
    register("protein-variant-scoring", pipelines.ProteinVariantScoringPipeline, AutoModelForMaskedLM)


class ImportHook:
    """Makes calls once certain modules are imported; then it leaves `sys.meta_path`.

    Not in the middle of an import: what is registered imports much of Transformers and of this package, and may itself
    be what imports Transformers. So the modules of both that are being executed are counted, and the last one decides.

    Args:
        packages: whose modules are counted.
        calls: by the name of the module that each waits for.
    """

    def __init__(self, packages: Collection[str], calls: Mapping[str, Callable[[], None]]):
        self.packages, self.waiting = packages, dict(calls)
        self.executing: set[str] = set()

    def install(self) -> None:
        """Make the calls that can be made, and stand by for the others."""
        if self.waiting and self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        self.call()

    def call(self) -> None:
        if self.executing:
            return
        for name in [name for name in self.waiting if name in sys.modules]:
            # Taken out first: of several threads one calls, and what that imports comes here, too.
            if call := self.waiting.pop(name, None):
                call()
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the finders after this one find, and of a module that is watched with an `exec_module` that says so."""
        if name.partition(".")[0] not in self.packages:
            return None
        others = islice(dropwhile(lambda finder: finder is not self, list(sys.meta_path)), 1, None)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        loader: Any = spec and spec.loader
        if hasattr(loader, "exec_module"):
            # On the loader that there is: a loader of our own would have to offer all that others ask of it.
            loader.exec_module = partial(self._execute, loader.exec_module)
        return spec

    def _execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        name = str(module.__name__)
        self.executing.add(name)
        try:
            execute(module)
        finally:
            self.executing.discard(name)
        self.call()


hook = ImportHook(
    ("transformers", "coordformer"),
    {
        "transformers.models.auto.configuration_auto": register_classes,
        "transformers.pipelines": register_pipelines,
    },
)
