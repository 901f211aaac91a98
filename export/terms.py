"""The words of a model card, each with what it says to whoever has never heard of it."""

from collections.abc import Callable
from dataclasses import dataclass

from export.markdown import fine, finest, percent


@dataclass(frozen=True)
class Metric:
    """A figure of service.documents.Figures: its name, how it is written, and what it says in one sentence."""

    name: str
    title: str
    written: Callable[[float], str]
    meaning: str


METRICS = (
    Metric("accuracy", "accuracy", "{:.2%}".format, "the share of the answers that are right."),
    Metric(
        "nll",
        "negative log-likelihood, nats",
        fine,
        "how surprising the true labels are by the probabilities given to them; 0 is best, and sure errors cost most.",
    ),
    Metric(
        "brier",
        "Brier score",
        fine,
        "the squared distance of the probabilities of all classes from the truth; 0 is best, 2 is worst.",
    ),
    Metric(
        "ece_15",
        "expected calibration error (ECE)",
        percent,
        "images are put into 15 bins by the probability of their answer (its confidence), and this is how far, on "
        "average, the share of right answers in a bin is from that confidence.",
    ),
    Metric(
        "classwise_ece_15",
        "classwise ECE",
        percent,
        "the same for the probability of each class, whether it is the answer or not; the mean over the classes.",
    ),
    Metric(
        "equal_mass_ece_15",
        "equal-mass ECE",
        percent,
        "the ECE in 15 bins of equally many images, finer where there are many.",
    ),
    Metric(
        "top_label_ece_15",
        "top-label ECE",
        percent,
        "the ECE in 15 bins for each answered class by itself; with so few images in a bin, chance makes it large.",
    ),
    Metric("smooth_ece", "smooth ECE", percent, "the calibration error without bins (Błasiok and Nakkiran 2023)."),
    Metric("reliability", "reliability", finest, "the squared counterpart of the ECE (Murphy 1973); 0 is best."),
    Metric(
        "resolution",
        "resolution",
        finest,
        "how well confidence tells right answers from wrong ones (Murphy 1973); more is better.",
    ),
    Metric(
        "uncertainty",
        "uncertainty",
        finest,
        "accuracy · (1 − accuracy), which no confidence could change (Murphy 1973).",
    ),
    Metric(
        "aurc",
        "area under the risk–coverage curve",
        finest,
        "the error rate among the surest images, averaged over how many of them are answered; 0 is best.",
    ),
)
METHODS = {
    "identity": "The probabilities are those of the bare network: no method improved on them.",
    "map_temperature": "All logits are divided by one number, the temperature: above 1 it makes the network less sure.",
    "beta_pooled": "After a temperature, each probability goes through one smooth rising curve of three numbers.",
    "isotonic_pooled": "After a temperature, each probability goes through one rising curve of straight pieces.",
    "vector": "Each class's logit has a weight and a bias of its own, which may change answers.",
}
GATES = {
    "nll": "change of the negative log-likelihood, 95 % upper bound",
    "brier": "change of the Brier score, 95 % upper bound",
    "ece_15": "ECE",
    "classwise_ece_15": "classwise ECE",
    "argmax": "answers that calibration changed",
    "accuracy_loss": "accuracy lost against the network as it was trained",
}
SPLITS = {
    "fit": "the calibration is fitted on them",
    "conformal": "thresholds are fitted on them",
    "eval": "nothing is fitted on them: every figure of this page is measured on them, unless others are named",
}
SCORES = {
    "energy": "the energy −ln Σ exp(logits) (Liu et al. 2020)",
    "vim": "the energy and what of the features lies off their principal space (Wang et al. 2022)",
    "knn": "the distance to the nearest of some training images (Sun et al. 2022)",
    "kl_uniform": "how near the probabilities are to being even, the mean of their logarithms (Huang et al. 2021)",
}
