"""What is added to a run after it has ended: tags, and its model's place in MLflow's registry."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pipeline.tracking.store import TAG_LENGTH, RunRef, client_for, reason

_logger = logging.getLogger(__name__)


def tag_run(ref: RunRef, tags: Mapping[str, str]) -> None:
    """Set tags of a run; a server that does not answer is named in the log."""
    try:
        client = client_for(ref.uri)
        for key, value in tags.items():
            client.set_tag(ref.run_id, key, value[:TAG_LENGTH])
    except Exception as error:
        _logger.warning("MLflow run %s could not be tagged: %s", ref.name, reason(error))


def register_model(ref: RunRef, name: str, tags: Mapping[str, str]) -> str | None:
    """Make the run's logged ``model`` the newest version of a registered model; a run's model is registered once.

    Returns
    -------
    str or None
        The version. None when the server did not answer, which is named in the log.
    """
    from mlflow.exceptions import MlflowException

    try:
        client = client_for(ref.uri)
        if known := client.search_model_versions(f"name = '{name}' and run_id = '{ref.run_id}'"):
            return str(known[0].version)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{client.get_run(ref.run_id).info.artifact_uri}/model"
        return str(client.create_model_version(name, source, ref.run_id, tags=dict(tags)).version)
    except Exception as error:
        _logger.warning("the model of MLflow run %s could not be registered: %s", ref.name, reason(error))
        return None
