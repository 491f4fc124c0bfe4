"""Sections of params.yaml that no stage depends on: where numbers go, how a cluster runs the stages, what a release must reach."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from unimed.config import Section

ASIDE = {"tracking", "cluster", "gate"}
"""The sections below, by their key."""


class Tracking(Section):
    """Where MLflow keeps runs; MLFLOW_TRACKING_URI wins over it. No stage depends on it: it moves numbers and changes none."""

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "uni-medvlm"


class Toleration(Section):
    """A taint that pods with a GPU put up with, in Kubernetes' own words."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


class Cluster(Section):
    """How Kubeflow runs the stages.

    What a stage needs stands in its `meta` in dvc.yaml; these numbers cut it down to what there is, and say where things are.
    """

    most_gpus: int = Field(default=0, ge=0)
    """GPUs of a pod at most, whatever a stage asks for; 0 trains on CPUs."""

    most_memory: str = Field(default="8Gi", pattern=r"^[1-9]\d*(Mi|Gi|Ti)$")
    """Memory of a pod at most, as Kubernetes writes it."""

    gpu: str = "nvidia.com/gpu"
    """The resource that a GPU is counted under."""

    tolerations: tuple[Toleration, ...] = ()
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Taints and labels of the nodes with GPUs; pods without one get neither."""

    by_reference_above_mb: int = Field(default=16, ge=0)
    """An artifact larger than this travels as its DVC listing, its bytes through the store; 0 sends everything that way."""

    store_secret: str = "unimed-store"  # noqa: S105  a name
    """The Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where needed, AWS_ENDPOINT_URL, AWS_REGION and AWS_DEFAULT_REGION."""

    tracking_secret: str = "unimed-tracking"  # noqa: S105  a name
    """The Secret with MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; a cluster without one keeps no runs."""

    service_account: str = ""
    """That runs go under; Kubeflow's own when left out, which may do more than the stages need."""

    deadline_hours: float = Field(default=24, gt=0)
    """A run is ended after this: Kubeflow lets a pod that cannot start wait for ever."""

    retries: int = Field(default=2, ge=0)
    """How often a stage is tried again; gate and release are not, nor training without a store, which keeps what it goes on from."""

    runtime: str = "unimed-torch"
    """The ClusterTrainingRuntime that stages on several nodes run under."""


class Gate(Section):
    """What a model must reach on held-out patients before it is released. Bounds are for the ladder's rows, by "stage / metric".

    All but one are held against the worse end of the 95 % interval: what is let through is there, and not there by luck.
    """

    floors: dict[str, FiniteFloat] = Field(min_length=1)
    """The low end must reach this; without any floor a gate would let everything through."""

    ceilings: dict[str, FiniteFloat] = Field(default_factory=dict)
    """For rows where less is better: the high end must not lie above this."""

    gaps: dict[str, FiniteFloat] = Field(default_factory=dict)
    """How far the low end must lie above the row's baseline, mostly the same model with its image blanked; below 0 it may lie under it."""

    margins: dict[str, Annotated[FiniteFloat, Field(ge=0)]] = Field(min_length=1)
    """How much worse than the champion's a row may be: the interval of the paired difference on shared items must lie above -margin."""

    modality_floors: dict[str, FiniteFloat] = Field(default_factory=dict)
    """The low end must reach this in every modality with enough items."""

    least_modality_items: int = Field(default=50, gt=0)
    """A modality with fewer items of a row is listed and not judged."""

    least_items: int = Field(gt=0)
    """A row on fewer items says nothing, whatever it says; nor does a comparison on fewer that are shared."""

    least_patients: int = Field(gt=1)
    """Held-out patients of each task, and of each comparison; intervals resample patients, and few make them too narrow."""

    licences: tuple[str, ...] = Field(min_length=1)
    """Licences of data that a released model may have seen, by the name the samples carry."""
