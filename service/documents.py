"""What a bundle says of itself: manifest.json and calibration.json."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from service.images import InputSpec

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Labels = Annotated[list[str], Field(min_length=1)]
# A bundle by the SHA-256 of its manifest.json.
Pin = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*/\d+(\.\d+){0,2}@sha256:[0-9a-f]{64}$")]
# A file of the bundle's own directory, never a way out of it.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
Positive = Annotated[float, Field(gt=0)]
Temperature = Annotated[float, Field(ge=0.05, le=20)]
Split = Literal["fit", "conformal", "eval"]
Method = Literal["identity", "map_temperature", "beta_pooled", "isotonic_pooled", "vector"]
OodMethod = Literal["energy", "vim", "knn", "kl_uniform"]
# What a network computes in: as it was trained, or what was made of that.
VariantPrecision = Literal["int8", "fp16"]
Precision = Literal["float32", VariantPrecision]
VARIANT_PRECISIONS: tuple[VariantPrecision, ...] = get_args(VariantPrecision)


class Document(BaseModel):
    """Frozen, of finite numbers, and without members nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figures(Document):
    """Measured on n images: accuracy and errors in [0, 1], NLL in nats. See docs/calibration.md for each."""

    n: int
    accuracy: Share
    nll: float
    brier: float
    ece_15: Share
    classwise_ece_15: Share
    equal_mass_ece_15: Share
    top_label_ece_15: Share
    smooth_ece: Share
    reliability: Share
    resolution: Share
    uncertainty: Share
    aurc: Share


class NullFigures(Document):
    """What sampling alone gives a perfectly calibrated model with the same probabilities."""

    ece_15_mean: Share
    ece_15_p95: Share
    ece_15_p99: Share
    classwise_ece_15_mean: Share
    classwise_ece_15_p95: Share
    classwise_ece_15_p99: Share
    equal_mass_ece_15_mean: Share
    equal_mass_ece_15_p95: Share
    equal_mass_ece_15_p99: Share
    top_label_ece_15_mean: Share
    top_label_ece_15_p95: Share
    top_label_ece_15_p99: Share
    smooth_ece_mean: Share
    smooth_ece_p95: Share
    smooth_ece_p99: Share


class Metrics(Document):
    before: Figures
    after: Figures
    null: NullFigures


class Bin(Document):
    """The images whose confidence is in (low, high]: how sure the model was of them, and how many were right.

    confidence and accuracy are null in an empty bin. Of 99 in 100 perfectly calibrated models the accuracy is between
    null_low and null_high.
    """

    low: Share
    high: Share
    n: int
    confidence: Share | None
    accuracy: Share | None
    null_low: Share | None
    null_high: Share | None


class Bins(Document):
    """The reliability diagram (DeGroot and Fienberg 1983) of 15 equal bins."""

    before: list[Bin]
    after: list[Bin]


class RiskPoint(Document):
    """Of the most confident `coverage` of all images, the share `risk` is wrong; they have at least `confidence`."""

    coverage: Share
    risk: Share
    confidence: Share


class ClassFigures(Document):
    """One class: n images are of it, of which `recall` are found; `ece` is how far its probability is off in all."""

    label: str
    n: int
    recall: Share
    ece: Share
    ece_null_p99: Share


class SplitRecord(Document):
    """A split by the digest of its indices; n_errors counts the images the network gets wrong."""

    n: int
    n_errors: int
    index_sha256: Sha256


class Conformal(Document):
    """Split conformal prediction: labels of at least `threshold` probability cover the truth in 1 − alpha of cases."""

    alpha: Annotated[float, Field(gt=0, lt=1)]
    threshold: Share
    n: int

    @property
    def coverage(self) -> float:
        """As it is asked for and told: 0.95, not 0.9500000000000001."""
        return round(1 - self.alpha, 6)


class Abstention(Document):
    """Of images with at least `threshold` confidence no more than `risk` are wrong, with 1 − delta certainty.

    Selective risk control (Geifman and El-Yaniv 2017) on n images, of which `coverage` are answered; risk_bound is the
    bound reached.
    """

    risk: Share
    threshold: Share
    delta: Annotated[float, Field(gt=0, lt=1)]
    coverage: Share
    risk_bound: Share
    n: int


class Ood(Document):
    """An image whose score is above `threshold` is flagged; `id_tpr` of held-out images are not.

    parameters_sha256: of the arrays the score is computed with, by their names in the graph.
    """

    method: OodMethod
    threshold: float
    id_tpr: Share
    parameters_sha256: dict[str, Sha256] = {}


class Selection(Document):
    """How the method was chosen: cross-validated NLL, and for each candidate its gain over the null hypothesis.

    se: standard error of that gain. The null hypothesis, map_temperature, has a gain of 0.
    """

    candidates: list[str]
    cv_nll: dict[str, float]
    se: dict[str, float]
    chosen: str
    seed: int
    folds: int


class Gate(Document):
    """A condition on which this bundle could be written: a value no greater than the bound, where there is one."""

    name: str
    value: float
    bound: float | None
    passed: bool


class IdentityParams(Document):
    pass


class TemperatureParams(Document):
    temperature: Temperature


class BetaParams(Document):
    temperature: Temperature
    a: Positive
    b: Positive
    c: float


class IsotonicParams(Document):
    temperature: Temperature
    knots: Annotated[list[Share], Field(min_length=2, max_length=64)]
    values: Annotated[list[Share], Field(min_length=2, max_length=64)]


class VectorParams(Document):
    weights: list[float]
    biases: list[float]


PARAMS: dict[str, type[Document]] = {
    "identity": IdentityParams,
    "map_temperature": TemperatureParams,
    "beta_pooled": BetaParams,
    "isotonic_pooled": IsotonicParams,
    "vector": VectorParams,
}


class CalibrationInput(Document):
    kind: Literal["logits"]
    preprocessing_sha256: Sha256


class TestVector(Document):
    """Raw logits and the calibrated probabilities every runtime must make of them."""

    logits: list[float]
    probabilities: list[float]


class Calibration(Document):
    """calibration.json. `id` is the SHA-256 of everything else in it, so no two calibrations share one.

    params are those of the method, see PARAMS. confusion[i][j] counts images of class i taken for class j.
    """

    schema_version: Literal[2] = 2
    id: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    model_sha256: Sha256
    labels: Labels
    input: CalibrationInput
    method: Method
    params: dict[str, float | list[float]]
    selection: Selection
    gates: list[Gate]
    data: dict[Split, SplitRecord]
    metrics: Metrics
    bins: Bins
    risk_coverage: list[RiskPoint]
    classes: list[ClassFigures]
    confusion: list[list[int]]
    conformal: Annotated[list[Conformal], Field(min_length=1)]
    abstention: Abstention
    ood: Ood
    created_by: dict[str, str]
    test_vectors: list[TestVector]


class Variant(Document):
    """The network of another bundle of this model, made to compute in `precision`."""

    precision: VariantPrecision
    made_from: Pin


class Manifest(Document):
    """manifest.json. variant is null where the network computes as it was trained, in float32."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    version: str
    labels: Labels
    input: InputSpec
    files: dict[FileName, Sha256]
    training: dict[str, Any]
    created_by: dict[str, str]
    variant: Variant | None = None

    @property
    def precision(self) -> Precision:
        return self.variant.precision if self.variant else "float32"
