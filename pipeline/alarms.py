"""Find what is wrong with a run: a pure function of its epochs' metrics, shared by runs and searches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

# Lower limits for healthy features: untrained ones have more spread, and one cluster with all images has entropy 0.
COLLAPSED = {"feature_spread": 0.01, "size_entropy": 0.1}
ENTROPY_FALL = 0.1  # drop of size_entropy since the warm-up; healthy runs, even on unequal classes, lost up to 0.04
CHURN_ESTEPS = 20  # their mean churn is compared with that of as many before
CHURN = 0.2  # a mean below this may rise a little: late in a run that is noise from a few images
RANK_SPREAD = 1e-4  # upper limit for groups that are equal on all workers up to rounding
EMPTY_SCORES = {"acc": 0.5, "nmi": 0.05}  # ACC above and NMI below these: most images are of one class

Metrics = Mapping[str, float]
History = Sequence[Metrics]


@dataclass(frozen=True)
class Alarm:
    """What is wrong after an epoch: its kind, and a sentence with the value, the limit and the remedy."""

    epoch: int
    kind: str
    text: str


@dataclass(frozen=True)
class Facts:
    """The facts about a run that the rules need; alarms of an `ignored` kind are not raised."""

    num_clusters: int
    num_images: int
    warmup_epochs: int
    ignored: Collection[str] = ()


@dataclass(frozen=True)
class Rule:
    """How alarms of one kind are found.

    Attributes
    ----------
    metric : str
        Epochs without it are not judged.
    sentence : callable
        (epochs that have the metric, facts) -> what is wrong with the last one, or None.
    in_warmup : bool
        Whether epochs of the warm-up are judged and compared too.
    """

    metric: str
    sentence: Callable[[History, Facts], str | None]
    in_warmup: bool = False

    def epochs(self, history: History, facts: Facts) -> History:
        """The epochs that are judged."""
        first = 0 if self.in_warmup else facts.warmup_epochs + 1
        return [metrics for metrics in history if self.metric in metrics and metrics["epoch"] >= first]


def judge(history: History, facts: Facts) -> list[Alarm]:
    """The alarms of the last epoch of a history; empty for a healthy one.

    Parameters
    ----------
    history : sequence of dict
        Metrics of all epochs so far, as a run keeps them.
    facts : Facts
    """
    last = history[-1]
    found = []
    for kind, rule in RULES.items():
        judged = rule.epochs(history, facts)
        if kind not in facts.ignored and judged and judged[-1] is last and (text := rule.sentence(judged, facts)):
            found.append(Alarm(int(last["epoch"]), kind, text))
    return found


def new_alarms(history: History, facts: Facts) -> list[Alarm]:
    """Alarms of the last epoch that the previous judged epoch did not have: one that persists is reported once."""
    found = []
    for alarm in judge(history, facts):
        rule = RULES[alarm.kind]
        before = rule.epochs(history, facts)[:-1]
        if not before or rule.sentence(before, facts) is None:
            found.append(alarm)
    return found


def all_alarms(history: History, facts: Facts) -> list[Alarm]:
    """The alarms of a whole run in order, each at the epoch where it appeared."""
    found = []
    for kind, rule in RULES.items():
        judged, before = rule.epochs(history, facts) if kind not in facts.ignored else [], None
        for end, metrics in enumerate(judged, start=1):
            text = rule.sentence(judged[:end], facts)
            if text and not before:
                found.append(Alarm(int(metrics["epoch"]), kind, text))
            before = text
    return sorted(found, key=lambda alarm: alarm.epoch)


def collapse(metrics: Metrics) -> str | None:
    """How an epoch's metrics show that the features have collapsed; None when they have not.

    Meant for epochs after the warm-up: features at the start of training may look collapsed too.
    """
    low = {key: metrics[key] for key, least in COLLAPSED.items() if metrics.get(key, least) < least}
    if not low:
        return None
    return f"collapsed: {', '.join(f'{key} is {value:.4f} (below {COLLAPSED[key]})' for key, value in low.items())}"


def _collapse(history: History, facts: Facts) -> str | None:
    reason = collapse(history[-1])
    return reason and f"{reason}; lower optim.lr, or raise method.target_momentum"


def _empty_clusters(history: History, facts: Facts) -> str | None:
    if not (empty := int(history[-1]["clusters_empty"])):
        return None
    return f"{empty} of {facts.num_clusters} clusters are empty (0 expected); lower method.num_clusters"


def _giant_cluster(history: History, facts: Facts) -> str | None:
    """A cluster with a share more than halfway between an equal share and all images."""
    part, limit = history[-1]["cluster_largest"] / facts.num_images, (1 + 1 / facts.num_clusters) / 2
    if part <= limit:
        return None
    remedy = "lower method.prototype_weight, or set optim.balance"
    return f"the largest cluster has {part:.0%} of the images (more than {limit:.0%}); {remedy}"


def _falling_entropy(history: History, facts: Facts) -> str | None:
    top, now = max(history, key=lambda metrics: metrics["size_entropy"]), history[-1]["size_entropy"]
    if top["size_entropy"] - now <= ENTROPY_FALL:
        return None
    fall = f"from {top['size_entropy']:.3f} after epoch {int(top['epoch'])} to {now:.3f}, by more than {ENTROPY_FALL}"
    remedy = "lower method.prototype_weight, or set optim.balance"
    return f"size_entropy has fallen {fall}: large clusters absorb small ones; {remedy}"


def _steady_churn(history: History, facts: Facts) -> str | None:
    if len(history) < 2 * CHURN_ESTEPS:
        return None
    churn = [metrics["label_churn"] for metrics in history[-2 * CHURN_ESTEPS :]]
    before, now = fmean(churn[:CHURN_ESTEPS]), fmean(churn[CHURN_ESTEPS:])
    if now < before or now <= CHURN:
        return None
    means = (
        f"its mean is {now:.3f} over the last {CHURN_ESTEPS} E-steps and {before:.3f} over the {CHURN_ESTEPS} before"
    )
    return f"label_churn does not fall: {means} (above {CHURN}); lower optim.lr or method.num_clusters"


def _rank_spread(history: History, facts: Facts) -> str | None:
    spread = history[-1]["group_rank_spread"]
    if spread <= RANK_SPREAD:
        return None
    remedy = "use nodes with the same hardware and package versions (check with `digpro doctor`)"
    return f"group_rank_spread is {spread:.2g} (above {RANK_SPREAD:g}): the workers' groups differ; {remedy}"


def _not_finite(history: History, facts: Facts) -> str | None:
    return skipped_steps(int(history[-1]["steps_skipped"]))


def skipped_steps(count: int) -> str | None:
    """The message for `count` steps skipped because gradients were not finite; None for 0."""
    if not count:
        return None
    steps = "1 step was" if count == 1 else f"{count} steps were"
    return f"{steps} skipped (0 expected): gradients are not finite; lower optim.lr, or set optim.precision=float32"


def _empty_scores(history: History, facts: Facts) -> str | None:
    acc, nmi = history[-1]["acc"], history[-1]["nmi"]
    if acc <= EMPTY_SCORES["acc"] or nmi >= EMPTY_SCORES["nmi"]:
        return None
    limits = f"(above {EMPTY_SCORES['acc']} and below {EMPTY_SCORES['nmi']})"
    return f"acc is {acc:.3f} while nmi is {nmi:.3f} {limits}: most images are of one class; judge by nmi and ari"


RULES = {
    "not_finite": Rule("steps_skipped", _not_finite, in_warmup=True),
    "collapse": Rule("feature_spread", _collapse),
    "empty_clusters": Rule("clusters_empty", _empty_clusters),
    "giant_cluster": Rule("cluster_largest", _giant_cluster),
    "falling_entropy": Rule("size_entropy", _falling_entropy),
    "steady_churn": Rule("label_churn", _steady_churn),
    "rank_spread": Rule("group_rank_spread", _rank_spread, in_warmup=True),
    "empty_scores": Rule("acc", _empty_scores),
}
