"""The model registry: what MLflow holds of requests, runs and adapters, and which adapter is the champion.

``naming`` names a registered model after its concept, ``client`` is the one way to the server, ``tracking`` writes
runs, ``packaging`` and ``registering`` register adapters, ``models`` knows their versions and what the gate said of
them, ``log`` and ``promotions`` move aliases, ``views`` only read. MLflow is imported nowhere else in the project.
"""

import os

# Read when mlflow is first imported. Takedown requests are nobody else's business, not even as usage statistics.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Stdout belongs to the result of a command, and a log is no place for progress bars.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
