"""The trained model as a version in MLflow's registry."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from pipeline.ray_private import MODEL_VERSIONS_TAG
from pipeline.tracking.delivery import find_model
from pipeline.tracking.diagnosis import summary_of
from pipeline.tracking.run import RunRef
from pipeline.tracking.store import client_for

MODEL = "model"  # name of the LoggedModel of a training run
_logger = logging.getLogger(__name__)


def register_model(ref: RunRef, name: str, tags: Mapping[str, str]) -> str | None:
    """Make the run's logged ``model`` the newest version of a registered model; a run's model is registered once.

    Returns
    -------
    str or None
        The version. None where records are off, or after a failure, which is logged.
    """
    from mlflow.exceptions import MlflowException

    if not ref.enabled:
        return None
    try:
        client = client_for(ref.uri)
        if known := client.search_model_versions(f"name = '{name}' and run_id = '{ref.run_id}'"):
            return str(known[0].version)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        model = find_model(client, client.get_run(ref.run_id).info.experiment_id, ref.run_id, MODEL)
        if model is None:
            raise MlflowException(f"run {ref.run_id} has logged no model")
        version = client.create_model_version(name, model.artifact_location, ref.run_id, tags=dict(tags)).version
        link = json.dumps([{"name": name, "version": version}])  # as `mlflow.register_model` links them
        client.set_logged_model_tags(model.model_id, {MODEL_VERSIONS_TAG: link})
        return str(version)
    except Exception as error:
        _logger.warning("the model of MLflow run %s could not be registered: %s", ref.name, summary_of(error))
        return None
